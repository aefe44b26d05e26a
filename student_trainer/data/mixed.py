"""Rows of several sources, mixed by weight: of which source each row of a step is, and which row.

Both are pure functions of (seed, step). Each row of a step is of a source drawn by weight,
independently of the others; within a source, rows come in epochs, each a permutation drawn from
(seed, source, epoch), so that a source's rows are seen equally often whatever the others' sizes.

Legend: B rows of a step, K sources.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from student_trainer.batch import Batch, Tokens
from student_trainer.data.rows import Rows, batch_from
from student_trainer.seeds import Key, raw_bits, uniforms

_Ints = npt.NDArray[np.int64]

# Draws made at a time, about.
_DRAWS = 4096


@dataclass(frozen=True)
class JoinedRows:
    """The rows of several datasets, one after the other; all have the same seq_len.

    If documents are kept apart in one of them, then a row of any other is one document.
    """

    parts: Sequence[Rows]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def seq_len(self) -> int:
        return self.parts[0].seq_len

    @property
    def firsts(self) -> _Ints:
        """The index of each part's first row, [K]."""
        return np.cumsum([0, *(len(part) for part in self.parts)])[:-1]

    def row(self, index: int) -> Tokens:
        part, within = self._place(index)
        return part.row(within)

    def counted(self, index: int) -> npt.NDArray[np.bool_] | None:
        part, within = self._place(index)
        return part.counted(within)

    def position_ids(self, index: int) -> _Ints | None:
        part, within = self._place(index)
        position_ids = part.position_ids(within)
        if position_ids is None and any(keeps_documents_apart(one) for one in self.parts):
            return np.arange(self.seq_len)
        return position_ids

    def num_inputs(self, index: int) -> int:
        part, within = self._place(index)
        return part.num_inputs(within)

    def _place(self, index: int) -> tuple[Rows, int]:
        for part in self.parts:
            if index < len(part):
                return part, index
            index -= len(part)
        raise IndexError(index)


def keeps_documents_apart(rows: Rows) -> bool:
    """Returns whether the rows say where their documents begin: all do, or none."""
    return len(rows) > 0 and rows.position_ids(0) is not None


class SourceMix:
    """Of which source each row of a step is. Not thread-safe.

    Args:
        weights: of the sources, each above 0; only their ratios matter.
        sequences_per_step: B, of all ranks together.
        seed: the run's.
    """

    def __init__(self, weights: Sequence[float], sequences_per_step: int, seed: int) -> None:
        self._bounds = np.cumsum(weights) / np.sum(weights)
        self._rows = sequences_per_step
        self._seed = seed
        # Draws are made for this many steps at a time; the draws of a step do not depend on more.
        self._steps = max(1, _DRAWS // sequences_per_step)
        self._before = [np.zeros(len(weights), np.int64)]
        self._block, self._drawn = -1, np.empty((0, 0), np.int64)

    def sources_of(self, step: int) -> _Ints:
        """Returns the source of each row of a step, int64 [B]."""
        block, within = divmod(step, self._steps)
        return np.asarray(self._sources(block)[within])

    def rows_before(self, step: int) -> _Ints:
        """Returns how many rows of each source all steps before this one have, int64 [K].

        The first call of a resumed run draws them all again: about a second for 10^8 rows.
        """
        block, within = divmod(step, self._steps)
        while len(self._before) <= block:
            last = len(self._before) - 1
            self._before.append(self._before[last] + self._counts(self._sources(last)))
        return np.asarray(self._before[block] + self._counts(self._sources(block)[:within]))

    def _sources(self, block: int) -> _Ints:
        if block != self._block:
            drawn = uniforms(Key.SOURCES, (self._seed, block), self._steps * self._rows)
            sources = np.searchsorted(self._bounds[:-1], drawn, side="right")
            self._block, self._drawn = block, sources.reshape(self._steps, self._rows)
        return self._drawn

    def _counts(self, sources: _Ints) -> _Ints:
        return np.bincount(sources.ravel(), minlength=len(self._bounds))


class MixedBatches:
    """Training batches by step of several sources; `Batch.sources_B` says whose each row is.

    Not thread-safe.
    """

    def __init__(
        self, rows: JoinedRows, mix: SourceMix, seed: int, rank: int = 0, ranks: int = 1
    ) -> None:
        """Batches of one rank: `batch_at` returns part `rank` of the `ranks` equal parts of a step.

        The rows of a step do not depend on the number of ranks.
        """
        self._rows = rows
        self._firsts = rows.firsts
        self._mix = mix
        self._seed = seed
        self._rank, self._ranks = rank, ranks
        self._orders: dict[int, tuple[int, _Ints]] = {}

    def batch_at(self, step: int) -> Batch:
        """Returns this rank's rows of optimizer step `step` (0-based)."""
        sources_B = self._mix.sources_of(step)
        drawn = self._mix.rows_before(step)
        indices = []
        for source in sources_B.tolist():
            indices.append(self._firsts[source] + self._index(source, int(drawn[source])))
            drawn[source] += 1
        share = len(indices) // self._ranks
        own = slice(self._rank * share, (self._rank + 1) * share)
        batch = batch_from(self._rows, [int(index) for index in indices[own]])
        return replace(batch, sources_B=sources_B[own])

    def epoch_of(self, source: int, step: int) -> int:
        """Returns in which of its epochs a source is at the beginning of a step."""
        return int(self._mix.rows_before(step)[source]) // len(self._rows.parts[source])

    def _index(self, source: int, drawn: int) -> int:
        count = len(self._rows.parts[source])
        epoch, place = divmod(drawn, count)
        if self._orders.get(source, (-1,))[0] != epoch:
            self._orders[source] = epoch, source_order(self._seed, source, epoch, count)
        return int(self._orders[source][1][place])


def source_order(seed: int, source: int, epoch: int, count: int) -> _Ints:
    """Returns the order of a source's rows in one of its epochs: 0 .. count - 1 shuffled."""
    keys = raw_bits(Key.SOURCE_ORDER, (seed, source, epoch), count)
    return np.asarray(np.argsort(keys, kind="stable"), np.int64)
