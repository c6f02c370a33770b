"""Runs of one artifact in child processes: outputs for given inputs, a counted round, what a timed round prints."""

import array
import json
import os
import re
import sys
from collections.abc import Callable
from typing import Any

from edgesdk.harness.worker import blocks, child, compiled, count, store, timing
from edgesdk.harness.worker.system import read_text
from edgesdk.harness.worker.traits import Traits, traits_of

ROUND_INTEGERS = ("count", "batch", "p50_ns")
LOADING = ("cold_load_ns", "first_inference_ns")
MEMORY_KEYS = ("peak_rss", "anon", "file", "pss", "arena", "cgroup_peak", "nvmap")
MOST_WARM_LOADS = 100
ALL_CORES = re.compile(r"^cpu((?: +[0-9]{1,18}){8})(?![0-9])")
COUNTED_INPUTS = 4
COUNTED_INPUTS_THAT_DIFFER = 8


def parse_round(stdout: bytes) -> "dict[str, Any]":
    """The round's JSON: the last line of stdout that is one (ValueError when there is none or it is malformed)."""
    for line in reversed(stdout.decode("utf-8", "replace").splitlines()):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and found.get("format") == "edgesdk.round":
            break
    else:
        raise ValueError("the runner printed no edgesdk.round document")
    if found.get("version") != 1:
        raise ValueError("edgesdk.round version {!r}, expected 1".format(found.get("version")))
    for key in ROUND_INTEGERS:
        if not _is_whole(found.get(key)):
            raise ValueError(f"edgesdk.round: {key} is {found.get(key)!r}, expected a whole number")
    for key in LOADING:
        # Null where the runner cannot tell (trtexec); never left out.
        if key not in found or not (found[key] is None or _is_whole(found[key])):
            raise ValueError(f"edgesdk.round: {key} is {found.get(key)!r}, expected a whole number or null")
    if found["count"] < 1 or found["batch"] < 1:
        raise ValueError("edgesdk.round: no samples")
    if type(found.get("steady")) is not bool:
        raise ValueError("edgesdk.round: steady is {!r}".format(found.get("steady")))
    # Only what is known goes on: the rest is whatever a runner likes to print.
    record = {key: found[key] for key in ROUND_INTEGERS + LOADING + ("steady",)}
    for key in ("peak_rss_bytes", "cpu_ns", "window_start_ns", "window_end_ns"):
        record[key] = found[key] if _is_whole(found.get(key)) else None
    record["major_faults"] = found["major_faults"] if _is_whole(found.get("major_faults")) else None
    loads = found.get("warm_load_ns")
    whole = isinstance(loads, list) and len(loads) <= MOST_WARM_LOADS and all(map(_is_whole, loads))
    record["warm_load_ns"] = loads if whole else []
    memory = found.get("memory")
    record["memory"] = None
    if isinstance(memory, dict):
        record["memory"] = {key: memory[key] for key in MEMORY_KEYS if _is_whole(memory.get(key))}
    warmup = found.get("warmup")
    record["warmup"] = None
    if isinstance(warmup, dict) and _is_whole(warmup.get("iterations")):
        seconds = warmup.get("seconds")
        if isinstance(seconds, (int, float)) and 0 <= seconds < 1e9:
            record["warmup"] = {"iterations": warmup["iterations"], "seconds": seconds}
    return record


def bench_options(n: int, seed: int, profile: "dict[str, Any]") -> "list[str]":
    """Options of a runner's `bench` over n inputs, all but its files."""
    options = ["--n", str(n), "--seed", str(seed)]
    for key in ("warmup_iterations", "warmup_seconds", "window_seconds", "min_samples", "max_warmup_seconds"):
        options += ["--" + key.replace("_", "-"), str(profile[key])]
    # Runners take 5 % when nothing is said: binaries of before this option know no other.
    steady_percent = profile.get("steady_percent", timing.STEADY_PERCENT)
    if steady_percent != timing.STEADY_PERCENT:
        options += ["--steady-percent", str(steady_percent)]
    return options


def bench_limit(profile: "dict[str, Any]", per_inference_s: float) -> float:
    """Seconds after which a timed run is overdue."""
    predicted = profile["max_warmup_seconds"] + profile["window_seconds"]
    predicted += (profile["min_samples"] + profile["warmup_iterations"]) * per_inference_s
    return float(120 + 3 * predicted)


def evaluation_limit(n: int, per_inference_s: float) -> float:
    """Seconds after which a run over n evaluation inputs is overdue."""
    return 120 + 3 * per_inference_s * n


def counted_rows(n: int, work: str, seed: int) -> "list[int]":
    """Which of n golden inputs a counted round takes, in order: more of them where the work depends on the input (its
    real length)."""
    return timing.seeded_order(n, seed)[: COUNTED_INPUTS_THAT_DIFFER if work == "per_input" else COUNTED_INPUTS]


def _is_whole(value: "Any") -> bool:
    return type(value) is int and 0 <= value < 1 << 62


class Candidate:
    """One artifact laid out on the board, and what is known of it so far (`record`)."""

    def __init__(self, folder: str, spec: "dict[str, Any]", work: str, tick: "Callable[[], None]") -> None:
        self.folder = folder
        self.work = work
        self.tick = tick
        self.document = store.read_json(os.path.join(folder, "artifact.json"))
        golden = self.document["golden"]
        self.n = int(golden["n"])
        blocks = {side: golden.get(side) for side in ("inputs", "outputs", "floats")}
        paths = {side: os.path.join(folder, *store.safe_parts(name)) for side, name in blocks.items() if name}
        self.golden_inputs = paths["inputs"]
        self.golden_outputs = {side: path for side, path in paths.items() if side != "inputs"}
        self.tolerance = golden["tolerance"]
        self.record = {
            "artifact": spec["artifact"], "built": None, "golden": None, "evaluation": None, "rounds": [],
            "rejected": [], "reasons": [], "raw": [],
        }  # type: dict[str, Any]
        os.makedirs(work, exist_ok=True)

    def files(self) -> "list[str]":
        """Paths of the model's files here, and of the program that was made of them."""
        paths = [os.path.join(self.folder, *store.safe_parts(file["path"])) for file in self.document["files"]]
        program = self.executable
        return paths if program is None or program in paths else paths + [program]

    @property
    def executable(self) -> "str | None":
        """The program that runs: the artifact's own, or the one that this board made (`compiled`); None for those
        that the worker itself runs."""
        own = self.document.get("executable")
        if own:
            return os.path.join(self.folder, *store.safe_parts(own))
        return os.path.join(self.work, compiled.PROGRAM) if self.record.get("built") else None

    def fail(self, code: str, reason: str) -> None:
        """Note why this candidate is not valid."""
        self.record["reasons"].append({"code": code, "text": reason})

    @property
    def traits(self) -> Traits:
        """What sets its runtime apart."""
        return traits_of(self.document["runtime"]["name"])

    @property
    def failed(self) -> bool:
        return bool(self.record["reasons"])

    def command(self, *arguments: str) -> "list[str]":
        """The command line of the program, or of the worker's runner."""
        program = self.executable
        if program:
            return [program] + list(arguments)
        worker = os.path.abspath(sys.argv[0])
        return [sys.executable, worker, "runtime", self.document["runtime"]["name"], self.folder] + list(arguments)

    def run(
        self, arguments: "list[str]", limit_s: float, environment: "dict[str, str]",
        prepare: "Callable[[], None] | None" = None, on_start: "Callable[[int], None] | None" = None,
        tick: "Callable[[], None] | None" = None,
    ) -> child.Ended:
        """Run one sub-command in this candidate's work folder; see `child.run_child`. `tick` is called beside the
        heartbeat."""

        def both() -> None:
            self.tick()
            if tick is not None:
                tick()

        return child.run_child(self.command(*arguments), self.work, limit_s, both, environment, prepare, on_start)

    def outputs(self, inputs: str, n: int, limit_s: float, what: str) -> "tuple[bytes, float] | None":
        """Outputs of n inputs as a raw block, and the seconds it took; None after noting the failure."""
        path = os.path.join(self.work, "outputs")
        ended = self.run(["run", "--inputs", inputs, "--n", str(n), "--outputs", path], limit_s, {})
        if ended.code:
            self.fail(ended.code, f"{what}: {ended.reason}")
            return None
        try:
            with open(path, "rb") as stream:
                data = stream.read()
            os.unlink(path)
        except OSError as problem:
            self.fail("E_CRASH", f"{what}: wrote no outputs: {problem.strerror}")
            return None
        expected = blocks.block_bytes(self.document["outputs"], n)
        if len(data) != expected:
            self.fail("E_CRASH", f"{what}: wrote {len(data)} bytes of outputs, expected {expected}")
            return None
        return data, ended.wall_s

    def timed(
        self, seed: int, profile: "dict[str, Any]", samples: str, per_inference_s: float, warm_loads: int = 0,
        prepare: "Callable[[], None] | None" = None, on_start: "Callable[[int], None] | None" = None,
        tick: "Callable[[], None] | None" = None,
    ) -> "dict[str, Any]":
        """One timed run; `samples` is the file for its raw samples. Returns what `parse_round` finds, `sha256` of the
        samples, `wall_s` of the process, and `other_cpu`: the share of one core that other processes used meanwhile.

        Raises:
            RoundFailed: it gave no figures.
        """
        arguments = ["bench", "--inputs", self.golden_inputs] + bench_options(self.n, seed, profile)
        if warm_loads and not self.executable:
            arguments += ["--warm-loads", str(warm_loads)]
        arguments += ["--samples", samples]
        before = busy_seconds()
        ended = self.run(arguments, bench_limit(profile, per_inference_s), {}, prepare, on_start, tick)
        busy = busy_seconds() - before
        if ended.code:
            raise RoundFailed(ended.code, ended.reason)
        try:
            record = parse_round(ended.stdout)
            size = os.path.getsize(samples)
        except (OSError, ValueError) as problem:
            raise RoundFailed("E_CRASH", str(problem)) from problem
        if size != 8 * record["count"]:
            raise RoundFailed("E_CRASH", "{} bytes of samples for a count of {}".format(size, record["count"]))
        record["wall_s"] = round(ended.wall_s, 6)
        record["other_cpu"] = round(max(0.0, busy - ended.cpu_s) / max(ended.wall_s, 1e-9), 4)
        store.to_disk(samples)  # runners need not: a round in the journal has its samples after a power cut too
        record["sha256"] = store.sha256_file(samples)
        return record

    def counted(self, seed: int, plugin: str, counts: str, limit_s: float) -> "dict[str, Any]":
        """One counted round under qemu-user's plugin; `counts` is the file for the plugin's raw lines."""
        rows = counted_rows(self.n, self.document["work"], seed)
        with open(self.golden_inputs, "rb") as stream:
            data = blocks.take_rows(stream.read(), self.document["inputs"], self.n, rows)
        inputs = os.path.join(self.work, "count.bin")
        store.write_atomic(inputs, data)
        if os.path.exists(counts):
            os.unlink(counts)
        environment = {"QEMU_PLUGIN": f"{plugin},out={counts}"}
        ended = self.run(["count", "--inputs", inputs, "--n", str(len(rows))], limit_s, environment)
        if ended.code:
            raise RoundFailed(ended.code, ended.reason)
        try:
            with open(counts, "rb") as stream:
                inferences = count.parse_counts(stream.read().decode("utf-8", "replace"))
        except OSError as problem:
            raise RoundFailed("E_CRASH", f"the counting plugin wrote nothing: {problem.strerror}") from problem
        if len(inferences) != len(rows):
            text = f"the counting plugin saw {len(inferences)} inferences, expected {len(rows)}"
            raise RoundFailed("E_CRASH", text)
        return {"count": len(rows), "classes": count.mean_counts(inferences), "sha256": store.sha256_file(counts)}


class RoundFailed(Exception):
    """A round that gave no figures, with its code."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def busy_seconds() -> float:
    """CPU seconds that all cores spent on processes since boot (0 where /proc/stat cannot be read)."""
    return (parse_busy(read_text("/proc/stat", 1024) or "") or 0) / float(os.sysconf("SC_CLK_TCK"))


def parse_busy(text: str) -> "int | None":
    """Clock ticks that all cores spent on processes since boot, by the first line of /proc/stat."""
    found = ALL_CORES.match(text)
    if found is None:
        return None
    user, nice, system, _idle, _wait, irq, softirq, _steal = map(int, found.group(1).split())
    return user + nice + system + irq + softirq


def read_samples(path: str) -> "list[int]":
    """Samples of a timed round: little-endian int64 nanoseconds."""
    samples = array.array("q")
    with open(path, "rb") as stream:
        samples.frombytes(stream.read())
    if sys.byteorder == "big":
        samples.byteswap()
    return list(samples)
