"""A measurement by the shell worker: which steps it needs, and the records of the Python worker made of what they left.

Two jobs: first the golden checks, which this machine judges (a board without Python compares no floats), then the
evaluation and the rounds of those that passed, interleaved in the same seeded random order as on other boards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgesdk.files import sha256_bytes, write_atomic
from edgesdk.harness import answers
from edgesdk.harness.job import Progress
from edgesdk.harness.leases import Lease
from edgesdk.harness.session import Session
from edgesdk.harness.shell import snapshot
from edgesdk.harness.shell.job import kept_report, run_steps
from edgesdk.harness.shell.report import Ran, Report, Step
from edgesdk.harness.worker import blocks, child, count, ready, rounds, steps, timing

# What the Python worker does and this one cannot; stored with each measurement and shown by `boards probe`.
LOST = (
    "energy (its windows and samples are made by the Python worker)",
    "clocks, temperature and throttling while a round runs (looked at before and after it only)",
    "the integer loop that tells a change of the board from one of the model",
    "governor, power mode and cores set for the time of the job",
    "rounds that are repeated by code, and more rounds for a wide interval",
    "waiting for an idle or a cool board, and turns with other boards of its machine",
    "cold load without cached pages, warm loads, PSS and control groups",
)
REASON = "needs Python on the board"
# Room beyond what is expected, so that a file that is somewhat too long is judged, not left on the board.
SPARE_BYTES = 1 << 20
SAMPLES_BYTES, COUNTS_BYTES = 256 << 20, 16 << 20
# Files of the work folder that remember the two jobs.
FIRST, SECOND = "check.json", "job.json"


@dataclass(frozen=True)
class _Golden:
    """A golden check: the blob of its inputs, how many rows, the expected outputs by side."""

    inputs: str
    n: int
    expected: Mapping[str, bytes]


class ShellMeasurement:
    """One request (`measure._request`) on a board without Python."""

    def __init__(
        self, session: Session, worker: str, request: Mapping[str, Any], blobs: Mapping[str, Path], workdir: Path,
        progress: Progress, lease: Lease | None,
    ) -> None:
        self.session, self.worker, self.request, self.workdir = session, worker, request, workdir
        self.progress, self.lease = progress, lease
        self.blobs = dict(blobs)
        self.counted = request["mode"] == "counted"
        self.profile: dict[str, Any] = dict(request["profile"])
        self.speeds = [0.0] * len(request["candidates"])
        self.documents: list[dict[str, Any]] = []
        self.records: list[dict[str, Any]] = []
        for spec in request["candidates"]:
            self.documents.append(json.loads(self.blobs[self._blob(spec, "artifact.json")].read_bytes()))
            self.records.append({
                "artifact": spec["artifact"], "golden": None, "evaluation": None, "rounds": [], "reasons": [],
            })

    def run(self, facts: Mapping[str, Any], free: int | None) -> tuple[dict[str, Any], Path]:
        """Both jobs; returns what `run_job` returns. `free` are the bytes of the board's disk.

        Raises:
            as `run_steps`.
        """
        faults = self._faults(facts, free) if self.request["mode"] == "timed" else []
        if self.request["strict"]:
            for record in self.records:
                record["reasons"] += faults
        checks = {index: self._golden(index) for index in self._alive()}
        report, identity = self._check([self._golden_step(index, golden) for index, golden in checks.items()])
        for index, golden in checks.items():
            self._judge_golden(index, golden, report)
        passed = self._alive()
        second = [step for index in passed for step in self._evaluation_steps(index)] + self._round_steps(passed)
        if second:
            first = report
            report, identity = self._job(second, SECOND, passed)
            for index in passed:
                self._keep(index, report)
            report = replace(report, steps={**first.steps, **report.steps})
        seen = [snapshot.snapshot(sections) for ran in report.steps.values() for sections in (ran.before, ran.after)]
        empty = {key: facts.get(key) for key in answers.Snapshot.model_fields}
        result = {
            "format": "edgesdk.job-result", "version": 1, "job": identity, "before": seen[0] if seen else empty,
            "after": seen[-1] if seen else empty, "ready": faults, "notes": ["run by the shell worker"],
            "starts": [{"boot_id": boot, "wall_clock_s": at} for boot, at in report.starts], "candidates": self.records,
        }
        where = f"{self.session.board.name}: shell worker"
        checked = answers.check_result(result, {**self.request, "id": identity}, where)
        for kept in self.workdir.glob("*.report"):
            kept.unlink()
        return checked, report.folder

    def _blob(self, spec: Mapping[str, Any], path: str) -> str:
        return str(next(file["sha256"] for file in spec["files"] if file["path"] == path))

    def _alive(self) -> list[int]:
        return [index for index, record in enumerate(self.records) if not record["reasons"]]

    def _fail(self, index: int, code: str, text: str) -> None:
        self.records[index]["reasons"].append({"code": code, "text": text})

    def _check(self, wanted: Sequence[Step]) -> tuple[Report, str]:
        """The golden checks. Where the second job of an earlier call is remembered, the report of that call holds: that
        job may still run, and then the board takes no other."""
        if (self.workdir / SECOND).exists():
            kept = kept_report(self.workdir, self._request(FIRST, []), FIRST, wanted)
            if kept is not None:
                return kept, sha256_bytes(FIRST.encode())
        return self._job(wanted, FIRST, [])

    def _request(self, memory: str, passed: Sequence[int]) -> dict[str, Any]:
        return {**self.request, "job": memory, "passed": list(passed)}

    def _job(self, wanted: Sequence[Step], memory: str, passed: Sequence[int]) -> tuple[Report, str]:
        if not wanted:
            return Report({}, {}, {}, self.workdir / "raw", []), sha256_bytes(memory.encode())
        used = {step.program for step in wanted} | {word[1:] for step in wanted for word in step.words}
        return run_steps(
            self.session, self.worker, wanted, self._request(memory, passed), memory,
            {name: path for name, path in self.blobs.items() if name in used}, self.workdir, self.progress, self.lease,
            float(self.request["lock_wait_s"]),
        )

    def _faults(self, facts: Mapping[str, Any], free: int | None) -> list[dict[str, str]]:
        """What speaks against timing on this board now, as `worker/ready.py` finds it on others."""
        sizes = [sum(int(file["bytes"]) for file in document["files"]) for document in self.documents]
        return [
            *ready.disk_fault(free, max(sizes), self.session.board.state),
            *ready.memory_fault(facts.get("mem_available_bytes"), max(sizes)),
            *ready.throttle_fault(facts.get("throttled")), *ready.load_fault(facts.get("loadavg1"), facts.get("cpus")),
            *ready.heat_fault(facts.get("temperature_c")),
        ]

    def _step(
        self, index: int, name: str, limit_s: float, words: Sequence[str], most_bytes: int, setting: str = "-"
    ) -> Step:
        program = self._blob(self.request["candidates"][index], self.documents[index]["executable"])
        writes = f"c{index}-{name}.{'bin' if setting == '-' else 'jsonl'}"
        return Step(f"c{index}-{name}", limit_s, program, tuple(words), setting, writes, most_bytes)

    def _outputs(self, index: int, n: int) -> int:
        """Bytes of the outputs for n inputs."""
        return blocks.block_bytes(self.documents[index]["outputs"], n)

    def _golden(self, index: int) -> _Golden:
        """What is checked: all golden rows; on an emulated board some of them."""
        document, spec = self.documents[index], self.request["candidates"][index]
        golden, tensors = document["golden"], document["outputs"]
        n, inputs = int(golden["n"]), self._blob(spec, golden["inputs"])
        sides = {side: golden[side] for side in ("outputs", "floats") if golden.get(side)}
        expected = {side: self.blobs[self._blob(spec, path)].read_bytes() for side, path in sides.items()}
        if not self.counted:
            return _Golden(inputs, n, expected)
        rows = steps.golden_rows(n, steps.EMULATED_GOLDEN_ROWS)
        some = {side: blocks.take_rows(data, tensors, n, rows) for side, data in expected.items()}
        return _Golden(self._rows(index, rows), len(rows), some)

    def _rows(self, index: int, rows: list[int]) -> str:
        """The blob of some golden inputs."""
        document, spec = self.documents[index], self.request["candidates"][index]
        data = self.blobs[self._blob(spec, document["golden"]["inputs"])].read_bytes()
        data = blocks.take_rows(data, document["inputs"], int(document["golden"]["n"]), rows)
        path = self.workdir / "inputs" / sha256_bytes(data)
        write_atomic(path, data)
        self.blobs[path.name] = path
        return path.name

    def _golden_step(self, index: int, golden: _Golden) -> Step:
        words = ["run", "--inputs", f"@{golden.inputs}", "--n", str(golden.n), "--outputs", f"c{index}-golden.bin"]
        return self._step(index, "golden", steps.GOLDEN_LIMIT_S, words, self._outputs(index, golden.n) + SPARE_BYTES)

    def _judge_golden(self, index: int, golden: _Golden, report: Report) -> None:
        ran = self._ended(index, "golden", report, "golden check")
        if ran is None:
            return
        data, expected = report.written(f"c{index}-golden.bin"), golden.expected
        document = self.documents[index]
        limits, tensors = document["golden"]["tolerance"], document["outputs"]
        verdict = blocks.judge(limits, expected["outputs"], data, tensors, golden.n, expected.get("floats"))
        reason = verdict.pop("reason")
        self.records[index]["golden"] = verdict
        if not verdict["passed"]:
            self._fail(index, "E_ACCURACY", f"golden check: {reason}")
        wall = snapshot.surroundings(ran.before, ran.after, ran.clocks)["wall_s"]
        self.speeds[index] = (wall or 0.0) / max(1, golden.n)

    def _evaluation_steps(self, index: int) -> list[Step]:
        asked = self.request["candidates"][index]["evaluation"]
        if not asked:
            return []
        words = ["run", "--inputs", f"@{asked['sha256']}", "--n", str(asked["n"]), "--outputs",
                 f"c{index}-evaluation.bin"]
        most = self._outputs(index, asked["n"]) + SPARE_BYTES
        return [self._step(index, "evaluation", rounds.evaluation_limit(asked["n"], self.speeds[index]), words, most)]

    def _round_steps(self, passed: list[int]) -> list[Step]:
        if self.request["mode"] == "none":
            return []
        # All rounds count the same inputs.
        inputs = {index: self._rows(index, self._counted_rows(index)) for index in passed if self.counted}
        return [
            self._count_step(index, number, inputs[index]) if self.counted else self._bench_step(index, number)
            for number in range(self.request["rounds"])
            for index in timing.round_order(passed, self.request["seed"], number)
        ]

    def _bench_step(self, index: int, number: int) -> Step:
        document, seed = self.documents[index], self.request["seed"] + number
        inputs = self._blob(self.request["candidates"][index], document["golden"]["inputs"])
        words = ["bench", "--inputs", f"@{inputs}", *rounds.bench_options(int(document["golden"]["n"]), seed,
                 self.profile), "--samples", f"c{index}-round{number}.bin"]
        limit_s = rounds.bench_limit(self.profile, self.speeds[index])
        return self._step(index, f"round{number}", limit_s, words, SAMPLES_BYTES)

    def _counted_rows(self, index: int) -> list[int]:
        document = self.documents[index]
        return rounds.counted_rows(int(document["golden"]["n"]), document["work"], self.request["seed"])

    def _count_step(self, index: int, number: int, inputs: str) -> Step:
        words = ["count", "--inputs", f"@{inputs}", "--n", str(len(self._counted_rows(index)))]
        setting = f"QEMU_PLUGIN={self.request['counting_plugin']},out=c{index}-round{number}.jsonl"
        return self._step(index, f"round{number}", steps.GOLDEN_LIMIT_S, words, COUNTS_BYTES, setting)

    def _ended(self, index: int, name: str, report: Report, what: str) -> Ran | None:
        """How a step ended; None, and a reason, where it did not end well."""
        ran = report.steps.get(f"c{index}-{name}")
        if ran is None:
            if not self.records[index]["reasons"]:
                self._fail(index, "E_CRASH", f"{what}: the worker did not run it")
            return None
        if ran.overdue:
            self._fail(index, "E_TIMEOUT", f"{what}: no end in time, killed")
            return None
        for suffix in ("bin", "jsonl"):
            if large := report.too_large.get(f"c{index}-{name}.{suffix}"):
                self._fail(index, "E_CRASH", f"{what}: wrote {large.size >> 20} MiB, far more than it should")
                return None
        kills = child.kills_text("vmstat", snapshot.oom_kills(ran.before), snapshot.oom_kills(ran.after))
        code, reason = child.describe_status(ran.code << 8, kills, " ".join(ran.err.split())[-600:])
        if code:
            self._fail(index, code, f"{what}: {reason}")
        return None if code else ran

    def _keep(self, index: int, report: Report) -> None:
        """Evaluation and rounds of a candidate, as far as they came to a good end."""
        record, asked = self.records[index], self.request["candidates"][index]["evaluation"]
        if asked and self._ended(index, "evaluation", report, "evaluation") is not None:
            name = f"c{index}-evaluation.bin"
            found, wanted = len(report.written(name)), self._outputs(index, asked["n"])
            if found == wanted:
                record["evaluation"] = {"n": asked["n"], "file": name, "sha256": report.fetched[name].sha256}
            else:
                self._fail(index, "E_CRASH", f"evaluation: wrote {found} bytes of outputs, expected {wanted}")
        for number in range(self.request["rounds"] if self.request["mode"] != "none" else 0):
            if record["reasons"]:
                return
            ran = self._ended(index, f"round{number}", report, f"round {number}")
            if ran is None:
                return
            try:
                kept = self._counted(index, number, report) if self.counted else self._timed(index, number, ran, report)
                record["rounds"].append(kept)
            except (OSError, ValueError) as problem:
                self._fail(index, "E_CRASH", f"round {number}: {problem}")

    def _counted(self, index: int, number: int, report: Report) -> dict[str, Any]:
        name = f"c{index}-round{number}.jsonl"
        found = count.parse_counts(report.written(name).decode("utf-8", "replace"))
        wanted = len(self._counted_rows(index))
        if len(found) != wanted:
            raise ValueError(f"the counting plugin saw {len(found)} inferences, expected {wanted}")
        return {"index": number, "file": name, "sha256": report.fetched[name].sha256, "count": len(found)}

    def _timed(self, index: int, number: int, ran: Ran, report: Report) -> dict[str, Any]:
        name = f"c{index}-round{number}.bin"
        record = rounds.parse_round(ran.out.encode())
        size = len(report.written(name))
        if size != 8 * record["count"]:
            raise ValueError(f"{size} bytes of samples for a count of {record['count']}")
        seen = snapshot.surroundings(ran.before, ran.after, ran.clocks)
        seen["window_s"] = float(self.profile["window_seconds"])
        boot = ran.before.get("/proc/sys/kernel/random/boot_id")
        starts = [at for at, (there, _) in enumerate(report.starts) if there == boot]
        return {
            **record, "index": number, "file": name, "sha256": report.fetched[name].sha256,
            "other_cpu": seen["other_cpu"], "start": starts[-1] if starts else 0, "environment": seen,
            "memory": {**(record["memory"] or {}), "peak_rss": record["peak_rss_bytes"]},
        }
