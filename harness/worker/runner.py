"""`worker runtime NAME ARTIFACT build|run|bench|count …`: the commands of a NEON binary for the other runtimes, and
`build` for those that build something on the board first (`traits`).

Exit codes: 64 usage, 65 bad input file, 70 the runtime failed.
"""

import argparse
import gc
import json
import os
import sys
from typing import Any

from edgesdk.harness.worker import compiled, count, memory, store, timing, trtexec
from edgesdk.harness.worker.child import BAD_INPUT, USAGE
from edgesdk.harness.worker.runtimes import DTYPES, RUNTIMES, Runtime
from edgesdk.harness.worker.traits import TRAITS, traits_of

# Those that are not Python packages. A program that was compiled here is run by itself: `build` is all of it.
OTHERS = {"neon-source": compiled.main, "trtexec": trtexec.main}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> "Any":
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command `runtime`."""
    parser.add_argument("runtime", choices=sorted([*RUNTIMES, *TRAITS]))
    parser.add_argument("artifact", help="folder with artifact.json and its files")
    commands = parser.add_subparsers(dest="action", parser_class=_Parser)
    commands.add_parser("build")
    for name in ("run", "bench", "count"):
        command = commands.add_parser(name)
        command.add_argument("--inputs", required=True)
        command.add_argument("--n", type=int, required=True)
        if name == "run":
            command.add_argument("--outputs", required=True)
        if name == "bench":
            command.add_argument("--seed", type=int, default=0)
            command.add_argument("--warmup-iterations", type=int, required=True)
            command.add_argument("--warmup-seconds", type=float, required=True)
            command.add_argument("--max-warmup-seconds", type=float, required=True)
            command.add_argument("--window-seconds", type=float, required=True)
            command.add_argument("--min-samples", type=int, required=True)
            command.add_argument("--steady-percent", type=float, default=timing.STEADY_PERCENT)
            command.add_argument("--warm-loads", type=int, default=0)
            command.add_argument("--samples", required=True)


def main(arguments: argparse.Namespace) -> int:
    """Run one sub-command; see the module's text."""
    if arguments.action is None:
        sys.stderr.write("expected build, run, bench or count\n")
        return USAGE
    traits = traits_of(arguments.runtime)
    if (arguments.action == "build" and not traits.built) or (arguments.action == "count" and not traits.countable):
        sys.stderr.write(f"{arguments.runtime} has no {arguments.action}\n")
        return USAGE
    if arguments.runtime not in RUNTIMES:
        return OTHERS[arguments.runtime](arguments)
    try:
        document = store.read_json(os.path.join(arguments.artifact, "artifact.json"))
        runtime = RUNTIMES[arguments.runtime](arguments.artifact, document)
        with open(arguments.inputs, "rb") as stream:
            data = stream.read()
    except (OSError, ValueError, KeyError, IndexError) as problem:
        sys.stderr.write(f"cannot read inputs: {problem!r}\n")
        return BAD_INPUT
    gc.disable()
    before = timing.now_ns()
    runtime.load()
    loaded = timing.now_ns() - before
    try:
        runtime.set_inputs(data, arguments.n)
    except ValueError as problem:
        sys.stderr.write(f"bad input block: {problem}\n")
        return BAD_INPUT
    actions = {"run": _run, "bench": _bench, "count": _count}
    actions[arguments.action](runtime, arguments, loaded)
    return 0


def _run(runtime: Runtime, arguments: argparse.Namespace, loaded: int) -> None:
    import numpy as np

    tensors = runtime.document["outputs"]
    blocks = [[] for _ in tensors]  # type: list[list[bytes]]
    for row in range(arguments.n):
        for block, tensor, output in zip(blocks, tensors, runtime.infer(row)):  # noqa: B905
            shaped = np.asarray(output).reshape(tensor["shape"][1:])
            block.append(np.ascontiguousarray(shaped, DTYPES[tensor["dtype"]]).tobytes())
    store.write_atomic(arguments.outputs, b"".join(b"".join(block) for block in blocks))


def _bench(runtime: Runtime, arguments: argparse.Namespace, loaded: int) -> None:
    order = timing.seeded_order(arguments.n, arguments.seed)
    # Where inputs differ in work, two full passes are compared, not blocks of ten.
    block = len(order) if runtime.document.get("work") == "per_input" else timing.BLOCK
    options = timing.Options(
        arguments.warmup_iterations, arguments.warmup_seconds, arguments.max_warmup_seconds,
        arguments.window_seconds, arguments.min_samples, block, arguments.steady_percent,
    )
    before = timing.now_ns()
    runtime.infer(order[0])
    first = timing.now_ns() - before
    result = timing.timed_round(runtime.infer, order, options)
    samples = result.pop("samples")
    if sys.byteorder == "big":
        samples.byteswap()
    store.write_atomic(arguments.samples, samples.tobytes())
    numbers = memory.memory_numbers()  # before the model is loaded again
    result.update(
        {
            "format": "edgesdk.round", "version": 1, "cold_load_ns": loaded, "first_inference_ns": first,
            "peak_rss_bytes": numbers["peak_rss"], "memory": numbers,
            "warm_load_ns": [_load(runtime) for _ in range(arguments.warm_loads)],
        }
    )
    print("\n" + json.dumps(result, sort_keys=True))


def _count(runtime: Runtime, arguments: argparse.Namespace, loaded: int) -> None:
    mark = count.marker_function()
    for row in range(2):
        runtime.infer(row % arguments.n)
    for row in range(arguments.n):
        mark(count.START)
        runtime.infer(row)
        mark(count.END)


def _load(runtime: Runtime) -> int:
    """Nanoseconds of loading once more what was loaded before."""
    runtime.unload()
    before = timing.now_ns()
    runtime.load()
    return timing.now_ns() - before
