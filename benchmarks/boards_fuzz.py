"""10 000 hostile outputs of boards: junk, huge, escape sequences, half lines, documents with changed parts."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from typing import Any

from edgesdk.errors import EdgeSDKError
from edgesdk.harness import answers
from edgesdk.harness.board import Board
from edgesdk.harness.energy.log import read_log
from edgesdk.harness.facts import worker_answer
from edgesdk.harness.replay import parse_recording
from edgesdk.harness.text import plain, plain_line
from edgesdk.harness.transport import Completed
from edgesdk.harness.worker import rails
from edgesdk.harness.worker.facts import parse_cpuinfo, parse_meminfo
from edgesdk.harness.worker.rounds import parse_round

TRIES = 10_000
SEED = 4
BOARD = Board("remote", "host", host="127.0.0.1")
EVIL = ["\x1b[2J", "\x1b]0;owned\x07", "\x9b31m", "\r", "\0", "\u202e", "<script>alert(1)</script>", "NaN", "1e999",
        "-1", "'; rm -rf ~;'", "$(id)", "../../etc/passwd", "\ud800", "\ufeff", "[" * 3000, "{" * 3000, "9" * 5000,
        "\n\n", '"']
FACTS = {"machine": "aarch64", "kernel": "6.1", "cpus": 4, "cpu_model": None, "cpu_part": "0xd0b",
         "cpu_features": ["asimd"], "board_model": "Pi", "serial": "10000000a1b2c3d4", "machine_id": "a" * 32,
         "mem_total_bytes": 1 << 33,
         "python": "3.11.2", "rapl": [], "runtimes": {"onnxruntime": "1.20"}, "loadavg1": 0.1, "temperature_c": 40.0,
         "mem_available_bytes": 1 << 30, "boot_id": "b", "governor": "performance", "throttle_count": 0}
TEGRA = "RAM 3595/7607MB (lfb 1x1MB) CPU [100%@1728,off] GR3D_FREQ 0% cpu@51C VDD_IN 5832mW/5852mW"
PMIC = "VDD_CORE_A current(7)=6.22421000A\nVDD_CORE_V volt(15)=0.86173300V\n"
ROUND = {"format": "edgesdk.round", "version": 1, "count": 9, "batch": 1, "p50_ns": 5, "cold_load_ns": 5,
         "first_inference_ns": 7, "warmup": {"iterations": 2, "seconds": 0.1}, "steady": True, "peak_rss_bytes": 4096}
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def run(names: list[str]) -> dict[str, Any]:
    """Feed them to everything that reads what a board says."""
    source = random.Random(SEED)
    bad: list[str] = []
    for number in range(TRIES):
        reader, text = READERS[number % len(READERS)], hostile(source, SAMPLES[number % len(SAMPLES)])
        try:
            shown = reader(text)
        except EdgeSDKError as problem:
            shown = str(problem)
        except Exception as problem:
            bad.append(f"{reader.__name__}: {type(problem).__name__}: {problem}"[:200])
            continue
        if _CONTROL.search(shown) or len(shown) > 1 << 20:
            bad.append(f"{reader.__name__}: prints {plain(shown, 80)}")
    good = TRIES - len(bad)
    return {names[0]: (good, good == TRIES, "measured", {"failures": sorted(set(bad))[:5], "seed": SEED})}


def hostile(source: random.Random, sample: str) -> bytes:
    """A sample as a hostile or broken board would send it."""
    kind = source.randrange(7)
    if kind == 0:
        return source.randbytes(source.randrange(2000))
    if kind == 1:
        return sample[: source.randrange(len(sample) + 1)].encode()
    if kind == 2:
        at = source.randrange(len(sample) + 1)
        return (sample[:at] + source.choice(EVIL) + sample[at:]).encode("utf-8", "surrogatepass")
    if kind == 3:
        return _changed(source, sample)
    if kind == 4:
        return (source.choice(EVIL) * source.randrange(1, 20) + "\n" + sample).encode("utf-8", "surrogatepass")
    if kind == 5:
        data = bytearray(sample.encode())
        for _ in range(source.randrange(1, 8)):
            data[source.randrange(len(data))] = source.randrange(256)
        return bytes(data)
    return (sample * source.randrange(1, 40)).encode()


def _changed(source: random.Random, sample: str) -> bytes:
    """A document with one value exchanged for something else; of other texts a line twice."""
    try:
        document = json.loads(sample)
    except ValueError:
        return (sample + source.choice(sample.split("\n"))).encode()
    document = copy.deepcopy(document)
    key = source.choice(list(document))
    junk = [None, -1, 1e308, True, [], {}, [[[[[[[[[[1]]]]]]]]]], "x" * 9000, *EVIL, 1 << 70]
    document[key] = source.choice(junk)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _facts(data: bytes) -> str:
    return json.dumps(worker_answer(BOARD, "facts", Completed(0, data, b"")), ensure_ascii=False)


def _status(data: bytes) -> str:
    return json.dumps(worker_answer(BOARD, "look", Completed(0, data, b"")), ensure_ascii=False)


def _failed(data: bytes) -> str:
    return json.dumps(worker_answer(BOARD, "facts", Completed(3, b"", data)), ensure_ascii=False)


def _result(data: bytes) -> str:
    request = {"id": "a" * 64, "mode": "timed", "rounds": 2, "profile": {}, "candidates": []}
    document = answers.parse_json(data, "result")
    return json.dumps(answers.check_result(document, request, "result"), ensure_ascii=False)


def _round(data: bytes) -> str:
    try:
        return json.dumps(parse_round(data), ensure_ascii=False)
    except ValueError as problem:
        return plain_line(str(problem), 400)  # as the worker's reason reaches the user: through answers.parse_json


def _log(data: bytes) -> str:
    return str(len(read_log(data, "energy").segments))


def _tegrastats(data: bytes) -> str:
    return plain(repr(rails.parse_tegrastats(data.decode("utf-8", "replace"))))


def _pmic(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return plain(repr((rails.parse_pmic(text), rails.pmic_powers(text), rails.parse_throttled(text))))


def _proc(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return plain(repr((parse_cpuinfo(text), parse_meminfo(text))))


def _recording(data: bytes) -> str:
    return parse_recording(data, "recording").target


READERS: list[Callable[[bytes], str]] = [
    _facts, _status, _failed, _result, _round, _log, _tegrastats, _pmic, _proc, _recording,
]
_LOOK = {"job": "a" * 64, "state": "running", "beat": 5, "step": "rounds", "done": 1, "total": 2}
_RESULT = {"format": "edgesdk.job-result", "version": 1, "job": "a" * 64, "before": {}, "after": {}, "candidates": []}
_LOG = '{"event": "header", "sensor": "ina3221", "rails": ["VDD_IN"], "total": ["VDD_IN"]}\n[1, 2]\n'
_RECORDING = {"target": "x", "origin": "made", "period_s": 1.0, "files": {}, "commands": {}}
SAMPLES = [json.dumps(FACTS), json.dumps(_LOOK), "Traceback (most recent call last):\nboom", json.dumps(_RESULT),
           json.dumps(ROUND), _LOG, TEGRA, PMIC, "Serial\t: 1000\nMemTotal: 5 kB\n", json.dumps(_RECORDING)]
