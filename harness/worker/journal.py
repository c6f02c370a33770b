"""What a job has done so far, written after each step, so that a restart of the board or a dead worker loses only the
step that was being done.
"""

import os
from typing import Any

from edgesdk.harness.worker import facts, store


class Journal:
    """`records` are those of the candidates, `done` names of steps, `starts` one {"boot_id", "wall_clock_s"} for each
    time that the job was begun; `before` and `ready` what was seen before anything ran."""

    def __init__(self, work: str) -> None:
        self.work = work
        self.path = os.path.join(work, "journal.json")
        self.values = {
            "records": [], "done": [], "starts": [], "speeds": [], "before": None, "ready": [],
        }  # type: dict[str, Any]

    def load(self) -> bool:
        """Read what an earlier start wrote; False, and an empty journal, where there is nothing whole."""
        try:
            values = store.read_json(self.path)
        except (OSError, ValueError):
            return False
        if not isinstance(values, dict) or set(values) != set(self.values):
            return False
        self.values = values
        self._drop_what_is_lost()
        return True

    def begin(self) -> int:
        """Note this start; returns its number, from 0."""
        seen = facts.snapshot()
        self.values["starts"].append({"boot_id": seen["boot_id"], "wall_clock_s": seen["wall_clock_s"]})
        self.save()
        return len(self.values["starts"]) - 1

    def has(self, step: str) -> bool:
        """Was this step finished?"""
        return step in self.values["done"]

    def finish(self, step: str, records: "list[dict[str, Any]]", speeds: "list[float]") -> None:
        """Note a finished step and what is known after it."""
        self.values.update({"records": records, "speeds": speeds})
        self.values["done"].append(step)
        self.save()

    def save(self) -> None:
        """Write it down, whole or not at all, and onto the disk: what is told as done stays done."""
        store.write_json(self.path, self.values)
        store.to_disk(self.work)

    def _drop_what_is_lost(self) -> None:
        """A power cut may take bytes that were written but not yet on the disk: those rounds are run again."""
        for index, record in enumerate(self.values["records"]):
            for kind in ("rounds", "rejected"):
                kept = [entry for entry in record[kind] if self._is_whole(entry)]
                lost = [entry for entry in record[kind] if entry not in kept]
                record[kind] = kept
                gone = [f"c{index}-round{entry['index']}" for entry in lost if kind == "rounds"]
                self.values["done"] = [step for step in self.values["done"] if step not in gone]
                record["raw"] = [name for name in record["raw"] if name not in [entry["file"] for entry in lost]]
            for key, step in (("evaluation", "evaluate"), ("energy", "energy")):
                entry = record.get(key)
                if entry and entry.get("file") and not self._is_whole(entry):
                    record[key] = None
                    record["raw"] = [name for name in record["raw"] if name != entry["file"]]
                    self.values["done"] = [name for name in self.values["done"] if name != f"c{index}-{step}"]

    def _is_whole(self, entry: "dict[str, Any]") -> bool:
        try:
            return bool(store.sha256_file(os.path.join(self.work, entry["file"])) == entry["sha256"])
        except OSError:
            return False
