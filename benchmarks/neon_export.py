"""The model as other people bring it to ONNX Runtime: `BertModel` of transformers, exported by torch, quantized by ONNX
Runtime's own tools. The forms of `neon_peers.py` that EdgeSDK has no hand in.

Writes folders that `neon_count.py` runs: `model.onnx`, golden rows, and as much of `artifact.json` as it reads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from neon_models import Model
from torch import Tensor, nn

from edgesdk.files import canonical_json, sha256_bytes
from edgesdk.transformer.spec import TokenEmbedding

CALIBRATION_ROWS = 24
OPSET = 20
FORMS = ("fp32", "fused", "dynamic", "static")


class Classifier(nn.Module):
    """Encoder, mean of the tokens, classifier; the mask is additive, as the encoder takes it."""

    def __init__(self, encoder: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[1, S] token ids and mask → [1, classes]."""
        mask = attention_mask.to(torch.float32)
        hidden = self.encoder(input_ids, attention_mask=(1.0 - mask)[:, None, None, :] * -30.0).last_hidden_state
        weights = mask.unsqueeze(-1)
        return self.head((hidden * weights).sum(1) / weights.sum(1))


def transformers_model(model: Model) -> Classifier:
    """The model with its weights where transformers keeps them; token types are part of the positions."""
    from transformers import BertConfig, BertModel

    spec, layer = model.spec, model.spec.layers[0]
    assert isinstance(spec.embedding, TokenEmbedding) and spec.classes
    config = BertConfig(
        vocab_size=spec.embedding.vocabulary, hidden_size=spec.hidden, num_hidden_layers=len(spec.layers),
        num_attention_heads=layer.heads, intermediate_size=layer.ffn, layer_norm_eps=spec.norm_epsilon,
        max_position_embeddings=spec.embedding.max_length, attn_implementation="eager",
    )
    encoder, head = BertModel(config, add_pooling_layer=False), nn.Linear(spec.hidden, spec.classes)
    names = {"embedding.tokens": "embeddings.word_embeddings", "embedding.positions": "embeddings.position_embeddings",
             "embedding.norm": "embeddings.LayerNorm"}
    for index in range(len(spec.layers)):
        ours, theirs = f"layers.{index}", f"encoder.layer.{index}"
        names |= {f"{ours}.attention.{part}": f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")}
        names |= {f"{ours}.attention.output": f"{theirs}.attention.output.dense",
                  f"{ours}.attention.norm": f"{theirs}.attention.output.LayerNorm",
                  f"{ours}.ffn.up": f"{theirs}.intermediate.dense", f"{ours}.ffn.down": f"{theirs}.output.dense",
                  f"{ours}.ffn.norm": f"{theirs}.output.LayerNorm"}
    weights = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in model.weights.items()}
    head.load_state_dict({part: weights.pop(f"classifier.{part}") for part in ("weight", "bias")})
    state = {f"{names[stem]}.{part}": value for name, value in weights.items()
             for stem, _, part in (name.rpartition("."),)}
    state["embeddings.token_type_embeddings.weight"] = torch.zeros(config.type_vocab_size, spec.hidden)
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name or "token_type_ids" in name for name in missing), missing
    return Classifier(encoder, head).eval()


def write(model: Model, form: str, sequence: int, cache: Path) -> Path:
    """The folder of one form, from `cache` where it was made before."""
    key = canonical_json([form, sequence, {name: version(name) for name in ("torch", "transformers", "onnxruntime")},
                          sha256_bytes(b"".join(np.ascontiguousarray(v).tobytes() for v in model.weights.values())),
                          sha256_bytes(Path(__file__).read_bytes())])
    folder = cache / f"export-{form}-{sequence}-{sha256_bytes(key)[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".export-") as place:
        made = Path(place) / "made"
        (made / "golden").mkdir(parents=True)
        rows = model.inputs(sequence, 1)
        (made / "golden/in.bin").write_bytes(rows["input_ids"].tobytes() + rows["attention_mask"].tobytes())
        inputs = [{"name": name, "dtype": "int64", "shape": [1, sequence]} for name in rows]
        (made / "artifact.json").write_bytes(canonical_json({"inputs": inputs, "golden": {"n": 1}}))
        if form == "fp32":
            _export(model, sequence, made / "model.onnx")
        else:
            plain = write(model, "fp32", sequence, cache) / "model.onnx"
            {"fused": _fuse, "dynamic": _dynamic, "static": _static}[form](plain, made / "model.onnx", model, sequence)
        made.rename(folder)
    return folder


def _export(model: Model, sequence: int, path: Path) -> None:
    """torch's exporter, and the proof that the graph answers like the package."""
    from edgesdk.transformer import module

    rows = model.inputs(sequence, 1)
    arguments = tuple(torch.from_numpy(rows[name]) for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        torch.onnx.export(
            transformers_model(model), arguments, str(path), input_names=list(rows), output_names=["logits"],
            opset_version=OPSET, dynamo=False,
        )
    found = _session(path).run(None, rows)[0]
    expected = module.run(module.build(model.spec, dict(model.weights)), rows)
    assert np.abs(found - expected).max() < 1e-3, "the export answers otherwise"


def _fuse(plain: Path, path: Path, model: Model, sequence: int) -> None:
    """ONNX Runtime's optimizer for BERT: what it finds of LayerNorm, GELU, skips and attention."""
    from onnxruntime.transformers import optimizer

    layer = model.spec.layers[0]
    fused = optimizer.optimize_model(
        str(plain), model_type="bert", num_heads=layer.heads, hidden_size=model.spec.hidden, opt_level=0
    )
    fused.save_model_to_file(str(path))


def _dynamic(plain: Path, path: Path, model: Model, sequence: int) -> None:
    """int8 weights by channel, activations quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(_bare(plain, path), str(path), per_channel=True, weight_type=QuantType.QInt8)


def _static(plain: Path, path: Path, model: Model, sequence: int) -> None:
    """Q/DQ with uint8 activations and int8 weights by channel, attention products too, calibrated by minimum and
    maximum."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[dict[str, Any]] = iter(
                {name: value[row : row + 1] for name, value in samples.items()} for row in range(CALIBRATION_ROWS)
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    samples = model.inputs(sequence, CALIBRATION_ROWS)
    quantize_static(
        _bare(plain, path), str(path), Rows(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"],
    )


def _bare(plain: Path, path: Path) -> str:
    """The graph without its inferred shapes, which ONNX Runtime's quantizer contradicts."""
    import onnx

    graph = onnx.load(str(plain))
    del graph.graph.value_info[:]
    bare = path.with_name("bare.onnx")
    onnx.save(graph, str(bare))
    return str(bare)


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
