"""Models from folders and functions: what is there is loaded, what is not is named, and nothing hostile is run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgesdk import model_source, tokenizer
from edgesdk.data import Dataset
from edgesdk.errors import ConfigError, EdgeSDKError, ModelError
from edgesdk.importing import import_job
from edgesdk.model_source import load_model, load_tokenizer, preprocess_files
from edgesdk.transformer.importers import import_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT classifier with a tokenizer, as `save_pretrained` writes them."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, num_labels=3, id2label={0: "sad", 1: "glad", 2: "mad"},
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(bert_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(bert_folder, tmp_path / "model"))


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(source: str, error: type[EdgeSDKError]) -> str:
    with pytest.raises(error) as caught:
        load_model(source)
    return str(caught.value)


# --- folders ------------------------------------------------------------------------------------------------------


def test_a_folder_loads_and_imports(bert_folder: Path) -> None:
    model = load_model(str(bert_folder))
    assert type(model).__name__ == "BertForSequenceClassification"
    imported = import_model(model)
    assert imported.labels == ["sad", "glad", "mad"]
    assert imported.difference <= 1e-4


def test_a_vit_folder_loads_without_random_pooler(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=4
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    imported = import_model(load_model(str(tmp_path)))
    assert not imported.spec.pooler


def test_an_encoder_that_was_only_pre_trained_loads_headless(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert type(model).__name__ == "BertModel"
    assert import_model(model).task == "encoding"


SMALL = {
    "vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 12, "num_labels": 3, "bos_token_id": 0, "eos_token_id": 1,
}
IMAGES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
    "patch_size": 4,
}


@pytest.mark.parametrize(
    ("config", "saved", "loaded", "options"),
    [
        ("DistilBertConfig", "DistilBertForSequenceClassification", None, SMALL),
        ("DistilBertConfig", "DistilBertForMaskedLM", "DistilBertModel", SMALL),
        ("RobertaConfig", "RobertaForSequenceClassification", None, SMALL),
        ("RobertaConfig", "RobertaForMaskedLM", "RobertaModel", SMALL),
        ("AlbertConfig", "AlbertForSequenceClassification", None, {**SMALL, "embedding_size": 8}),
        ("AlbertConfig", "AlbertForMaskedLM", "AlbertModel", {**SMALL, "embedding_size": 8}),
        ("GPT2Config", "GPT2LMHeadModel", None, SMALL),
        ("GPT2Config", "GPT2Model", None, SMALL),
        ("DeiTConfig", "DeiTForImageClassification", None, IMAGES),
        ("DeiTConfig", "DeiTForMaskedImageModeling", "DeiTModel", {**IMAGES, "encoder_stride": 4}),
    ],
)
def test_folders_of_every_family(
    tmp_path: Path, config: str, saved: str, loaded: str | None, options: dict[str, Any]
) -> None:
    import transformers

    getattr(transformers, saved)(getattr(transformers, config)(**options)).save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert type(model).__name__ == (loaded or saved)
    assert import_model(model).difference <= 1e-4


def test_gpt2_as_it_was_first_published(tmp_path: Path) -> None:
    """Names without the prefix of the head's body, and the causal masks among the weights."""
    from safetensors.torch import load_file, save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(**SMALL)).save_pretrained(tmp_path)
    expected = import_model(load_model(str(tmp_path)))
    saved = load_file(tmp_path / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in saved.items() if "lm_head" not in name}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 12, 12).tril()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    edit(tmp_path, n_ctx=12, task_specific_params={"text-generation": {"do_sample": True}})
    found = import_model(load_model(str(tmp_path)))
    assert found.spec == expected.spec
    assert all(np.array_equal(found.weights[name], value) for name, value in expected.weights.items())


def test_a_head_that_is_not_covered_is_not_left_away(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2DoubleHeadsModel

    GPT2DoubleHeadsModel(GPT2Config(**SMALL)).save_pretrained(tmp_path)
    assert "GPT2DoubleHeadsModel" in refusal(str(tmp_path), ModelError)


# --- sentence-transformers ------------------------------------------------------------------------------------------

STEPS = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
FLAGS = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def sentences(encoder_folder: Path, tmp_path: Path) -> Path:
    """A tiny sentence encoder, to spoil."""
    folder = Path(shutil.copytree(encoder_folder, tmp_path / "sentences"))
    (folder / "1_Pooling").mkdir()
    describe(folder, STEPS, {**FLAGS, "pooling_mode_mean_tokens": True})
    return folder


def describe(folder: Path, steps: object, pooling: object) -> None:
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({**FLAGS, "pooling_mode_mean_tokens": True}, "mean"),
        ({**FLAGS, "pooling_mode_cls_token": True, "include_prompt": True}, "cls"),
        ({"word_embedding_dimension": 16, "pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_the_pooling_of_a_sentence_encoder_counts(sentences: Path, pooling: dict[str, Any], expected: str) -> None:
    describe(sentences, STEPS, pooling)
    imported = import_model(load_model(str(sentences)))
    assert (imported.spec.pooling, imported.family) == (expected, "bert")
    assert "normalisation" in imported.notes[0]
    describe(sentences, STEPS[:2], pooling)
    assert import_model(load_model(str(sentences))).notes == ()


@pytest.mark.parametrize(
    ("steps", "pooling", "words"),
    [
        (STEPS, FLAGS, ["1_Pooling/config.json", "nothing"]),
        (STEPS, {**FLAGS, "pooling_mode_max_tokens": True}, ["pooling_mode_max_tokens"]),
        (STEPS, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ["mean", "cls"]),
        (STEPS, {"pooling_mode": "lasttoken"}, ["lasttoken"]),
        (STEPS, {"pooling_mode": {"mean": 1}}, ["pooling by"]),
        (STEPS, [], ["1_Pooling/config.json", "object"]),
        (STEPS[:1], FLAGS, ["modules.json", "no Pooling"]),
        ([STEPS[0], STEPS[2]], FLAGS, ["step 1", "Normalize"]),
        ([*STEPS[:2], {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}], FLAGS, ["mean"]),
        ([{**STEPS[0], "path": "0_Transformer"}], FLAGS, ["0_Transformer"]),
        ([STEPS[0], {**STEPS[1], "path": "../1_Pooling"}], FLAGS, ["../1_Pooling"]),
        ([STEPS[0], {**STEPS[1], "path": "/etc"}], FLAGS, ["/etc"]),
        ([STEPS[0], {**STEPS[1], "path": "nowhere"}], FLAGS, ["nowhere", "missing"]),
        ([STEPS[0], {"type": 3, "path": ""}], FLAGS, ["no step"]),
        ([7], FLAGS, ["no step"]),
        ({"0": STEPS[0]}, FLAGS, ["modules.json", "list"]),
    ],
)
def test_sentence_encoders_that_are_refused(sentences: Path, steps: object, pooling: object, words: list[str]) -> None:
    describe(sentences, steps, pooling)
    message = refusal(str(sentences), ModelError)
    assert all(word in message for word in words), message


def test_a_build_says_that_the_normalisation_is_left_out(sentences: Path) -> None:
    rows = np.arange(24).reshape(6, 4) % 20
    data = Dataset({"input_ids": rows, "attention_mask": np.ones_like(rows)}, None, "rows")
    job = import_job(str(sentences), data, None)
    assert any("normalisation" in note for note in job.notes)
    assert job.package.lineage[0].parameters["family"] == "bert"


def test_a_dense_step_is_not_left_away(sentences: Path) -> None:
    dense = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    describe(sentences, [*STEPS[:2], dense], {**FLAGS, "pooling_mode_mean_tokens": True})
    assert "step 2 is 'Dense'" in refusal(str(sentences), ModelError)


@pytest.mark.parametrize("broken", [b"", b"[", b"\xff", b"[" * 100_000])
def test_broken_modules(sentences: Path, broken: bytes) -> None:
    (sentences / "modules.json").write_bytes(broken)
    assert "modules.json" in refusal(str(sentences), ModelError)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_groups": 1 << 40}, ["num_hidden_groups", "1 to 1000"]),
        ({"inner_group_num": 0}, ["inner_group_num", "0"]),
        ({"inner_group_num": 600, "num_hidden_layers": 2}, ["num_hidden_layers is 2", "1 to 1"]),
        ({"embedding_size": 1 << 30}, ["config.json", "bytes"]),
    ],
)
def test_albert_configurations_that_are_refused(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    from transformers import AlbertConfig, AlbertModel

    AlbertModel(AlbertConfig(**SMALL, embedding_size=8)).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    message = refusal(str(tmp_path), ModelError)
    assert all(word in message for word in words), message


def test_sinusoids_are_not_computed_for_a_size_that_nothing_holds(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    DistilBertModel(DistilBertConfig(**SMALL)).save_pretrained(tmp_path)
    edit(tmp_path, sinusoidal_pos_embds=True, max_position_embeddings=1 << 30)
    assert "bytes" in refusal(str(tmp_path), ModelError)


class Bomb:
    """A pickle of it makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_are_refused_and_not_executed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"bert.pooler.dense.weight": Bomb(tmp_path / "boom")}, folder / "pytorch_model.bin")
    message = refusal(str(folder), ModelError)
    assert "pytorch_model.bin" in message and "pickle" in message and "save_pretrained" in message
    assert not (tmp_path / "boom").exists()


def test_code_of_the_folder_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'boom')!r})\n")
    edit(folder, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"})
    assert "auto_map" in refusal(str(folder), ModelError)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, ["model_type", "mamba", "bert, ", "gpt2, ", "vit"]),
        ({"model_type": ["bert"]}, ["model_type"]),
        ({"architectures": ["BertForTokenClassification"]}, ["architectures", "BertForTokenClassification"]),
        ({"architectures": "BertModel"}, ["architectures", "expected a list"]),
        ({"quantization_config": {"quant_method": "bitsandbytes_4bit"}}, ["quantization_config"]),
        ({"hidden_size": 1 << 40}, ["cannot load"]),
        ({"hidden_size": 1 << 14}, ["config.json", "bytes"]),
        ({"vocab_size": 1 << 30}, ["config.json", "bytes"]),
        ({"type_vocab_size": 1 << 36}, ["config.json", "bytes"]),
        ({"num_hidden_layers": 1 << 30}, ["num_hidden_layers", "1073741824"]),
        ({"num_hidden_layers": 2}, ["encoder.layer.1", "missing"]),
        ({"vocab_size": 7}, ["cannot load"]),
        ({"hidden_size": "many"}, ["cannot load"]),
        ({"hidden_act": "no_such"}, ["cannot load", "no_such"]),
    ],
)
def test_configurations_that_are_refused(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    edit(folder, **changes)
    message = refusal(str(folder), ModelError)
    assert all(word in message for word in words), message


def test_a_hub_kernel_is_not_asked_for(folder: Path) -> None:
    kernel = "kernels-community/flash-attn"
    edit(folder, _attn_implementation=kernel, attn_implementation=kernel, _attn_implementation_internal=kernel)
    model: Any = load_model(str(folder))
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model_type": "bert"'])
def test_broken_config(folder: Path, broken: bytes) -> None:
    (folder / "config.json").write_bytes(broken)
    assert "config.json" in refusal(str(folder), ModelError)


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_weights(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert str(folder) in refusal(str(folder), ModelError)


def test_other_incomplete_folders(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json" in refusal(str(folder), ModelError)
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    assert "no model.safetensors" in refusal(str(folder), ModelError)
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "several files" in refusal(str(folder), ModelError)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no config.json" in refusal(str(empty), ModelError)


def test_without_transformers(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install edgesdk[hf]" in refusal(str(bert_folder), ModelError)
    with pytest.raises(ModelError, match=r"edgesdk\[hf\]"):
        load_tokenizer(bert_folder)


# --- paths and functions ------------------------------------------------------------------------------------------


def test_a_wrong_path_names_what_is_near(folder: Path) -> None:
    message = refusal(str(folder.parent / "modle"), ConfigError)
    assert "modle" in message and "model" in message.split("has", 1)[1]
    assert "no such file" in refusal(str(folder.parent / "nowhere" / "else"), ConfigError)
    assert "no such file" in refusal("x" * 5000, ConfigError)
    assert "no such file" in refusal("nul\0byte", ConfigError)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    for name, error, word in (("a.onnx", ModelError, "ONNX"), ("a.pt", ConfigError, "expected a folder")):
        (tmp_path / name).write_bytes(b"x")
        assert word in refusal(str(tmp_path / name), error)


def test_a_function_of_the_current_folder(cwd: Path) -> None:
    (cwd / "user_models_a.py").write_text("VALUE = 7\ndef make(width=3):\n    return ('model', width + VALUE)\n")
    assert load_model("user_models_a:make") == ("model", 10)


@pytest.mark.parametrize(
    ("code", "source", "error", "words"),
    [
        ("", "user_models_none:make", ConfigError, ["no module user_models_none"]),
        ("", "user_models_b.inner:make", ConfigError, ["no module user_models_b.inner"]),
        ("def make_model(): pass\n", "user_models_b:make_modle", ConfigError, ["has no make_modle", "make_model"]),
        ("make = 3\n", "user_models_b:make", ConfigError, ["make is int, not a function"]),
        ("def make(path): pass\n", "user_models_b:make", ConfigError, ["(path)", "without arguments"]),
        ("def make():\n    raise KeyError('k')\n", "user_models_b:make", ModelError, ["KeyError: 'k'", "b.py:2"]),
        ("import no_such_thing\n", "user_models_b:make", ModelError, ["ModuleNotFoundError", "no_such_thing"]),
        ("def make(:\n", "user_models_b:make", ModelError, ["SyntaxError"]),
        ("import sys\nsys.exit(3)\n", "user_models_b:make", ModelError, ["SystemExit: 3"]),
    ],
)
def test_functions_that_fail(
    cwd: Path, monkeypatch: pytest.MonkeyPatch, code: str, source: str, error: type[EdgeSDKError], words: list[str]
) -> None:
    monkeypatch.delitem(sys.modules, "user_models_b", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (cwd / "user_models_b.py").write_text(code)
    message = refusal(source, error)
    assert all(word in message for word in words), message


# --- tokenizers ---------------------------------------------------------------------------------------------------


def test_the_tokenizer_truncates_and_pads_at_the_end(bert_folder: Path) -> None:
    found = load_tokenizer(bert_folder)
    assert found is not None
    encoded = found.encode(["a good film", "bad", "a good good good bad film"], 6)
    assert encoded["input_ids"].tolist() == [[2, 8, 5, 7, 3, 0], [2, 6, 3, 0, 0, 0], [2, 8, 5, 5, 5, 3]]
    assert encoded["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]
    assert encoded["input_ids"].dtype == np.int64


def test_a_tokenizer_of_a_vocabulary_alone(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copy(bert_folder / "vocab.txt", tmp_path)
    found = load_tokenizer(tmp_path)
    assert found is not None
    assert found.encode(["a good film"], 5)["input_ids"].tolist() == [[2, 8, 5, 7, 3]]


def test_no_tokenizer(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("end", [None, "w1"])
def test_decoders_pad_with_their_end_token(folder: Path, end: str | None) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    kept = {name: value for name, value in settings.items() if "token" not in name or name == "tokenizer_class"}
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": None, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    if end is None:
        with pytest.raises(ConfigError, match="padding token"):
            load_tokenizer(folder)
        return
    found = load_tokenizer(folder)
    assert found is not None
    encoded = found.encode(["w2"], 6)
    length = int(encoded["attention_mask"].sum())
    token = found.inner.convert_tokens_to_ids(end)
    assert encoded["input_ids"][0, length:].tolist() == [token] * (6 - length)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_tokenizer(folder: Path, name: str) -> None:
    (folder / name).write_text('{"tokenizer_class": ')
    with pytest.raises(ConfigError, match="tokenizer"):
        load_tokenizer(folder)


def test_code_of_a_tokenizer_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'boom')!r})\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="auto_map"):
        load_tokenizer(folder)
    assert not (tmp_path / "boom").exists()


def test_files_that_a_package_takes_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = preprocess_files(folder)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}
    assert files["vocab.txt"] == (folder / "vocab.txt").read_bytes()
    monkeypatch.setattr(tokenizer, "PREPROCESS_LIMIT", 8)
    with pytest.raises(ModelError, match="tokenizer.json.*bytes"):
        preprocess_files(folder)


def test_every_covered_class_exists() -> None:
    import transformers

    for covered, fallback, headless in model_source.ARCHITECTURES.values():
        for name in (*covered, fallback, *headless):
            assert hasattr(transformers, name)
