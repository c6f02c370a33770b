"""The canonical Transformer: its spec, its torch module, its ONNX graph, and importers into it."""
