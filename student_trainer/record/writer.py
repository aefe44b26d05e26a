"""Writes a record so that a kill at any instant loses little, and never leaves half a record.

    DATA/.NAME.recording/plan.json          what is being recorded; another plan is refused
    DATA/.NAME.recording/PART/entries.bin   an entry for each sequence, in the order of the data
    DATA/.NAME.recording/PART/rows.bin      as in the record, growing
    DATA/.NAME.recording/PART/masks.bin

An entry is written after what it points to. What a killed process has left counts up to the first
entry whose checksum does not hold; the rest is cut off and asked for again. At the end the entries
are sorted, the manifest is written, and the folder gets its name.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import Conflict, CorruptData
from lectern_common.files import fsync, put_in_place, take_lock, write_atomic
from lectern_common.teacher.record.index import (
    ENTRY,
    SequenceIndex,
    checksum,
    covered,
    sequence_key,
)
from lectern_common.teacher.record.manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    MASKS_NAME,
    ROWS_NAME,
    RecordFacts,
    RecordFile,
    RecordManifest,
    RecordPart,
)
from lectern_common.teacher.record.reader import file_sha256, mask_bytes
from student_trainer.journal.disk_full import disk_full_as_error

_PLAN_NAME = "plan.json"
_ENTRIES_NAME = "entries.bin"
_LOCK_NAME = "lock"
_PRIVATE = (_PLAN_NAME, _ENTRIES_NAME, _LOCK_NAME)


def recording_path(record: Path) -> Path:
    """Returns where a record is while it is being made."""
    return record.with_name(f".{record.name}.recording")


class PartWriter:
    """The growing files of one part. Use as a context manager.

    Args:
        folder: of the part; made if missing.

    Attributes:
        rows: recorded so far.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        entries = _intact(folder)
        self._entries = bytearray(entries.tobytes())
        self._keys = {bytes(key) for key in entries["key"]}
        ends = (_end(entries, "rows"), _end(entries, "masks"), len(self._entries))
        names = (ROWS_NAME, MASKS_NAME, _ENTRIES_NAME)
        self._rows, self._masks, self._log = (
            _appending(folder / name, end) for name, end in zip(names, ends, strict=True)
        )
        self._row_bytes, self._mask_bytes = ends[:2]
        self.rows = int(entries["num_rows"].sum(dtype=np.int64))

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._masks, self._log):
            file.close()

    @property
    def sequences(self) -> int:
        return len(self._keys)

    @property
    def bytes_of_rows(self) -> int:
        return self._row_bytes

    def has(self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]) -> bool:
        return sequence_key(ids_S, asked_S) in self._keys

    def add(
        self,
        ids_S: npt.NDArray[np.uint32],
        asked_S: npt.NDArray[np.bool_],
        data: npt.NDArray[np.uint8],
    ) -> None:
        """Appends the rows of a sequence, unless it is there already.

        Raises:
            OSError: it cannot be written.
        """
        key = sequence_key(ids_S, asked_S)
        if key in self._keys:
            return
        mask = mask_bytes(ids_S, asked_S)
        entry = np.zeros(1, ENTRY)
        entry[0] = (
            key,
            self._row_bytes,
            self._mask_bytes,
            len(data),
            len(covered(ids_S, asked_S)),
            int(np.count_nonzero(asked_S)),
            checksum(data.data, mask),
        )
        self._rows.write(data.data)
        self._masks.write(mask)
        self.rows += int(entry["num_rows"][0])
        self._row_bytes += len(data)
        self._mask_bytes += len(mask)
        self._entries += entry.tobytes()
        self._keys.add(key)

    def save(self) -> None:
        """Makes what was added so far survive a power cut."""
        for file in (self._rows, self._masks):
            file.flush()
            os.fsync(file.fileno())
        self._log.write(self._entries[self._log.tell() :])
        self._log.flush()
        os.fsync(self._log.fileno())

    def write_index(self) -> None:
        """Saves everything, and writes the index."""
        self.save()
        index = SequenceIndex.sorted(np.frombuffer(bytes(self._entries), ENTRY))
        write_atomic(self._folder / INDEX_NAME, index.entries.tobytes())


class RecordWriter:
    """A record that is being made. Use `recording`, which holds its lock."""

    def __init__(self, record: Path) -> None:
        self.record = record
        self.folder = recording_path(record)

    def part(self, name: str) -> PartWriter:
        return PartWriter(self.folder / name)

    def finish(self, facts: RecordFacts, parts: list[RecordPart]) -> RecordManifest:
        """Puts the finished record in place; returns its manifest.

        Args:
            facts: known before the rows.
            parts: each finished.

        Raises:
            OSError: it cannot be written.
        """
        files = [
            RecordFile(
                path=str(path.relative_to(self.folder)),
                bytes=path.stat().st_size,
                sha256=file_sha256(path),
            )
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name not in (MANIFEST_NAME, *_PRIVATE)
        ]
        whole = RecordManifest.model_validate(
            {
                "schema": "lectern-record-v1",
                **facts.model_dump(),
                "parts": [part.model_dump() for part in parts],
                "files": [file.model_dump() for file in files],
            }
        )
        text = json.dumps(whole.model_dump(mode="json", by_alias=True), indent=1)
        write_atomic(self.folder / MANIFEST_NAME, text.encode() + b"\n")
        self.put_in_place()
        return whole

    def is_whole(self) -> bool:
        """Returns whether only its name is missing: it was killed in `finish`."""
        return (self.folder / MANIFEST_NAME).exists()

    def put_in_place(self) -> None:
        """Removes what only the writer needs, and gives the record its name."""
        for path in sorted(self.folder.rglob("*")):
            if path.name in _PRIVATE:
                path.unlink()
        put_in_place(self.folder, self.record)


@contextmanager
def recording(record: Path, plan: dict[str, object]) -> Iterator[RecordWriter]:
    """Yields the writer of a record that is not there yet, going on where a killed one stopped.

    Args:
        record: its folder.
        plan: what decides its bytes, as JSON values.

    Raises:
        Conflict: the record is there, is being made by another process, or was begun by another
            plan.
        DiskFull: there is no room.
    """
    writer = RecordWriter(record)
    if record.exists():
        raise Conflict(
            f"{record} is there already; choose another name, or delete it with `lectern record "
            f"delete {record.name}`"
        )
    with disk_full_as_error(f"the record {record.name}", "run the same command again"):
        writer.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = take_lock(writer.folder / _LOCK_NAME)
        except BlockingIOError:
            raise Conflict(f"{record.name} is being made by another process") from None
        try:
            _require_same_plan(writer, plan)
            yield writer
        finally:
            os.close(lock)


def _require_same_plan(writer: RecordWriter, plan: dict[str, object]) -> None:
    path = writer.folder / _PLAN_NAME
    try:
        begun = json.loads(path.read_bytes())
    except FileNotFoundError:
        begun = None
    except ValueError:
        raise CorruptData(f"{path} is damaged; remove {writer.folder} to begin anew") from None
    if begun is None:
        write_atomic(path, json.dumps(plan, indent=1, sort_keys=True).encode())
        return
    differing = sorted(
        name
        for name in {*begun, *plan}
        if begun.get(name) != json.loads(json.dumps(plan.get(name)))
    )
    if differing:
        raise Conflict(
            f"{writer.record.name} was begun with another {', '.join(differing)}; choose another "
            f"--output, or remove {writer.folder} to begin anew"
        )


def _intact(folder: Path) -> np.ndarray:
    """Returns the entries up to the first whose rows or mask are not what it says."""
    try:
        log = (folder / _ENTRIES_NAME).read_bytes()
        entries = np.frombuffer(log[: len(log) // ENTRY.itemsize * ENTRY.itemsize], ENTRY)
        with (folder / ROWS_NAME).open("rb") as rows, (folder / MASKS_NAME).open("rb") as masks:
            for place, entry in enumerate(entries):
                data = rows.read(int(entry["num_bytes"]))
                mask = masks.read((int(entry["num_tokens"]) + 7) // 8)
                if checksum(data, mask) != int(entry["crc32"]):
                    return entries[:place]
    except FileNotFoundError:
        return np.zeros(0, ENTRY)
    return entries


def _end(entries: np.ndarray, of: str) -> int:
    if not len(entries):
        return 0
    last = entries[-1]
    if of == "rows":
        return int(last["first_byte"]) + int(last["num_bytes"])
    return int(last["mask_byte"]) + (int(last["num_tokens"]) + 7) // 8


def _appending(path: Path, end: int) -> BufferedWriter:
    """Returns a file cut to `end` bytes, to append to."""
    file = path.open("ab")
    file.truncate(end)
    file.seek(end)
    fsync(path.parent)
    return file
