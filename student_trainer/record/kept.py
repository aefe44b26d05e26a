"""Keeps what a run receives from its teacher, for the record that `teacher.record_to` names.

    DATA/.NAME.recording/received/RANK/PART/...    what each rank received, in the order of arrival
    DATA/.NAME.recording/received/RANK/PART.entries

When the run has succeeded, the rows are put in the order of the data, and the record gets its
name. So it has the bytes that `lectern precompute` would have made of the same rows, however often
the run was stopped, and on however many ranks it was trained. A row that is received again, in a
later epoch or after a resume, is kept once: of draws, the first. What the run never asked about is
not in the record.
"""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import DiskFull
from lectern_common.teacher.record.manifest import RecordFacts, RecordManifest, RecordPart
from lectern_common.teacher.record.reader import PartReader
from lectern_common.wire.formats import Representation
from student_trainer.journal.disk_full import disk_full_as_error
from student_trainer.record.facts import meaning_of
from student_trainer.record.precompute import PlannedPart, entry_of
from student_trainer.record.writer import PartWriter, RecordWriter
from student_trainer.stop import Stop
from student_trainer.targets import TargetsProvider, TeacherTargets, for_new_texts
from student_trainer.teacher.recorded_rows import codec_of

RECEIVED = "received"
AGAIN = "resume the run"
_SAVE_BYTES = 64 << 20


class Kept:
    """What one rank receives. Safe to use from several threads.

    Args:
        work: of the record, on a file system that all ranks share.
        rank: of this process.
        facts: of the record.
        parts: that it will have, in order.
    """

    def __init__(self, work: Path, rank: int, facts: RecordFacts, parts: list[PlannedPart]) -> None:
        self._work, self._rank, self._facts, self._parts = work, rank, facts, parts
        self._files: dict[str, PartWriter] = {}
        self._lock = threading.Lock()
        self._unsaved = 0
        self._full: DiskFull | None = None

    def around(self, teacher: TargetsProvider) -> "KeepingTeacher":
        """Returns a teacher that answers as this one does, and whose answers are kept."""
        return KeepingTeacher(teacher, self)

    def open(self) -> None:
        """Opens this rank's files, and cuts off what a killed process has half written.

        Raises:
            DiskFull: there is no room.
        """
        folder = self._work / RECEIVED / str(self._rank)
        with self._writing():
            for part in self._parts:
                log = folder / f"{part.name}.entries"
                self._files[part.name] = PartWriter(folder / part.name, log)

    def keep(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
        targets: TeacherTargets,
    ) -> None:
        """Keeps an answer, if it is of a kind that the record will have.

        Raises:
            DiskFull: there is no room.
        """
        part = self._part(representation, temperature)
        if part is None:
            return
        files, first = self._files[part.name], 0
        codec = codec_of(part.format, meaning_of(self._facts, part, None))
        for ids_S, asked_S in zip(sequences, positions, strict=True):
            last = first + int(np.count_nonzero(asked_S))
            if last > first:
                with self._lock:
                    is_there = files.has(ids_S, asked_S)
                if not is_there:
                    self._add(files, ids_S, asked_S, codec.encode(targets.rows(first, last)))
            first = last

    def save(self) -> None:
        """Makes everything kept so far survive a power cut. Raises DiskFull."""
        with self._lock, self._writing():
            self._save()

    def close(self) -> None:
        """Closes this rank's files; what was not saved may be lost."""
        with self._lock:
            for files in self._files.values():
                with suppress(OSError):
                    files.__exit__()
            self._files.clear()

    def finish(
        self, writer: RecordWriter, stop: Stop, progressed: Callable[[], None]
    ) -> RecordManifest | None:
        """Makes the record of what all ranks have received, and gives it its name.

        Returns its manifest; None if they have received nothing: then there is no record.

        Args:
            writer: of the record; its lock is held.
            stop: ends it with StopRequested; the run's next end begins it anew.
            progressed: called now and then.

        Raises:
            StopRequested: a stop was requested.
            DiskFull: there is no room.
            CorruptData: what was received is damaged.
        """
        self.save()
        self.close()
        with disk_full_as_error(f"the record {writer.record.name}", AGAIN):
            done = [self._put_in_order(writer, part, stop, progressed) for part in self._parts]
            there = [part for part in done if part is not None]
            if not there:
                shutil.rmtree(writer.work, ignore_errors=True)
                return None
            return writer.finish(self._facts, there)

    def _put_in_order(
        self, writer: RecordWriter, part: PlannedPart, stop: Stop, progressed: Callable[[], None]
    ) -> RecordPart | None:
        """Writes a part in the order of the data; returns its entry, None if it has no rows."""
        received = [
            found
            for folder in sorted((self._work / RECEIVED).iterdir())
            if (found := _received(folder, part)) is not None
        ]
        unsaved = 0
        with writer.part(part.name) as files:
            for batch in part.batches():
                stop.check()
                progressed()
                for ids_S, asked_S in batch.sequences():
                    if files.has(ids_S, asked_S):
                        continue
                    rows = (one.exact(ids_S, asked_S) for one in received)
                    data = next((of for of in rows if of is not None), None)
                    if data is not None:
                        files.add(ids_S, asked_S, data)
                        unsaved += len(data)
                if unsaved >= _SAVE_BYTES:
                    files.save()
                    unsaved = 0
            if files.sequences:
                files.write_index()
                return entry_of(part, files)
        writer.drop(part.name)
        return None

    def _part(self, representation: Representation, temperature: float) -> PlannedPart | None:
        wanted = (representation.kind, representation.top_k, representation.num_draws)
        for part in self._parts:
            asked = part.format.representation
            if part.temperature in (None, temperature) and wanted == (
                asked.kind,
                asked.top_k,
                asked.num_draws,
            ):
                return part
        return None

    def _add(
        self,
        files: PartWriter,
        ids_S: npt.NDArray[np.uint32],
        asked_S: npt.NDArray[np.bool_],
        data: npt.NDArray[np.uint8],
    ) -> None:
        with self._lock, self._writing():
            files.add(ids_S, asked_S, data)
            self._unsaved += len(data)
            if self._unsaved >= _SAVE_BYTES:
                self._save()

    def _save(self) -> None:
        for files in self._files.values():
            files.save()
        self._unsaved = 0

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Says that the disk is full, now and ever after: half a row may have been written."""
        if self._full is not None:
            raise self._full
        try:
            with disk_full_as_error("what the teacher has sent", AGAIN):
                yield
        except DiskFull as error:
            self._full = error
            raise


@dataclass(frozen=True)
class KeepingTeacher:
    """A teacher whose answers are kept."""

    teacher: TargetsProvider
    kept: Kept

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider; also raises DiskFull."""
        targets = self.teacher.score(sequences, positions, representation, temperature)
        self.kept.keep(sequences, positions, representation, temperature, targets)
        return targets

    def for_new_texts(self) -> TargetsProvider:
        """See AskedOfNewTexts: a record is of the run's data, so it keeps none of these."""
        return for_new_texts(self.teacher)


def _received(folder: Path, part: PlannedPart) -> PartReader | None:
    """Returns a reader of what a rank has received of a part; None if that is nothing."""
    with PartWriter(folder / part.name, folder / f"{part.name}.entries") as files:
        if not files.sequences:
            return None
        files.write_index()
        entry = entry_of(part, files)
    return PartReader(folder / part.name, entry)
