"""What was built on this board and is kept for later jobs: a file whose name is a digest of all that it depends on, and
its note (`.json`) with size and sha256, without which it is not believed."""

import os
from typing import Any

from edgesdk.harness.worker import store


class Kept:
    """The file at `path`, whole or not."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.note = path + ".json"

    def fault(self) -> str:
        """Why it cannot be used; "" where it is whole."""
        if not os.path.exists(self.path):
            return "there is none"
        try:
            note = store.read_json(self.note)
            size, wanted, digest = os.path.getsize(self.path), note["bytes"], note["sha256"]
            if size != wanted:
                return f"it has {size} bytes, its note says {wanted!r:.30}"
            return "" if store.sha256_file(self.path) == digest else "its bytes are not those of its note"
        except (OSError, ValueError, KeyError, TypeError):
            return "its note cannot be read"

    def used(self) -> None:
        """Note that it was used: room is made by age."""
        os.utime(self.path)

    def forget(self) -> None:
        """Remove file and note."""
        for path in (self.path, self.note):
            if os.path.lexists(path):
                os.unlink(path)

    def keep(self, part: str, facts: "dict[str, Any]") -> None:
        """Take over the file `part` of the same disk, with more facts for the note; it gets its name when it is whole
        and on the disk."""
        store.to_disk(part)
        store.write_json(self.note, dict(facts, bytes=os.path.getsize(part), sha256=store.sha256_file(part)))
        os.replace(part, self.path)
        store.to_disk(os.path.dirname(self.path))
