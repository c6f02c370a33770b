"""Selection: the artifact that ships, chosen from what was measured, with the reason why each other one lost.

The order of the rules:

1. A goal on something that was measured for no valid candidate is refused (`Unmeasured`), never guessed.
2. Candidates that are not valid, or break a goal, fall out. Accuracy is judged by its point estimate; where the lower
   95 % bound does not prove the goal, a note says how many rows would (`unproven`). `latency_p50` is judged by the
   upper end of its 95 % interval, `latency_p90` by p90 or that upper end, whichever is larger.
3. The fastest of the rest has the lowest p90 (the same upper figure); on an emulated board the fewest instructions.
4. Every candidate whose interval of p50 overlaps that of the fastest is a tie (where emulated: whose counts of the
   rounds overlap), unless the ratio of their interleaved rounds tells them apart. Among ties the lower energy wins
   where it was measured for all of them, else the smallest file where sizes differ by more than 5 %, else the lower
   figure of rule 3.

A goal on accuracy of `max-degradation 1` holds where no other is given. Float candidates take part: staying float is
an answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgesdk import units
from edgesdk.bounds import Z95
from edgesdk.errors import Unmeasured
from edgesdk.figures import LABELS, NEVER_EMULATED, judged, missing, paired_ratio, show
from edgesdk.goals import DEFAULT, Goal, parse_goals
from edgesdk.record import BuildRecord, CandidateRecord

EPSILON = 1e-9
# Among ties a file must be smaller by this factor to win by its size.
SIZE_MATTERS = 1.05


@dataclass(frozen=True)
class Selection:
    """`ranking` holds the candidates that meet every goal, the chosen one first; `reason` says why it was chosen, or
    why none was; `why_not` has every other candidate; `ranked_by` is `latency_p90` or `instructions`."""

    selected: str | None
    reason: str
    why_not: Mapping[str, str]
    notes: tuple[str, ...]
    ranking: tuple[str, ...]
    ranked_by: str
    goals: tuple[str, ...]


def rows_needed(fraction: float, floor: float) -> int | None:
    """Rows at which an accuracy of `fraction` has a `wilson_lower95` of `floor`; None: no number of rows would do."""
    if fraction - floor <= EPSILON:
        return None
    return max(1, math.ceil(Z95 * Z95 * floor * (1 - floor) / (fraction - floor) ** 2 - EPSILON))


def check_measurable(goals: Mapping[str, Any] | Iterable[str] | None, provenance: str) -> None:
    """Refuse before any work what a board of this provenance can never answer.

    Raises:
        ConfigError: a goal that does not parse.
        Unmeasured: naming the goal and why it cannot be judged.
    """
    emulated = provenance == "emulated"
    for goal in parse_goals(goals):
        why = None
        if emulated and goal.metric in NEVER_EMULATED:
            why = "an emulated board measures no time"
        elif emulated and goal.metric == "peak_rss":
            why = "memory under qemu-user is not that of a board"
        elif not emulated and goal.metric == "instructions":
            why = "instructions are counted on emulated boards only"
        if why is not None:
            raise Unmeasured(f"goal {str(goal)!r}: {why}", _HINTS[goal.metric])


def select(record: BuildRecord, goals: Mapping[str, Any] | Iterable[str] | None = None) -> Selection:
    """Choose among the candidates of a build; the rules are in the module's text.

    Args:
        record: the build with all of its candidates.
        goals: a recipe's mapping or the command line's strings; None takes those of the record.

    Raises:
        ConfigError: a goal that does not parse.
        Unmeasured: a goal on something that was measured for no valid candidate.
    """
    asked = parse_goals(record.goals if goals is None else goals)
    all_goals, notes = _with_default(asked, record)
    ranked_by = "instructions" if record.emulated else "latency_p90"
    valid = [candidate for candidate in record.candidates if candidate.valid]
    _refuse_unmeasured(all_goals, valid, ranked_by, record)

    why_not: dict[str, str] = {}
    feasible: list[CandidateRecord] = []
    for candidate in record.candidates:
        problems = list(_problems(candidate, all_goals, ranked_by, record))
        if problems:
            why_not[candidate.name] = "; ".join(problems)
        else:
            feasible.append(candidate)
    texts = tuple(str(goal) for goal in all_goals)
    if not feasible:
        reason = "no candidate meets the goals" if valid else "no candidate is valid"
        return Selection(None, reason, why_not, tuple(notes), (), ranked_by, texts)

    ordered = sorted(feasible, key=lambda candidate: (_figure(candidate, ranked_by, record), candidate.name))
    tied = [candidate for candidate in ordered if _tie(candidate, ordered[0], record)]
    rule, key = _tie_rule(tied, ranked_by, record)
    tied.sort(key=lambda candidate: (key(candidate), _figure(candidate, ranked_by, record), candidate.name))
    chosen = tied[0]
    ranking = tied + [candidate for candidate in ordered if candidate not in tied]
    for loser in ranking[1:]:
        if loser in tied:
            why_not[loser.name] = _tie_text(loser, chosen, rule, record)
        else:
            slower = _figure(loser, ranked_by, record) > _figure(chosen, ranked_by, record)
            why_not[loser.name] = _slower_text(loser, chosen if slower else ordered[0], ranked_by, record)
    if len(tied) > 1:
        notes.append(f"{len(tied)} candidates tie; the {rule} decides (an interleaved A/B run could separate them)")
    notes += [f"{chosen.name}: {text}" for goal in all_goals if (text := unproven(chosen, goal, record))]
    names = tuple(candidate.name for candidate in ranking)
    reason = _reason(chosen, tied, feasible, rule, ranked_by, record)
    return Selection(chosen.name, reason, why_not, tuple(notes), names, ranked_by, texts)


def unproven(candidate: CandidateRecord, goal: Goal, record: BuildRecord) -> str | None:
    """Why a goal on accuracy is met by the point estimate only, and the rows that would prove it; None where proven."""
    accuracy = candidate.accuracy
    if goal.metric != "accuracy" or accuracy is None:
        return None
    floor = floor_accuracy(goal, baseline_accuracy(candidate, record))
    if accuracy.lower95 >= floor - EPSILON:
        return None
    rows = rows_needed(accuracy.value, floor)
    needs = f"needs {rows:,} rows" if rows else "it stands exactly at the limit, no number of rows proves it"
    if record.metric != "accuracy":
        needs = "needs more rows"
    bound = f"lower 95 % bound {units.percent(accuracy.lower95)} < {units.percent(floor)}, n = {accuracy.n:,}"
    return f"unproven: {needs} ({bound})"


_HINTS = {
    "accuracy": "give evaluation data with --data",
    "latency_p50": "ask `instructions: max 3M` on an emulated board, or add a real one with `edgesdk boards add`",
    "latency_p90": "ask `instructions: max 3M` on an emulated board, or add a real one with `edgesdk boards add`",
    "size": "build the artifacts first with `edgesdk build`",
    "peak_rss": "ask `size: max 10%`, or add a real board with `edgesdk boards add`",
    "energy": "ask `latency_p90` on a real board or `instructions` on an emulated one; joules need a power sensor or a "
    "meter in farm.toml",
    "instructions": "ask `latency_p90: max 30ms` on a real board, or build for an emulated one",
}


def _with_default(goals: tuple[Goal, ...], record: BuildRecord) -> tuple[tuple[Goal, ...], list[str]]:
    if any(goal.metric == "accuracy" for goal in goals):
        return goals, []
    if all(candidate.accuracy is None for candidate in record.candidates if candidate.valid):
        return goals, ["accuracy was not measured, so it is not judged"]
    return (DEFAULT, *goals), []


def _refuse_unmeasured(
    goals: Iterable[Goal], valid: list[CandidateRecord], ranked_by: str, record: BuildRecord
) -> None:
    for goal in goals:
        if valid and all(judged(candidate, goal.metric, record) is None for candidate in valid):
            reasons = {missing(candidate, goal.metric, record) for candidate in valid}
            where = f"goal {str(goal)!r} on board {record.board}"
            raise Unmeasured(f"{where}: measured for no candidate: {'; '.join(sorted(reasons))}", _HINTS[goal.metric])
    if valid and all(judged(candidate, ranked_by, record) is None for candidate in valid):
        message = f"board {record.board} measured no {LABELS[ranked_by]}: nothing to rank the candidates by"
        raise Unmeasured(message, "see the measurements' labels, or measure on another board")


def _figure(candidate: CandidateRecord, metric: str, record: BuildRecord) -> float:
    value = judged(candidate, metric, record)
    return math.inf if value is None else value


def baseline_accuracy(candidate: CandidateRecord, record: BuildRecord) -> float:
    """The accuracy of the fp32 reference over the rows that the candidate was evaluated on, a fraction."""
    accuracy = candidate.accuracy
    if accuracy is not None and accuracy.baseline is not None:
        return accuracy.baseline
    return record.baseline.accuracy or 0.0


def floor_accuracy(goal: Goal, baseline: float) -> float:
    """The lowest accuracy that meets the goal, a fraction."""
    return baseline * (1 - goal.limit / 100) if goal.relative else baseline - goal.limit / 100


def _problems(
    candidate: CandidateRecord, goals: Iterable[Goal], ranked_by: str, record: BuildRecord
) -> Iterable[str]:
    if not candidate.valid:
        yield "; ".join(candidate.reasons) or "the measurement is not valid"
        return
    for goal in goals:
        value = judged(candidate, goal.metric, record)
        if value is None:
            yield f"{goal.metric}: {missing(candidate, goal.metric, record)}"
        elif goal.metric == "accuracy":
            baseline = baseline_accuracy(candidate, record)
            if value < floor_accuracy(goal, baseline) - EPSILON:
                loss = 100 * (baseline - value) / (baseline if goal.relative else 1)
                unit = "% of the baseline's" if goal.relative else "points"
                yield f"accuracy {units.percent(value)} loses {loss:.4g} {unit} > {goal.limit:g}"
        elif goal.relative:
            share = 100 * value / record.baseline.bytes
            if share > goal.limit + EPSILON:
                yield f"size {units.size(value)} is {share:.4g} % of the fp32 ONNX > {goal.limit:g} %"
        elif value > goal.limit * (1 + EPSILON):
            yield f"{LABELS[goal.metric]} {' > '.join(show(goal.metric, value, goal.limit))}"
    if judged(candidate, ranked_by, record) is None:
        yield f"cannot be ranked: {missing(candidate, ranked_by, record)}"


def _tie(one: CandidateRecord, other: CandidateRecord, record: BuildRecord) -> bool:
    (low, high), (other_low, other_high) = interval(one, record), interval(other, record)
    if low > other_high or other_low > high:
        return False
    # Rounds are interleaved, so what disturbed the board disturbed both: their ratio may be sure where they are not.
    ratio = None if record.emulated else paired_ratio(one, other)
    return ratio is None or ratio[0] <= 1.0 <= ratio[1]


def interval(candidate: CandidateRecord, record: BuildRecord) -> tuple[float, float]:
    """The 95 % interval of p50 in ms; on an emulated board the lowest and the highest count of the rounds."""
    if record.emulated:
        counts = candidate.figure("instructions", "rounds") or [_figure(candidate, "instructions", record)]
        return float(min(counts)), float(max(counts))
    p50 = float(candidate.figure("latency_ms", "p50"))
    low, high = candidate.figure("latency_ms", "ci95", 0), candidate.figure("latency_ms", "ci95", 1)
    return (p50 if low is None else float(low)), (p50 if high is None else float(high))


def _tie_rule(
    tied: list[CandidateRecord], ranked_by: str, record: BuildRecord
) -> tuple[str, Callable[[CandidateRecord], float]]:
    energies = [_figure(candidate, "energy", record) for candidate in tied]
    boundaries = {candidate.figure("energy_mj", "boundary") for candidate in tied}
    if len(set(energies)) > 1 and math.inf not in energies and len(boundaries) == 1:
        return "lower energy", lambda candidate: _figure(candidate, "energy", record)
    sizes = [_figure(candidate, "size", record) for candidate in tied]
    if max(sizes) > SIZE_MATTERS * min(sizes):
        return "smaller file", lambda candidate: _figure(candidate, "size", record)
    return f"lower {LABELS[ranked_by]}", lambda candidate: _figure(candidate, ranked_by, record)


def _tie_text(loser: CandidateRecord, chosen: CandidateRecord, rule: str, record: BuildRecord) -> str:
    within = "in instructions" if record.emulated else "within the interval of p50"
    metric = {"lower energy": "energy", "smaller file": "size"}.get(
        rule, "instructions" if record.emulated else "latency_p90"
    )
    own, other = _figure(chosen, metric, record), _figure(loser, metric, record)
    if own == other:
        return f"tie with {chosen.name} {within}; equal in {LABELS[metric]} too, so the first by name"
    ours, theirs = show(metric, own, other)
    word = {"energy": "takes less energy", "size": "is smaller"}.get(metric, f"has the {rule}")
    return f"tie with {chosen.name} {within}; {chosen.name} {word}: {ours} < {theirs}"


def _slower_text(loser: CandidateRecord, faster: CandidateRecord, ranked_by: str, record: BuildRecord) -> str:
    theirs, ours = show(ranked_by, _figure(loser, ranked_by, record), _figure(faster, ranked_by, record))
    return f"{LABELS[ranked_by]} {theirs} > {ours} of {faster.name}"


def _reason(
    chosen: CandidateRecord, tied: list[CandidateRecord], feasible: list[CandidateRecord], rule: str, ranked_by: str,
    record: BuildRecord,
) -> str:
    (value,) = show(ranked_by, _figure(chosen, ranked_by, record))
    lowest = "fewest instructions" if ranked_by == "instructions" else "lowest p90"
    if len(feasible) == 1:
        return f"the only candidate that meets every goal ({LABELS[ranked_by]} {value})"
    among = f"{len(feasible)} candidates that meet every goal"
    if len(tied) == 1:
        return f"{lowest} ({value}) of the {among}"
    return f"{rule} of the {len(tied)} that tie for the {lowest} ({value}) among the {among}"
