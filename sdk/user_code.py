"""Functions of the user, named `module:function`, and paths that do not exist.

The user's own code is run as such; what it raises becomes one message that names the exception, the file and the line.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgesdk.errors import ConfigError, EdgeSDKError

FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)



def is_function(source: str) -> bool:
    """Whether a source has the form `module:function` (`package.module:function`)."""
    return FUNCTION.fullmatch(source) is not None


def call_function(source: str, what: str, raised: type[EdgeSDKError]) -> Any:
    """Call `module:function` without arguments; modules are also found in the current folder.

    Args:
        source: `module:function`.
        what: what it is for, for the messages (`model`, `data`).
        raised: error for what the user's code raises.

    Raises:
        ConfigError: the module or the function is missing, or the function cannot be called without arguments.
    """
    module_name, _, name = source.partition(":")
    module = _import_module(module_name, source, what, raised)
    function = getattr(module, name, None)
    if function is None:
        near = difflib.get_close_matches(name, [key for key in vars(module) if not key.startswith("_")])
        found = f"; it has {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{what} {source}: module {module_name} ({getattr(module, '__file__', 'built in')}) has no {name}{found}",
            f"define a function {name}() there",
        )
    if not callable(function):
        raise ConfigError(f"{what} {source}: {name} is {type(function).__name__}, not a function")
    _check_no_arguments(function, source, what)
    return _guarded(function, source, what, raised)


def _import_module(module_name: str, source: str, what: str, raised: type[EdgeSDKError]) -> Any:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)  # stays there: the user's code may import more of it later
    importlib.invalidate_caches()

    def load() -> Any:
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as problem:
            # A module that the user's module lacks is another story than the user's module itself.
            if problem.name is None or not f"{module_name}.".startswith(f"{problem.name}."):
                raise
            raise ConfigError(
                f"{what} {source}: no module {problem.name} in {folder} or among the installed packages",
                f"run in the folder that holds {problem.name.split('.')[0]}.py, or install it",
            ) from None

    return _guarded(load, source, what, raised)


def _check_no_arguments(function: Callable[..., Any], source: str, what: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in functions may have none
        return
    try:
        signature.bind()
    except TypeError as problem:
        raise ConfigError(
            f"{what} {source}: called without arguments, but its signature is {signature}: {problem}",
            "give every parameter a default, or name a function without parameters",
        ) from None


def _guarded(function: Callable[[], Any], source: str, what: str, raised: type[EdgeSDKError]) -> Any:
    """Run the user's code; what it raises (`sys.exit` too) becomes `raised`, naming exception, file and line."""
    try:
        return function()
    except EdgeSDKError:
        raise
    except (Exception, SystemExit) as problem:
        trace = problem.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
        raise raised(f"{what} {source}: it raised {type(problem).__name__}: {problem}{where}") from problem


def missing_path(source: str, what: str, expected: str) -> ConfigError:
    """The error about a path that does not exist; names what is like it in the nearest folder above."""
    path = Path(source)
    parent = path.parent
    while not os.path.isdir(parent) and parent != parent.parent:
        parent = parent.parent
    try:
        names = sorted(entry.name for entry in parent.iterdir())[:2000]
    except OSError:
        names = []
    first_missing = path.relative_to(parent).parts[0] if path.parts and path != parent else path.name
    near = difflib.get_close_matches(first_missing, names)
    similar = f"; {parent}/ has {', '.join(near)}" if near else ""
    return ConfigError(f"{what} {source!r}: no such file or folder{similar}", f"give {expected}")
