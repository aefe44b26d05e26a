"""Writes a record so that a kill at any instant loses little, and never leaves half a record.

    DATA/.NAME.recording/plan.json              what is being recorded; another plan is refused
    DATA/.NAME.recording/PART.entries           an entry for each sequence, in the order of the data
    DATA/.NAME.recording/record/PART/rows.bin   as in the record, growing
    DATA/.NAME.recording/record/PART/masks.bin

An entry is written after what it points to. What a killed process has left counts up to the first
entry of which a checksum does not hold; the rest is cut off and asked for again. At the end the
entries are sorted, the manifest is written, and the folder `record` gets its place and name; what
only the writer needs stays behind until then, and is removed last.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import Conflict, CorruptData
from lectern_common.files import fsync, put_in_place, replaced_file, take_lock, write_atomic
from lectern_common.teacher.record.index import (
    ENTRY,
    checksum,
    comparable,
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
from student_trainer.record.digests import DigestSet

_PLAN_NAME = "plan.json"
_LOCK_NAME = "lock"
# A process whose command was killed gives the lock back at the end of what it is waiting for.
LOCK_PATIENCE_SECONDS = 5.0
# An entry beside its own checksum: a power cut may leave half of it, or zeros.
_LOGGED = np.dtype([*ENTRY.descr, ("entry_crc32", "<u4")])
_ENTRIES_AT_ONCE = 1 << 16


def recording_path(record: Path) -> Path:
    """Returns where a record is while it is being made."""
    return record.with_name(f".{record.name}.recording")


class PartWriter:
    """The growing files of one part. Use as a context manager.

    Args:
        folder: of the part; made if missing.
        log: the file of its entries.

    Attributes:
        sequences: recorded so far.
        rows: of those.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._log_path = folder, log
        self._recorded = DigestSet()  # of _identity
        self._row_bytes = self._mask_bytes = self.sequences = self.rows = 0
        for entry, mask in _intact(folder, log):
            self._count(entry, mask)
        self._rows = _appending(folder / ROWS_NAME, self._row_bytes)
        self._masks = _appending(folder / MASKS_NAME, self._mask_bytes)
        self._log = _appending(log, self.sequences * _LOGGED.itemsize)
        self._unsaved = bytearray()

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self._rows, self._masks, self._log):
            file.close()

    @property
    def bytes_of_rows(self) -> int:
        return self._row_bytes

    def has(self, ids_S: npt.NDArray[np.uint32], asked_S: npt.NDArray[np.bool_]) -> bool:
        """Returns whether a sequence is recorded with just these positions."""
        return _identity(sequence_key(ids_S, asked_S), mask_bytes(ids_S, asked_S)) in self._recorded

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
        key, mask = sequence_key(ids_S, asked_S), mask_bytes(ids_S, asked_S)
        if _identity(key, mask) in self._recorded:
            return
        entries = np.zeros(1, ENTRY)
        entries[0] = (
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
        entry = entries.tobytes()
        self._unsaved += entry + zlib.crc32(entry).to_bytes(4, "little")
        self._count(entries[0], mask)

    def _count(self, entry: np.void, mask: bytes) -> None:
        self.sequences += 1
        self.rows += int(entry["num_rows"])
        self._row_bytes += int(entry["num_bytes"])
        self._mask_bytes += len(mask)
        self._recorded.add(_identity(bytes(entry["key"]), mask))

    def save(self) -> None:
        """Makes what was added so far survive a power cut."""
        for file in (self._rows, self._masks):
            file.flush()
            os.fsync(file.fileno())
        self._log.write(self._unsaved)
        self._unsaved.clear()
        self._log.flush()
        os.fsync(self._log.fileno())

    def write_index(self) -> None:
        """Saves everything, and writes the index; there is at least one sequence."""
        self.save()
        logged = np.memmap(self._log_path, _LOGGED, "r")  # only this process writes it
        order = np.argsort(comparable(logged["key"]), kind="stable")
        with replaced_file(self._folder / INDEX_NAME) as path, path.open("wb") as file:
            for first in range(0, len(order), _ENTRIES_AT_ONCE):
                chosen = logged[order[first : first + _ENTRIES_AT_ONCE]]
                entries = np.empty(len(chosen), ENTRY)
                for name in ENTRY.names or ():
                    entries[name] = chosen[name]
                file.write(entries.tobytes())


class RecordWriter:
    """A record that is being made. Use `recording`, which holds its lock.

    Attributes:
        record: where it will be.
        work: where it is until then, with what only the writer needs.
        folder: its files, in `work`.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.work = recording_path(record)
        self.folder = self.work / "record"

    def part(self, name: str) -> PartWriter:
        return PartWriter(self.folder / name, self.work / f"{name}.entries")

    def drop(self, name: str) -> None:
        """Removes what is there of a part."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.work / f"{name}.entries").unlink(missing_ok=True)

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
            if path.is_file() and path.name != MANIFEST_NAME
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
        """Returns whether all of it is written: its writer was killed in `finish`."""
        return self.record.exists() or (self.folder / MANIFEST_NAME).exists()

    def put_in_place(self) -> None:
        """Gives the record its name, and removes what only the writer needs."""
        if not self.record.exists():
            put_in_place(self.folder, self.record)
        shutil.rmtree(self.work, ignore_errors=True)


@contextmanager
def recording(
    record: Path,
    plan: dict[str, object],
    option: str = "--output",
    again: str = "run the same command again",
) -> Iterator[RecordWriter]:
    """Yields the writer of a record that is not there yet, going on where a killed one stopped.

    Args:
        record: its folder.
        plan: what decides its bytes, as JSON values.
        option: that names the record, for messages.
        again: what to do once a full disk has space again.

    Raises:
        Conflict: the record is there, is being made by another process, or was begun by another
            plan.
        DiskFull: there is no room.
    """
    writer = RecordWriter(record)
    if not writer.work.exists():
        _require_absent(record)
    with disk_full_as_error(f"the record {record.name}", again):
        writer.work.mkdir(parents=True, exist_ok=True)
        try:
            lock = take_lock(writer.work / _LOCK_NAME, LOCK_PATIENCE_SECONDS)
        except (BlockingIOError, FileNotFoundError):  # or it was finished at this moment
            raise Conflict(f"{record.name} is being made by another process") from None
        try:
            if not (writer.work / _PLAN_NAME).exists() and record.exists():
                shutil.rmtree(writer.work, ignore_errors=True)
            # A record that is there without `folder` is this one: killed after it had its name.
            if writer.folder.exists() or not writer.work.exists():
                _require_absent(record)
            _require_same_plan(writer, plan, option)
            if not record.exists():
                writer.folder.mkdir(exist_ok=True)
            # Of files that a killed process was replacing.
            for path in writer.folder.rglob(".*.tmp"):
                path.unlink()
            yield writer
        finally:
            os.close(lock)


def _require_absent(record: Path) -> None:
    if record.exists():
        raise Conflict(
            f"{record} is there already; choose another name, or delete it with `lectern record "
            f"delete {record.name}`"
        )


def _require_same_plan(writer: RecordWriter, plan: dict[str, object], option: str) -> None:
    path = writer.work / _PLAN_NAME
    try:
        begun = json.loads(path.read_bytes())
    except FileNotFoundError:
        begun = None
    except ValueError:
        raise CorruptData(f"{path} is damaged; remove {writer.work} to begin anew") from None
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
            f"{option}, or remove {writer.work} to begin anew"
        )


def _identity(key: bytes, mask: bytes) -> bytes:
    """Returns what tells an entry from all others: its tokens, and which of them have a row."""
    return hashlib.blake2b(key + mask, digest_size=16).digest()


def _intact(folder: Path, log: Path) -> Iterator[tuple[np.void, bytes]]:
    """Yields (entry, its mask) up to the first that is not whole, or whose rows or mask are not."""
    if not all(path.exists() for path in (log, folder / ROWS_NAME, folder / MASKS_NAME)):
        return
    with (
        log.open("rb") as logged,
        (folder / ROWS_NAME).open("rb") as rows,
        (folder / MASKS_NAME).open("rb") as masks,
    ):
        while len(data := logged.read(_LOGGED.itemsize)) == _LOGGED.itemsize:
            entry = np.frombuffer(data, _LOGGED)[0]
            if zlib.crc32(entry.tobytes()[: ENTRY.itemsize]) != int(entry["entry_crc32"]):
                return
            recorded = rows.read(int(entry["num_bytes"]))
            mask = masks.read((int(entry["num_tokens"]) + 7) // 8)
            if checksum(recorded, mask) != int(entry["crc32"]):
                return
            yield entry, mask


def _appending(path: Path, end: int) -> BufferedWriter:
    """Returns a file cut to `end` bytes, to append to."""
    file = path.open("ab")
    file.truncate(end)
    file.seek(end)
    fsync(path.parent)
    return file
