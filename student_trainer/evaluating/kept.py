"""What an evaluation has done so far, on disk: a stopped or killed one goes on from there."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lectern_common.files import fsync
from lectern_common.json_lines import append_json_line, read_json_lines
from student_trainer.journal.disk_full import disk_full_as_error

Entry = dict[str, Any]


class Kept:
    """A file of JSON lines: the first says what the entries are of, each other one is an entry.

    Entries of something else, such as of a dataset that has changed since, are dropped.

    Args:
        path: the file; None keeps nothing.
        of: everything that an entry depends on; JSON values.
    """

    def __init__(self, path: Path | None, of: Any) -> None:
        self._path = path
        text = json.dumps(of, sort_keys=True)
        first = {"of": hashlib.sha256(text.encode()).hexdigest()}
        lines = [] if path is None else _whole_lines(path)
        if lines[:1] == [first]:
            self.entries: list[Entry] = lines[1:]
            return
        self.entries = []
        if path is not None:
            with disk_full_as_error(path.name):
                path.unlink(missing_ok=True)
                append_json_line(path, first)

    def add(self, *entries: Entry) -> None:
        """Adds entries, which survive this process and this machine. Raises DiskFull."""
        self.entries += entries
        if self._path is not None:
            with disk_full_as_error(self._path.name):
                for entry in entries:
                    append_json_line(self._path, entry)
                fsync(self._path)


def _whole_lines(path: Path) -> list[Entry]:
    """Returns the lines of a file, without one that a kill has cut; [] if one is broken."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:  # else the next entry would continue that line
            file.truncate(whole)
    try:
        return read_json_lines(path)
    except ValueError:
        return []
