"""The `edgesdk` command: build, plan, bench, select, verify, report, sensitivity, boards …, recipe …."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer
from typer.exceptions import Abort, Exit, TyperException

from edgesdk.cli import boards, building, recipes, results, sensitivity
from edgesdk.errors import EdgeSDKError

app = typer.Typer(
    name="edgesdk",
    help="Compress a Transformer, build it for a board, measure it there, and let the measurements choose what ships.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
building.register(app)
results.register(app)
sensitivity.register(app)
app.add_typer(boards.app, name="boards")
app.add_typer(recipes.app, name="recipe")


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit code; an error becomes one message on stderr, never a traceback."""
    try:
        result = app(list(arguments), prog_name="edgesdk", standalone_mode=False)
    except EdgeSDKError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    except TyperException as problem:
        print(f"error: {_usage(problem)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Abort):
        print("cancelled", file=sys.stderr)
        return 130
    except Exit as ending:
        if ending.exit_code == 130:
            print("cancelled", file=sys.stderr)
        return ending.exit_code
    except BrokenPipeError:  # before OSError, which it is one of
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        print(f"error: {problem.filename or 'system'}: {problem.strerror or problem}", file=sys.stderr)
        return 2
    except Exception as problem:
        if os.environ.get("EDGESDK_DEBUG"):
            traceback.print_exc()
        print(f"internal error: {type(problem).__name__}: {problem}", file=sys.stderr)
        print("  try: EDGESDK_DEBUG=1 shows where; please report it", file=sys.stderr)
        return 3
    code = result if isinstance(result, int) else 0
    if code == 130:  # what typer makes of Ctrl-C inside a command
        print("cancelled", file=sys.stderr)
    return code


def _usage(problem: TyperException) -> str:
    """What is wrong with the command line; typer's own usage errors know how to say it."""
    form = getattr(problem, "format_message", None)
    return f"{form() if form else problem}\n  try: edgesdk --help"
