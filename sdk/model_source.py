"""Where models come from: a folder as `save_pretrained` of transformers writes it, or `module:function` of the user.

A folder is hostile input: only `config.json` and `model.safetensors` are read, its own code and pickles never are, and
nothing is fetched. A function is the user's own code and is run as such.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from edgesdk.errors import ConfigError, ModelError
from edgesdk.sentence_folder import read_sentence_pooling
from edgesdk.tokenizer import Tokenizer, import_transformers, load_tokenizer, preprocess_files, read_json
from edgesdk.user_code import call_function, is_function, missing_path

__all__ = ["Tokenizer", "load_model", "load_tokenizer", "preprocess_files"]

# Model type → (architectures that are loaded as they are, class for the others, architectures whose head only served
# pre-training and may be left away).
ARCHITECTURES: dict[str, tuple[tuple[str, ...], str, tuple[str, ...]]] = {
    "bert": (
        ("BertForSequenceClassification", "BertModel"),
        "BertModel",
        ("BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction"),
    ),
    "distilbert": (
        ("DistilBertForSequenceClassification", "DistilBertModel"), "DistilBertModel", ("DistilBertForMaskedLM",)
    ),
    "roberta": (("RobertaForSequenceClassification", "RobertaModel"), "RobertaModel", ("RobertaForMaskedLM",)),
    "albert": (
        ("AlbertForSequenceClassification", "AlbertModel"), "AlbertModel", ("AlbertForMaskedLM", "AlbertForPreTraining")
    ),
    "gpt2": (("GPT2LMHeadModel", "GPT2Model"), "GPT2LMHeadModel", ()),
    "llama": (("LlamaForCausalLM", "LlamaModel"), "LlamaForCausalLM", ()),
    "vit": (("ViTForImageClassification", "ViTModel"), "ViTModel", ("ViTForMaskedImageModeling",)),
    "deit": (
        ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTModel"),
        "DeiTModel",
        ("DeiTForMaskedImageModeling",),
    ),
}
# Keys of config.json that make transformers load other code or other weights than those of the folder.
REFUSED_KEYS = ("auto_map", "quantization_config", "adapters")
# Encoders whose pooler, if they have one, the importer drops.
SENTENCE_ENCODERS = ("BertModel", "DistilBertModel", "RobertaModel", "AlbertModel")
# As many as a TransformerSpec may have.
MOST_LAYERS = 1000


def load_model(source: str) -> object:
    """The model that `--model` names: a folder of transformers, or what `module:function` returns.

    Raises:
        ConfigError: there is no such folder, module or function.
        ModelError: the folder is not one that can be loaded safely, or the user's function raised.
    """
    path = Path(source)
    if os.path.isdir(path):
        return _load_folder(path)
    if os.path.isfile(path):
        hint = "give the folder that holds config.json and model.safetensors, or module:function"
        if path.suffix == ".onnx":
            raise ModelError(f"model {source}: structural import of ONNX comes with a later release", hint)
        raise ConfigError(f"model {source}: a file, expected a folder or module:function", hint)
    if is_function(source):
        return call_function(source, "model", raised=ModelError)
    expected = "a folder with config.json and model.safetensors, module:function or a .edgepkg"
    raise missing_path(source, "model", expected)


def _load_folder(folder: Path) -> object:
    """The model of a folder: the class that `architectures` of config.json names, if it is covered."""
    config = _read_config(folder)
    class_name = _class_name(folder, config)
    pooling = read_sentence_pooling(folder) if class_name in SENTENCE_ENCODERS else None
    weights = folder / "model.safetensors"
    _check_weights(folder, weights)
    model_class = getattr(import_transformers(), class_name)
    try:
        parsed = _parse_config(model_class.config_class, config)
        _check_size(model_class, folder / "config.json", parsed, weights.stat().st_size)
        model, info = model_class.from_pretrained(
            str(folder),
            config=parsed,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation="eager",
            dtype="float32",
        )
    except ModelError:
        raise
    except Exception as problem:  # whatever transformers and safetensors make of a broken folder
        raise ModelError(
            f"{folder}: transformers cannot load it as {class_name}: {type(problem).__name__}: {problem}"
        ) from problem
    missing = sorted(info["missing_keys"])
    if class_name in ("ViTModel", "DeiTModel") and missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # the checkpoint of a classifier: without a pooler rather than with a random one
        missing = []
    if class_name in SENTENCE_ENCODERS:
        missing = [key for key in missing if not key.startswith("pooler.")]  # the importer drops it
    if missing:
        raise ModelError(
            f"{weights}: {len(missing)} weights of {class_name} are missing: {', '.join(missing[:4])}",
            "give a folder with a trained model; transformers would fill in random weights",
        )
    if pooling is None:
        return model.eval()
    from edgesdk.transformer.importers import SentenceEncoder

    return SentenceEncoder(model, pooling.pooling, pooling.normalized).eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no config.json", "give a folder written by save_pretrained of transformers")
    config = read_json(path)
    for key in REFUSED_KEYS:
        if config.get(key):
            raise ModelError(
                f"{path}: {key} is set; code and weights from elsewhere are never loaded",
                "load the model where you trust it, make it a plain float model and save_pretrained it again",
            )
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder}: adapter_config.json asks for a base model from elsewhere",
            "merge the adapter into the model (merge_and_unload) and save_pretrained it again",
        )
    return config


def _parse_config(config_class: Any, config: dict[str, Any]) -> Any:
    """The configuration with the keys of its class alone: others may name an attention kernel to fetch and run."""
    names = {field.name for field in dataclasses.fields(config_class)} | {"num_labels", "position_embedding_type"}
    kept = {key: value for key, value in config.items() if key in names}
    if config.get("model_type") == "distilbert":
        kept["sinusoidal_pos_embds"] = False  # the table is in the checkpoint; computing it first takes its time
    return config_class(**kept, attn_implementation="eager")


def _class_name(folder: Path, config: dict[str, Any]) -> str:
    """The class to load; heads that matter and are not covered are refused rather than left away."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ModelError(
            f"{folder / 'config.json'}: model_type is {model_type!r}, covered: {', '.join(ARCHITECTURES)}",
            "give a model of one of these types, or module:function that returns a torch.nn.TransformerEncoder",
        )
    covered, fallback, headless = ARCHITECTURES[model_type]
    architectures = config.get("architectures") or [fallback]
    if not isinstance(architectures, list):
        raise ModelError(f"{folder / 'config.json'}: architectures is {architectures!r}, expected a list")
    for name in covered:
        if name in architectures:
            return name
    if any(name in headless for name in architectures):
        return fallback
    raise ModelError(
        f"{folder / 'config.json'}: architectures is {architectures!r}, covered: {', '.join(covered + headless)}",
        "give a classifier, a plain encoder or a decoder with its head",
    )


def _check_weights(folder: Path, weights: Path) -> None:
    if weights.is_file():
        return
    if pickled := sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")):
        raise ModelError(
            f"{folder}: no model.safetensors, only {', '.join(pickled[:3])} (pickle: loading it can run any code)",
            "load it with transformers where you trust it and write it again: model.save_pretrained(folder)",
        )
    if (folder / "model.safetensors.index.json").exists():
        raise ModelError(
            f"{folder}: the weights are split over several files",
            "write them as one: model.save_pretrained(folder, max_shard_size='100GB')",
        )
    raise ModelError(f"{folder}: no model.safetensors", "give a folder written by save_pretrained of transformers")


def _check_size(model_class: Any, config_file: Path, config: Any, size: int) -> None:
    """Refuse a configuration that asks for more weights than the file can hold (a byte a weight), before torch
    allocates them."""
    most = MOST_LAYERS
    for key in ("inner_group_num", "num_hidden_groups", "num_hidden_layers"):
        count = getattr(config, key, 1)
        if not 0 < count <= most:
            raise ModelError(f"{config_file}: {key} is {count}, covered: 1 to {most}")
        if key == "inner_group_num":
            most //= count  # ALBERT: each run of a group is so many layers
    import torch

    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in model_class(config).parameters())
    if weights > size:
        raise ModelError(
            f"{config_file} describes {weights} weights, model.safetensors has {size} bytes",
            "the two files do not belong together, or one is truncated",
        )
