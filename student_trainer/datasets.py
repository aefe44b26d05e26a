"""Rows by index, checked when opened; the rows of step s are a pure function of (seed, s).

So resuming sets a number and replays nothing, and every run with the same seed, data and sizes
sees the same rows in the same order, whatever else differs.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from lectern_common.errors import CorruptData, InvalidSpec
from lectern_common.shards import ShardManifest
from student_trainer.batch_sources import (
    SYNTHETIC_ROWS,
    Batch,
    Tokens,
    TokenStream,
    batch_of,
    open_stream,
    synthetic_row,
)

_log = structlog.get_logger()

# Tokens looked at together when ids are checked.
_SCAN_TOKENS = 1 << 22
_NAMED_BAD_ROWS = 5


class Rows(Protocol):
    """A fixed number of rows of seq_len + 1 tokens."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Tokens:
        """Returns row `index`, 0 <= index < len(self): uint32 [seq_len + 1]."""
        ...


@dataclass(frozen=True)
class StreamRows:
    """Row i begins at token i * seq_len; the last token of a row is the first of the next."""

    stream: TokenStream
    seq_len: int

    def __len__(self) -> int:
        return max(0, len(self.stream) - 1) // self.seq_len

    def row(self, index: int) -> Tokens:
        return self.stream.read(index * self.seq_len, self.seq_len + 1)


@dataclass(frozen=True)
class SyntheticRows:
    """Random tokens: nothing is read."""

    seed: int
    seq_len: int
    vocab_size: int

    def __len__(self) -> int:
        return SYNTHETIC_ROWS

    def row(self, index: int) -> Tokens:
        return synthetic_row(self.seed, index, self.seq_len, self.vocab_size)


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of another set, by index into it."""

    rows: Rows
    indices: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def row(self, index: int) -> Tokens:
        return self.rows.row(int(self.indices[index]))


@dataclass(frozen=True)
class OpenedDataset:
    """`rows` are the good ones; `bad_rows` the numbers of those left out."""

    rows: ChosenRows
    manifest: ShardManifest
    bad_rows: list[int]


def open_dataset(
    folder: Path, seq_len: int, vocab_size: int, max_bad_rows_fraction: float
) -> OpenedDataset:
    """Returns the rows of a shard folder whose ids are all below `vocab_size`.

    Reads every byte twice: the hash against the manifest's, the ids against the vocabularies.

    Raises:
        NotFound: no dataset there.
        CorruptData: sizes, hash or ids are not what the manifest says, or more than
            `max_bad_rows_fraction` of the rows have ids that the student lacks.
        InvalidSpec: there is not one row of seq_len + 1 tokens.
    """
    started = time.monotonic()
    stream, manifest = open_stream(folder)
    rows = StreamRows(stream, seq_len)
    if len(rows) < 1:
        raise InvalidSpec(
            [("data.seq_len", f"{folder} has {len(rows.stream)} tokens; a row needs {seq_len} + 1")]
        )
    for positions in _ids_from(rows.stream, manifest.vocab_size):
        position = int(positions[0])
        token = rows.stream.read(position, 1)[0]
        raise CorruptData(
            f"token {position} of {folder} is {token}, its manifest says every id is below "
            f"{manifest.vocab_size}; prepare the data again"
        )
    bad = _rows_with_ids_from(rows, vocab_size)
    share = len(bad) / len(rows)
    named = ", ".join(str(index) for index in bad[:_NAMED_BAD_ROWS])
    if bad and share > max_bad_rows_fraction:
        raise CorruptData(
            f"{len(bad)} of {len(rows)} rows of {folder} ({share:.2%}) have ids beyond the "
            f"student's {vocab_size}, the first are rows {named}; data.max_bad_rows_fraction is "
            f"{max_bad_rows_fraction}. Prepare the data with the student's tokenizer"
        )
    if bad:
        _log.warning("rows_left_out", folder=str(folder), rows=len(bad), first=named)
    _log.info("data_checked", rows=len(rows), seconds=round(time.monotonic() - started, 3))
    good = np.setdiff1d(np.arange(len(rows)), np.array(bad, np.int64), assume_unique=True)
    return OpenedDataset(ChosenRows(rows, good), manifest, bad)


def held_out(rows: Rows, fraction: float) -> tuple[ChosenRows, ChosenRows]:
    """Returns (training rows, validation rows): the last `fraction`, at least one row, held out.

    Raises:
        InvalidSpec: one of them would be empty.
    """
    num_validation = max(1, round(len(rows) * fraction))
    first = len(rows) - num_validation
    if first < 1:
        raise InvalidSpec(
            [
                (
                    "data.validation_fraction",
                    f"{len(rows)} rows are too few to hold {fraction} of them out",
                )
            ]
        )
    indices = np.arange(len(rows))
    return ChosenRows(rows, indices[:first]), ChosenRows(rows, indices[first:])


def spread(rows: Rows, at_most: int) -> ChosenRows:
    """Returns up to `at_most` rows, evenly spaced: always the same ones."""
    count = min(len(rows), at_most)
    return ChosenRows(rows, np.arange(count) * len(rows) // count)


class ShuffledBatches:
    """Training batches by step: each epoch is a permutation of the rows, drawn from (seed, epoch).

    Epochs follow each other without a gap; a batch may span two. Not safe for several threads.
    """

    def __init__(self, rows: Rows, sequences_per_step: int, seed: int) -> None:
        """Raises InvalidSpec where there are fewer rows than one step takes."""
        if len(rows) < sequences_per_step:
            raise InvalidSpec(
                [
                    (
                        "batch.sequences_per_step",
                        f"a step takes {sequences_per_step} rows, the training data has "
                        f"{len(rows)}; lower it, or data.seq_len, or prepare more data",
                    )
                ]
            )
        self._rows = rows
        self._sequences_per_step = sequences_per_step
        self._seed = seed
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def batch_at(self, step: int) -> Batch:
        """Returns the rows of optimizer step `step` (the first is 0)."""
        first = step * self._sequences_per_step
        return batch_of([self._row(first + offset) for offset in range(self._sequences_per_step)])

    def _row(self, drawn: int) -> Tokens:
        epoch, place = divmod(drawn, len(self._rows))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, permutation(self._seed, epoch, len(self._rows))
        return self._rows.row(int(self._order[place]))


def in_order(rows: Rows, sequences: int) -> Iterator[Batch]:
    """Yields all rows once, in order, `sequences` at a time; the last batch may be smaller."""
    for first in range(0, len(rows), sequences):
        last = min(first + sequences, len(rows))
        yield batch_of([rows.row(index) for index in range(first, last)])


def permutation(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """Returns 0 .. count - 1 shuffled, the same in every numpy release.

    Raw Philox output is stable by numpy's policy (NEP 19); Generator.permutation is not.
    """
    keys = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(count)
    return np.asarray(np.argsort(np.asarray(keys), kind="stable"), np.int64)


def _ids_from(stream: TokenStream, bound: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yields the positions of tokens at or above `bound`, rising, some at a time, never none."""
    for start in range(0, len(stream), _SCAN_TOKENS):
        block = stream.read(start, min(_SCAN_TOKENS, len(stream) - start))
        offsets = np.flatnonzero(block >= bound)
        if len(offsets):
            yield start + offsets


def _rows_with_ids_from(rows: StreamRows, bound: int) -> list[int]:
    """Returns the rows that hold an id >= bound, as input or as label, in rising order."""
    found = [np.empty(0, np.int64)]
    for positions in _ids_from(rows.stream, bound):
        found.append(np.unique([positions // rows.seq_len, (positions - 1) // rows.seq_len]))
    numbers = np.unique(np.concatenate(found))
    return [int(number) for number in numbers[(numbers >= 0) & (numbers < len(rows))]]
