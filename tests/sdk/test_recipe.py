"""Recipes: presets, messages that name the place and the near miss, searches, and nothing but ConfigError on junk."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgesdk.errors import ConfigError
from edgesdk.recipe import FP32, Recipe, check_recipe, default_recipes, load_recipes, preset_names
from edgesdk.stages import STAGES, Outline
from edgesdk.testing.models import VIT
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

HEADER = "format: edgesdk.recipe\nversion: 1\n"
OUTLINE = Outline(VIT, "fp32", "classification", True)
TEXT_SPEC = TransformerSpec(
    TokenEmbedding(8000, max_length=128), 48, (Layer(12, 12, 4, 192),) * 6, "post", 1e-12, "gelu", "mean", classes=5
)
TEXT_OUTLINE = Outline(TEXT_SPEC, "fp32", "classification", True, text=True)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.mark.parametrize("name", preset_names())
def test_preset_parses_and_runs(name: str) -> None:
    (recipe,) = load_recipes(name)
    assert recipe.name == name
    assert recipe.stages
    assert recipe.description
    # Recipes that are tried by default run on every model; the others are for classifiers of text.
    reasons, outline = check_recipe(recipe, OUTLINE if recipe.default else TEXT_OUTLINE)
    assert reasons == []
    assert outline.scheme != "fp32"


def test_presets_are_these() -> None:
    assert {"int8", "int8-dynamic"} <= set(preset_names())
    assert preset_names() == sorted(preset_names())
    assert load_recipes("fp32") == [FP32]


def test_default_recipes_need_no_more_than_was_given() -> None:
    without = default_recipes(False)
    assert not any(stage.name == "distill" for recipe in without for stage in recipe.stages)
    presets = {name for name in preset_names() if all(recipe.default for recipe in load_recipes(name))}
    assert {recipe.name for recipe in default_recipes(True)} == {"fp32", *presets}
    assert {"int8", "int8-dynamic", "small"} <= presets
    assert without[0] is FP32
    for recipe in without:
        assert check_recipe(recipe, Outline(VIT, "fp32", "classification", False))[0] == []


def test_file_with_all_keys(write: Any) -> None:
    (recipe,) = load_recipes(write(HEADER + """
description: mine
seed: 7
goals: {accuracy: max-degradation 1}
stages:
  - stage: prune.neurons
    keep: 0.5
  - stage: quantize.ptq
"""))
    assert (recipe.name, recipe.seed, recipe.description) == ("mine", 7, "mine")
    assert recipe.goals == {"accuracy": "max-degradation 1"}
    assert [stage.name for stage in recipe.stages] == ["prune.neurons", "quantize.ptq"]
    assert recipe.stages[0].options.model_dump()["keep"] == 0.5


def test_plain_form_reads_back(write: Any) -> None:
    for name in preset_names():
        (recipe,) = load_recipes(name)
        (again,) = load_recipes(write(yaml.safe_dump(recipe.plain())))
        assert again.digest == recipe.digest
        assert again.plain() == recipe.plain()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("stages: [{stage: quantize.ptqs}]", r"stages\[0\] \(line 3\).stage: unknown stage 'quantize.ptqs'",
         "quantize.ptq"),
        ("stages: [{stage: quantize.ptq}, {stage: zzz}]", r"stages\[1\] \(line 3\).stage: unknown stage 'zzz'",
         "distill"),
        ("stages: [{keep: 0.5}]", r"stages\[0\] \(line 3\).stage: unknown stage None", "one of"),
        ("stages: [{stage: [quantize.ptq]}]", r"stages\[0\] \(line 3\).stage: unknown stage", "one of"),
        ("stages: [{stage: {a: b}}]", r"stages\[0\] \(line 3\).stage: unknown stage", "one of"),
        ("stages: [{stage: quantize.ptq, shceme: w8a8}]",
         r"stages\[0\] \(line 3\) \(quantize.ptq\): unknown key 'shceme'", "'scheme'"),
        ("stages: [{stage: quantize.ptq, zzz: 1}]", "unknown key 'zzz'", "known keys: scheme"),
        ("stages: [{stage: quantize.ptq, scheme: w4}]", r"\(quantize.ptq\): scheme: .*'w4a8-dynamic', found 'w4'", ""),
        ("stages: [{stage: prune.neurons}]", r"stages\[0\] \(line 3\) \(prune.neurons\): keep: Field required", ""),
        ("stages: [{stage: prune.neurons, keep: 1.5}]", "keep: .*less than or equal to 1, found 1.5", ""),
        ("stages: [{stage: prune.neurons, keep: 0}]", "keep: .*greater than 0", ""),
        ("stages: [{stage: prune.neurons, keep: .nan}]", "keep: .*finite", ""),
        ("stages: [{stage: distill, temperature: .inf}]", "temperature: ", ""),
        ("stages: [{stage: prune.neurons, keep: []}]", "empty list leaves nothing", ""),
        ("stages: [{stage: prune.neurons, keep: [[0.5]]}]", "keep: ", ""),
        ("stage: []", "unknown key 'stage'", "'stages'"),
        ("sed: 1", "unknown key 'sed'", "'seed'"),
        ("seed: -1", "seed: ", ""),
        ("seed: 2147483648", "seed: ", ""),
        ("goals: [accuracy]", "goals: ", ""),
        ("stages: quantize.ptq", "stages: ", ""),
        ("stages: [quantize.ptq]", r"stages\[0\] \(line 3\): expected a stage with its options", "stage: quantize.ptq"),
        ("stages: [{1: 2}]", r"stages\[0\] \(line 3\): expected a stage", "stage: quantize.ptq"),
        ("stages: []\nstages: [{stage: distill}, {stage: x}]", r"stages\[1\] \(line 4\).stage: unknown stage 'x'", ""),
        ("stages: [{stage: prune.heads, keep: 1.5}]",
         r"\(line 3\) \(prune.heads\): keep: expected a number of heads, .* or a share below 1, .*, found 1.5\n",
         "change keep"),
        ("stages: [{stage: prune.layers, keep: 0.5}]", r"keep: expected a number of layers, .* found 0.5\n",
         "change keep"),
        ("stages: [{stage: prune.layers}]", r"keep: Field required", "add keep: a number of layers"),
        ("stages: [{stage: factorize}]", r"\(factorize\): give one of rank, .*, found {}\n", "known keys: "),
        ("stages: [{stage: share.layers, groups: 'a,b'}]", r"groups: expected a number for each layer", "leave it out"),
        ("stages: [{stage: prune.weights, pattern: 4x, sparsity: 0.5}]", "pattern: pattern '4x', expected",
         "leave it out for unstructured"),
        ("stages: [{stage: prune.weights, pattern: 2:4}]", "pattern: expected a valid string, found 124", "in quotes"),
        ("stages: [{stage: prune.neurons, keep: a}]", "keep: expected a valid number",
         "change keep: the share of neurons"),
        ("goals: [accuracy]", r"goals: expected a mapping of keys to values, found \['accuracy'\]\n", "change goals"),
    ],
)
def test_message_names_place_and_near_miss(write: Any, text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=message) as problem:
        load_recipes(write(HEADER + text))
    assert "mine.yaml" in problem.value.message
    assert hint in problem.value.hint
    assert problem.value.hint
    for leak in ("Value error", "constrained", ": :", "_Document", "[key]"):
        assert leak not in problem.value.message


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "7", "text", "format: edgesdk.recipe", "version: 1", "format: edgesdk.recipe\nversion: 2",
        "format: other\nversion: 1", "{", "a: b: c", "- &a [*a]", "\x00",
        "!!python/object/apply:os.system [true]", "!!bool x", "!!int ''", "!!timestamp x", "!!float ''", "? {}\n: 1",
        "%YAML 9.9\n---\n{}", "--- a\n--- b", "\t- a", "[" * 5000, "{a: " * 3000,
    ],
)
def test_what_is_no_recipe_is_refused(write: Any, text: str) -> None:
    with pytest.raises(ConfigError):
        load_recipes(write(text))


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"\x80", "ä: ö".encode("latin-1")])
def test_file_that_is_no_text_is_refused(write: Any, data: bytes) -> None:
    with pytest.raises(ConfigError, match="UTF-8"):
        load_recipes(write(data))


@pytest.mark.parametrize(
    "text",
    ["seed: BOMB", "goals: BOMB", "stages: [{stage: BOMB}]", "stages: [{stage: quantize.ptq, scheme: {a: BOMB}}]"],
)
def test_alias_bomb_makes_a_short_message(write: Any, text: str) -> None:
    bomb = "x"
    for level in range(14):
        bomb = f"[&a{level} {bomb}" + f", *a{level}" * 8 + "]"
    with pytest.raises(ConfigError) as problem:
        load_recipes(write(HEADER + text.replace("BOMB", bomb)))
    assert len(str(problem.value)) < 2000


@pytest.mark.parametrize("source", ["int9", "no-such.yaml", "", "a" * 5000, "a\0b", "/", ".", "../..", "\udcff"])
def test_no_such_recipe(source: str) -> None:
    with pytest.raises(ConfigError) as problem:
        load_recipes(source)
    assert len(problem.value.message) < 500


def test_near_miss_of_a_preset() -> None:
    with pytest.raises(ConfigError) as problem:
        load_recipes("int-8")
    assert problem.value.hint == "--recipe int8"


def test_lists_are_a_search(write: Any) -> None:
    recipes = load_recipes(write(HEADER + """
stages:
  - {stage: prune.neurons, keep: [0.25, 0.5], importance: [activation, magnitude]}
  - {stage: quantize.ptq, scheme: [w8a8, w8a8-dynamic]}
"""))
    assert len(recipes) == 8
    assert len({recipe.name for recipe in recipes}) == 8
    assert len({recipe.digest for recipe in recipes}) == 8
    assert recipes[0].name == "mine[keep=0.25,importance=activation,scheme=w8a8]"
    found = {
        (recipe.stages[0].options.model_dump()["keep"], recipe.stages[0].options.model_dump()["importance"],
         recipe.stages[1].options.model_dump()["scheme"])
        for recipe in recipes
    }
    assert found == {
        (keep, importance, scheme) for keep in (0.25, 0.5) for importance in ("activation", "magnitude")
        for scheme in ("w8a8", "w8a8-dynamic")
    }


def test_searched_text_is_no_path(write: Any) -> None:
    text = 'stages: [{stage: prune.neurons, keep: 0.5, scope: ["../../x/*", "layers.*", "/etc/passwd"]}]'
    for recipe in load_recipes(write(HEADER + text)):
        assert "/" not in recipe.name
        assert Path(recipe.name).name == recipe.name


def test_choices_of_one_name_are_refused(write: Any) -> None:
    with pytest.raises(ConfigError, match="both"):
        load_recipes(write(HEADER + "stages: [{stage: prune.neurons, keep: [0.5, 0.5]}]"))


def test_search_without_bounds_is_refused_at_once(write: Any) -> None:
    values = ", ".join(str((index + 1) / 3000) for index in range(2000))
    start = time.monotonic()
    with pytest.raises(ConfigError, match="more than 1000"):
        load_recipes(write(HEADER + f"stages: [{{stage: prune.neurons, keep: [{values}]}}]"))
    stage = "{stage: prune.neurons, keep: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]}"
    with pytest.raises(ConfigError, match="more than 1000"):
        load_recipes(write(HEADER + f"stages: [{', '.join([stage] * 30)}]"))
    assert time.monotonic() - start < 60  # 9 ** 30 recipes would take for ever


def test_digest_is_that_of_seed_stages_and_options(write: Any) -> None:
    text = HEADER + "seed: {seed}\ngoals: {{size: {goal}}}\nstages: [{{stage: prune.neurons, keep: {keep}{more}}}]"

    def digest(seed: int = 1, goal: str = "max 30%", keep: float = 0.5, more: str = "", name: str = "a.yaml") -> str:
        filled = text.format(seed=seed, goal=f'"{goal}"', keep=keep, more=more)
        (recipe,) = load_recipes(write(filled, name))
        return recipe.digest

    assert digest() == digest(name="b.yaml") == digest(goal="max 50%") == digest(more=", multiple: 4")
    assert len({digest(), digest(seed=2), digest(keep=0.25), digest(more=", multiple: 8")}) == 4


def test_digest_stays_the_same_over_releases() -> None:
    """It names results in the store: a change of this test is a change of the format, or of a preset's options."""
    (recipe,) = load_recipes("int8")
    assert recipe.digest == "1856a8d6a918bb5b464a839e16f271bbade43254fe8411a68736c03a52101d18"


def test_check_recipe_names_stage_and_position() -> None:
    stages = tuple(STAGES[name](STAGES[name].options_type.model_validate(values)) for name, values in (
        ("quantize.ptq", {}), ("prune.neurons", {"keep": 0.5})))
    reasons, outline = check_recipe(Recipe("wrong", stages), OUTLINE)
    (reason,) = reasons
    assert "recipe wrong: stages[1] prune.neurons: " in reason
    assert outline.scheme == "w8a8"


def test_check_recipe_tells_a_scope_that_matches_nothing() -> None:
    stage = STAGES["prune.neurons"](STAGES["prune.neurons"].options_type.model_validate({"keep": 0.5, "scope": "x"}))
    reasons, _ = check_recipe(Recipe("wrong", (stage,)), OUTLINE)
    assert "stages[0]" in reasons[0]
    assert "matches nothing" in reasons[0]


words = st.sampled_from(
    ["stage", "stages", "quantize.ptq", "prune.neurons", "distill", "keep", "scheme", "w8a8", "scope", "seed", "goals",
     "format", "version", "edgesdk.recipe", "*", "alpha", "epochs"]
)
junk = st.recursive(
    words | st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(document=junk, stage=st.sampled_from(sorted(STAGES)), options=st.dictionaries(words, junk, max_size=3))
def test_junk_documents_raise_only_config_errors(write: Any, document: Any, stage: str, options: Any) -> None:
    whole = {"format": "edgesdk.recipe", "version": 1, "stages": [{"stage": stage, **options}]}
    for content in (document, whole, whole | document if isinstance(document, dict) else whole):
        try:
            recipes = load_recipes(write(yaml.safe_dump(content)))
        except ConfigError:
            continue
        assert recipes
        for recipe in recipes:
            assert len(recipe.digest) == 64


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_junk_text_raises_only_config_errors(write: Any, text: str) -> None:
    for content in (text, HEADER + text):
        try:
            load_recipes(write(content.encode("utf-8", "surrogatepass")))
        except ConfigError:
            pass
