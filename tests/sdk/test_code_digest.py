"""What code a cache key knows: all that a stage may run, and no other stage."""

from __future__ import annotations

from edgesdk.code_digest import code_behind, code_digest


def test_graph_passes_are_behind_a_stage_although_they_load_by_name() -> None:
    found = code_behind("edgesdk.stages.optimize")
    passes = "edgesdk.transformer.passes"
    assert {passes, f"{passes}.fold_constants", f"{passes}.merge_qkv", f"{passes}.layout"} <= found.keys()
    assert "PASSES: dict" in found[passes]
    assert "def fold_constants" in found[f"{passes}.fold_constants"]


def test_other_stages_are_not() -> None:
    found = code_behind("edgesdk.stages.distill")
    assert {"edgesdk.stages.distill", "edgesdk.stages.train_loop", "edgesdk.stages.base"} <= found.keys()
    assert "edgesdk.stages.prune_weights" not in found
    assert not {"edgesdk", "edgesdk.stages"} & found.keys()


def test_what_is_not_of_this_package_has_no_code_here() -> None:
    assert code_behind("functools") == code_behind("") == code_behind("edgesdk.nothing") == {}
    assert code_digest("edgesdk.stages.distill") != code_digest("edgesdk.stages.optimize")
