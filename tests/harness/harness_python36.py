"""What Python 3.6 does not have, found in sources without running them: the worker must run there."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator

NEWER_MODULES = {
    "dataclasses", "contextvars", "importlib.resources", "importlib.metadata", "zoneinfo", "graphlib", "tomllib",
    "multiprocessing.shared_memory", "__future__.annotations",
}
# Names of functions and methods that came after 3.6, in the parts of the library that a worker could want; with the
# module where the bare name is common.
NEWER_NAMES = {
    "aiter", "anext", "as_integer_ratio", "batched", "bit_count", "breakpoint", "cached_property", "clock_gettime_ns",
    "copy_file_range", "file_digest", "fmean", "fromisoformat", "geometric_mean", "get_native_id", "hardlink_to",
    "is_relative_to", "isascii", "isqrt", "memfd_create", "monotonic_ns", "multimode", "nextafter", "nullcontext",
    "orig_argv", "pairwise", "perf_counter_ns", "pidfd_open", "pidfd_send_signal", "posix_spawn", "process_cpu_count",
    "process_time_ns", "quantiles", "raise_signal", "randbytes", "removeprefix", "removesuffix", "singledispatchmethod",
    "stdlib_module_names", "strsignal", "thread_time", "time_ns", "unparse", "valid_signals", "waitstatus_to_exitcode",
    "asyncio.run", "asyncio.to_thread", "contextlib.chdir", "functools.cache", "math.cbrt", "math.comb", "math.dist",
    "math.lcm", "math.perm", "math.prod", "math.sumprod", "math.ulp", "shlex.join",
    "threading.excepthook", "typing.Final", "typing.Literal", "typing.Protocol", "typing.TypedDict", "typing.Self",
}
# Arguments that came after 3.6: of subprocess, zip, shutil, pathlib, hashlib, tempfile, zipfile, argparse, glob.
NEWER_ARGUMENTS = {
    "capture_output", "text", "process_group", "extra_groups", "pipesize", "umask", "strict", "dirs_exist_ok", "onexc",
    "missing_ok", "usedforsecurity", "ignore_cleanup_errors", "delete_on_close", "compresslevel", "strict_timestamps",
    "exit_on_error", "root_dir", "include_hidden", "skip_file_prefixes",
}


def newer_than_3_6(source: str) -> list[str]:
    """`LINE: what` for everything that Python 3.6 would refuse or not find. Quoted annotations are not evaluated, so
    they are free; `getattr(module, "name", None)` is the way to use what may not be there."""
    tree = ast.parse(source)
    found = []
    try:
        ast.parse(source, feature_version=(3, 6))
    except SyntaxError as problem:
        found.append(f"{problem.lineno}: {problem.msg}")
    imported = {
        alias.asname or alias.name for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module != "typing" for alias in node.names
    }
    for node in ast.walk(tree):
        found += [f"{getattr(node, 'lineno', 0)}: {text}" for text in _library(node)]
        found += [f"{getattr(node, 'lineno', 0)}: {text}" for text in _syntax(node, source, imported)]
    return found


def _library(node: ast.AST) -> Iterator[str]:
    """Modules, names and arguments."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [str(node.module)]
        for alias in node.names:
            names += [alias.name, f"{node.module}.{alias.name}"]
    elif isinstance(node, ast.Attribute):
        names = [node.attr, ast.unparse(node)]
    elif isinstance(node, ast.Name):
        names = [node.id]
    yield from (f"{name} is newer" for name in names if name in NEWER_MODULES | NEWER_NAMES)
    if isinstance(node, ast.Call):
        yield from (f"{word.arg}= is newer" for word in node.keywords if word.arg in NEWER_ARGUMENTS)


def _syntax(node: ast.AST, source: str, imported: set[str]) -> Iterator[str]:
    """Annotations and subscripts of classes that are evaluated, and syntax that `feature_version` lets pass."""
    for annotation in _annotations(node):
        if not isinstance(annotation, (ast.Constant, ast.Name, ast.Attribute)):
            yield "annotation is evaluated: quote it"
    if isinstance(node, ast.Subscript) and _names_a_class(node.value, imported):
        yield f"{ast.unparse(node)} is evaluated"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        if isinstance(node.left, (ast.Dict, ast.DictComp)) or isinstance(node.right, (ast.Dict, ast.DictComp)):
            yield "| of mappings is of 3.9"
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.BitOr) and isinstance(node.value, ast.Dict):
        yield "|= of mappings is of 3.9"
    if isinstance(node, ast.JoinedStr) and _shows_itself(node):
        yield "f'{x=}' is of 3.8"
    if isinstance(node, (ast.Return, ast.Yield)) and isinstance(node.value, ast.Tuple):
        segment = ast.get_source_segment(source, node.value) or ""
        if any(isinstance(part, ast.Starred) for part in node.value.elts) and not segment.startswith("("):
            yield "unpacking without parentheses is of 3.8"
    if type(node).__name__ in ("Match", "TryStar", "TypeAlias", "NamedExpr"):
        yield f"{type(node).__name__} is newer"
    if isinstance(node, ast.With) and source.splitlines()[node.lineno - 1].lstrip().startswith("with ("):
        yield "parentheses around what `with` opens are of 3.9"


def _annotations(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.arg):
        return [node.annotation] if node.annotation else []
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node.returns] if node.returns else []
    return [node.annotation] if isinstance(node, ast.AnnAssign) else []


def _names_a_class(node: ast.expr, imported: set[str]) -> bool:
    """`dict[…]`, `Callable[…]`, `collections.Counter[…]`: a name of a class, by what it is or how it is written.
    Constants (all capitals) are subscripted like any other value."""
    if isinstance(node, ast.Name):
        written = node.id in imported and node.id[:1].isupper() and not node.id.isupper()
        return isinstance(getattr(builtins, node.id, None), type) or written
    return isinstance(node, ast.Attribute) and node.attr[:1].isupper() and not node.attr.isupper()


def _shows_itself(node: ast.JoinedStr) -> bool:
    """f"{x=}" reads as the text "x=" and then the repr of x."""
    pairs = zip(node.values, node.values[1:], strict=False)
    return any(
        isinstance(text, ast.Constant) and isinstance(value, ast.FormattedValue) and value.conversion == ord("r")
        and str(text.value).rstrip().endswith(ast.unparse(value.value) + "=") for text, value in pairs
    )
