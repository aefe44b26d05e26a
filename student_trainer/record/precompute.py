"""Records a teacher's answers over all rows of a run's data, each sequence once.

The order of the sequences is that of the data, whatever the order of the answers: so two records of
the same data and teacher are equal byte for byte, and what a killed process left is gone on with.
Both hold for a teacher that answers independently of what it computes together (docs/teacher.md).
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lectern_common.teacher.record.manifest import RecordFormat, RecordPart
from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch
from student_trainer.record.writer import PartWriter, RecordWriter
from student_trainer.stop import SLICE_SECONDS, Stop
from student_trainer.targets import TargetsProvider, TeacherTargets
from student_trainer.teacher.recorded_rows import RowMeaning, codec_of

REQUESTS_IN_FLIGHT = 4  # for each server
# What a killed process may lose: so much of rows, or what was received in that time.
_SAVE_BYTES = 64 << 20
_SAVE_SECONDS = 2.0

_Ids = npt.NDArray[np.uint32]
_Asked = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PlannedPart:
    """A part to record.

    Attributes:
        batches: yields what it covers, the same in every call.
        num_batches: how many those are.
        num_sequences: how many rows of the data those hold.
        num_positions: how many labels of those count.
    """

    name: str
    format: RecordFormat
    temperature: float | None
    draw_set: int | None
    batches: Callable[[], Iterable[Batch]]
    num_batches: int
    num_sequences: int
    num_positions: int

    @property
    def representation(self) -> Representation:
        """What to ask for."""
        asked = self.format.representation
        if self.draw_set is None:
            return asked
        return Representation(asked.kind, num_draws=asked.num_draws, seed=self.draw_set)


class Reporter(Protocol):
    """Shows how far a recording is: the batches of the part that are done, and its rows' bytes."""

    def __call__(self, part: PlannedPart, batches: int, num_bytes: int) -> None: ...


def record_part(
    writer: RecordWriter,
    part: PlannedPart,
    teacher: TargetsProvider,
    meaning: RowMeaning,
    *,
    stop: Stop,
    report: Reporter = lambda part, batches, num_bytes: None,
    requests_in_flight: int = REQUESTS_IN_FLIGHT,
) -> RecordPart:
    """Records what is not there yet of a part; returns its entry of the manifest.

    Args:
        writer: of the record.
        part: what to record.
        teacher: asked, from several threads.
        meaning: of the rows' bytes.
        stop: ends it with StopRequested; what is recorded stays.
        report: called after each batch, and at the end.
        requests_in_flight: how many batches are asked about at a time.

    Raises:
        StopRequested: a stop was requested.
        OSError: the record cannot be written.
        LecternError: as TargetsProvider.score says.
    """
    codec = codec_of(part.format, meaning)
    temperature = 1.0 if part.temperature is None else part.temperature

    def ask(asked: Sequence[tuple[_Ids, _Asked]]) -> TeacherTargets:
        sequences, positions = [ids for ids, _ in asked], [wanted for _, wanted in asked]
        return teacher.score(sequences, positions, part.representation, temperature)

    with writer.part(part.name) as files:
        missing = _missing(part.batches(), files)
        saved = files.bytes_of_rows, time.monotonic()
        try:
            for question, targets in _in_order(missing, ask, stop, requests_in_flight):
                first = 0
                for ids_S, wanted_S in question.asked:
                    last = first + int(np.count_nonzero(wanted_S))
                    files.add(ids_S, wanted_S, codec.encode(targets.rows(first, last)))
                    first = last
                report(part, question.batch + 1, files.bytes_of_rows)
                now = files.bytes_of_rows, time.monotonic()
                if now[0] - saved[0] >= _SAVE_BYTES or now[1] - saved[1] >= _SAVE_SECONDS:
                    files.save()
                    saved = now
        finally:
            files.save()
        files.write_index()
        report(part, part.num_batches, files.bytes_of_rows)
        return entry_of(part, files)


def entry_of(part: PlannedPart, files: PartWriter) -> RecordPart:
    """Returns the entry of the manifest for a part with these files."""
    return RecordPart(
        name=part.name,
        format=part.format,
        temperature=part.temperature,
        draw_set=part.draw_set,
        sequences=files.sequences,
        rows=files.rows,
    )


@dataclass(frozen=True)
class _Question:
    """The sequences of one batch that are not recorded yet."""

    batch: int
    asked: list[tuple[_Ids, _Asked]]


def _missing(batches: Iterable[Batch], files: PartWriter) -> Iterator[_Question]:
    """Yields what to ask about each batch, but for batches that are recorded."""
    for index, batch in enumerate(batches):
        asked = [one for one in batch.sequences() if not files.has(*one)]
        if asked:
            yield _Question(index, asked)


def _in_order(
    questions: Iterator[_Question],
    ask: Callable[[Sequence[tuple[_Ids, _Asked]]], TeacherTargets],
    stop: Stop,
    in_flight: int,
) -> Iterator[tuple[_Question, TeacherTargets]]:
    """Yields questions with their answers, in the order of the questions."""
    pending: deque[tuple[_Question, Future[TeacherTargets]]] = deque()
    with ThreadPoolExecutor(in_flight, thread_name_prefix="record") as pool:
        try:
            for question in questions:
                stop.check()
                pending.append((question, pool.submit(ask, question.asked)))
                if len(pending) >= in_flight:
                    yield _answered(pending, stop)
            while pending:
                yield _answered(pending, stop)
        finally:
            for _, future in pending:
                future.cancel()


def _answered(
    pending: "deque[tuple[_Question, Future[TeacherTargets]]]", stop: Stop
) -> tuple[_Question, TeacherTargets]:
    question, future = pending.popleft()
    while True:
        stop.check()
        try:
            return question, future.result(timeout=SLICE_SECONDS)
        except TimeoutError:
            if future.done():
                return question, future.result()
