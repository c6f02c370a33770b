"""Public names, what an import loads, and the one direction in which the folders import one another."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import edgesdk

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "sklearn", "pandas", "scipy", "transformers", "ai_edge_litert", "matplotlib"}


def _imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, with the names it takes from them as submodules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _below(folder: str) -> list[Path]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, folder
    return paths


def _uses(path: Path, *modules: str) -> set[str]:
    return {name for name in _imports(path) for module in modules if f"{name}.".startswith(f"{module}.")}


def test_public_names_are_sorted_and_complete() -> None:
    assert edgesdk.__all__ == sorted(edgesdk.__all__)
    public = {
        name for name, value in vars(edgesdk).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(edgesdk.__all__)


def test_public_functions_say_what_they_do() -> None:
    for name in edgesdk.__all__:
        assert inspect.getdoc(getattr(edgesdk, name)), name


@pytest.mark.parametrize("module", ["edgesdk", "edgesdk.cli", "edgesdk.errors", "edgesdk.targets"])
def test_import_loads_nothing_heavy(module: str) -> None:
    """A command that only prints its help must not wait for torch."""
    script = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("module", ["edgesdk.converters", "edgesdk.converters.onnx", "edgesdk.converters.neon",
                                    "edgesdk.converters.tflite", "edgesdk.harness.measure", "edgesdk.reports.report"])
def test_import_does_not_load_torch(module: str) -> None:
    script = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("path", _below("converters"), ids=lambda path: str(path.relative_to(ROOT)))
def test_converters_know_packages_and_not_torch(path: Path) -> None:
    assert not _uses(path, "torch", "edgesdk.stages", "edgesdk.harness", "edgesdk.pipeline", "edgesdk.cli",
                     "edgesdk.transformer.module", "edgesdk.transformer.graph")


@pytest.mark.parametrize("path", _below("harness"), ids=lambda path: str(path.relative_to(ROOT)))
def test_harness_knows_artifacts_and_not_models(path: Path) -> None:
    assert not _uses(path, "torch", "onnx", "edgesdk.transformer", "edgesdk.package", "edgesdk.stages",
                     "edgesdk.pipeline", "edgesdk.cli", "edgesdk.reports")


@pytest.mark.parametrize("path", _below("harness/worker"), ids=lambda path: str(path.relative_to(ROOT)))
def test_worker_needs_the_standard_library_alone(path: Path) -> None:
    """It runs on the board: of EdgeSDK nothing but itself, and runtimes only where they are used."""
    runtimes = {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"}
    others = {
        name for name in _imports(path)
        if name.partition(".")[0] not in sys.stdlib_module_names | runtimes
        and not name.startswith("edgesdk.harness.worker")
    }
    assert others - {"edgesdk.harness"} == set()
    top = {
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert not {name.partition(".")[0] for name in top} & runtimes


@pytest.mark.parametrize("path", _below("harness/worker"), ids=lambda path: str(path.relative_to(ROOT)))
def test_worker_is_python_3_6(path: Path) -> None:
    """JetPack 4 has no newer one."""
    ast.parse(path.read_text(), feature_version=(3, 6))
    assert not _uses(path, "dataclasses", "__future__.annotations", "importlib.resources", "importlib.metadata",
                     "contextvars", "tomllib", "zoneinfo", "graphlib")


@pytest.mark.parametrize("path", _below("reports"), ids=lambda path: str(path.relative_to(ROOT)))
def test_reports_read_the_store_and_nothing_else(path: Path) -> None:
    assert not _uses(path, "torch", "onnx", "onnxruntime", "edgesdk.transformer", "edgesdk.package", "edgesdk.stages",
                     "edgesdk.converters", "edgesdk.harness", "edgesdk.pipeline", "edgesdk.cli")


@pytest.mark.parametrize("path", _below("targets"), ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_are_data(path: Path) -> None:
    others = {name for name in _uses(path, "edgesdk") if not name.startswith(("edgesdk.errors", "edgesdk.targets"))}
    assert not others


@pytest.mark.parametrize("path", _below("sdk"), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_tests_import_the_conformance_suites(path: Path) -> None:
    if "testing" not in path.parts:
        assert not _uses(path, "edgesdk.testing", "pytest", "hypothesis")


@pytest.mark.parametrize(
    "path", [path for folder in ("sdk", "converters", "harness", "targets", "reports") for path in _below(folder)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_is_unpickled_evaluated_or_given_to_a_shell(path: Path) -> None:
    """The calls that turn hostile bytes into code; the one place that runs users' code is `edgesdk.user_code`."""
    assert not _uses(path, "pickle", "dill", "shelve", "marshal", "joblib")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "torch.load"), node.lineno
            for keyword in node.keywords:
                given = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                assert not (keyword.arg in ("shell", "allow_pickle") and given), node.lineno
