"""Counts the rows that a run makes of a dataset, and what they make of its chats, without torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.checks.documents import (
    documents_held_out,
    require_documents,
    require_short_chats,
)
from lectern_common.checks.needs.estimate import DataCounts
from lectern_common.checks.rules import (
    left_out_words,
    require_few_unknown,
    require_usable,
    rows_held_out,
)
from lectern_common.errors import CorruptData
from lectern_common.spec.data import DataSpec
from lectern_common.tokens.chat_rows import (
    LONG_CHATS,
    ChatShares,
    LongChats,
    Packing,
    best_fit,
    chat_lengths,
    chat_shares,
    fit,
    learnt_labels,
)
from lectern_common.tokens.shards import (
    ShardManifest,
    blocks_of,
    open_masks,
    open_shards,
    read_chat_numbers,
    read_document_starts,
)

_Ints = npt.NDArray[np.int64]


class DatasetRows:
    """The rows of a dataset, as the trainer makes them.

    Rows of text without labels are not known: few texts have them.

    Attributes:
        manifest: of the dataset.
        of: "chat"; "row" for text, and for chats that are read as text.
        total: rows or chats of the dataset.
        unknown: indices of those with ids that the student lacks.
    """

    def __init__(
        self,
        folder: Path,
        manifest: ShardManifest,
        data: DataSpec,
        width: int | None = None,
        *,
        packs_chats: bool = True,
    ) -> None:
        """Reads the shards if they may have ids that the student lacks, and masks of chats.

        Args:
            folder: of the dataset.
            manifest: its manifest.
            data: says how rows are made.
            width: the student's ids; None if unknown, then no id counts as lacking.
            packs_chats: see RunFolder.

        Raises:
            CorruptData: a file does not match the manifest.
            InvalidSpec: rows cannot be made in this way.
        """
        across = data.attention_across_documents is not False
        laid_out = manifest if packs_chats else manifest.as_text()
        require_documents(folder, laid_out, data.seq_len, attention_across=across)
        self.manifest = manifest
        self.of = "chat" if laid_out.is_chats else "row"
        self._folder, self._data, self._width, self._seq_len = folder, data, width, data.seq_len
        if self.of == "row":
            # The first token of a stream is no label, unless a row begins before it.
            first = int(manifest.row_bos_id is None)
            self.total = (manifest.total_tokens - first) // data.seq_len
            self.unknown = self._unknown(lambda at: rows_with(at, data.seq_len, self.total, first))
            if width is not None and (manifest.row_bos_id or 0) >= width:
                self.unknown = np.arange(self.total)
            return
        rule = data.long_chats or LONG_CHATS
        starts = chat_starts(folder, manifest)
        lengths = chat_lengths(starts, manifest.total_tokens)
        require_short_chats(folder, lengths, data.seq_len, rule)
        self.total = len(lengths)
        self.unknown = self._unknown(lambda at: chats_with(at, starts, data.seq_len))
        limits = [data.seq_len + 1, manifest.total_tokens]
        labels, whole = _labels(folder, manifest, starts, limits)
        # As in the trainer, a chat is counted once: an unknown one is neither dropped nor cut.
        good = np.setdiff1d(np.arange(self.total), self.unknown)
        self._fitted = fit(lengths[good], data.seq_len, rule, labels[good] > 0)
        chosen = good[self._fitted.chosen]
        numbers = read_chat_numbers(folder, manifest)
        self._labels, self._all_labels = labels[chosen], int(whole.sum())
        self._chat_of = chosen if numbers is None else numbers[chosen]

    def require_usable(self) -> None:
        """Raises Incompatible if too few rows or chats have only ids of the student."""
        share, width = self._data.max_bad_rows_fraction, self._width or 0
        bad = [int(index) for index in self.unknown]
        require_few_unknown(self._folder, self.of, bad, self.total, width, share)
        dropped, unlabelled = self._dropped_and_unlabelled
        left_out = left_out_words(len(bad), dropped, unlabelled)
        require_usable(self._folder, self.of, self.usable, left_out)

    @property
    def usable(self) -> int:
        """Rows or chats that are not left out."""
        return self.total - len(self.unknown) - sum(self._dropped_and_unlabelled)

    def count(self) -> int:
        """Returns the rows that all usable rows or chats make together."""
        return self.usable if self.of == "row" else len(self._packed(self._fitted.lengths))

    def counts_without(self, held_out: float) -> tuple[int, int]:
        """Returns the rows to train on, and those held out for validation; see `counts`."""
        found = self.counts(held_out)
        return found.training_rows, found.held_out_rows

    def counts(self, held_out: "float | DatasetRows") -> DataCounts:
        """Returns what is trained on and held out.

        Args:
            held_out: data.validation_fraction: of the rows, or of the chats; or the dataset that is
                held out.

        Raises:
            InvalidSpec: no rows would be left to train on.
        """
        if isinstance(held_out, DatasetRows):
            held, held_rows, ours = held_out.usable, held_out.count(), self.usable
        elif self.of == "row":
            held = held_rows = rows_held_out(self.usable, held_out)
            ours = self.usable - held
        else:
            held = documents_held_out(self._chat_of, held_out)
            ours = self.usable - held
            held_rows = len(self._packed(self._fitted.lengths[ours:]))
        if self.of == "row":
            unknown = len(self.unknown)
            return DataCounts("row", self.total, ours, ours, held, held_rows, unknown)
        lengths = self._fitted.lengths[:ours]
        packing = self._packed(lengths)
        labels = int(self._labels[:ours].sum())
        return DataCounts(
            of="chat",
            total=self.total,
            training=ours,
            training_rows=len(packing),
            held_out=held,
            held_out_rows=held_rows,
            unknown=len(self.unknown),
            cut=self._fitted.cut,
            dropped=self._fitted.dropped,
            unlabelled=self._fitted.unlabelled,
            padding=packing.padding(lengths, self._seq_len),
            labels=labels,
            labels_of_positions=labels / max(1, len(packing) * self._seq_len),
            labels_lost=1 - int(self._labels.sum()) / max(1, self._all_labels),
        )

    @property
    def _dropped_and_unlabelled(self) -> tuple[int, int]:
        if self.of == "row":
            return 0, 0
        return self._fitted.dropped, self._fitted.unlabelled

    def _packed(self, lengths: npt.NDArray[np.int64]) -> Packing:
        return best_fit(lengths, self._seq_len + 1)

    def _unknown(self, of_places: Callable[[_Ints], _Ints]) -> _Ints:
        """Returns the rows or chats with ids that the student lacks; reads nothing if none can."""
        if self._width is None or self.manifest.vocab_size <= self._width:
            return np.empty(0, np.int64)
        found = [np.empty(0, np.int64)]
        for first, block in blocks_of(open_shards(self._folder, self.manifest)):
            found.append(of_places(first + np.flatnonzero(block >= self._width)))
        return np.unique(np.concatenate(found))


def rows_with(places: _Ints, seq_len: int, num_rows: int, first_label: int) -> _Ints:
    """Returns the rows of a stream that have a token at one of these places.

    Args:
        places: indices in the stream.
        seq_len: labels per row.
        num_rows: of the stream.
        first_label: 1 if a row's last label is also the first token of the next row; else 0.
    """
    rows = np.unique(np.concatenate([places // seq_len, (places - first_label) // seq_len]))
    return np.asarray(rows[(rows >= 0) & (rows < num_rows)], np.int64)


def chats_with(places: _Ints, starts: _Ints, seq_len: int) -> _Ints:
    """Returns the chats that have one of these places in their first seq_len + 1 tokens.

    `starts` are as in documents.bin.
    """
    chats = np.searchsorted(starts, places, side="right") - 1
    return np.unique(chats[places - starts[chats] <= seq_len])


def shares_of(
    folder: Path, manifest: ShardManifest, wanted: Sequence[tuple[int, LongChats]]
) -> list[ChatShares]:
    """Returns what rows of each wanted (seq_len, rule) make of chats; reads the masks once.

    Raises:
        CorruptData: the dataset does not match its manifest.
    """
    starts = chat_starts(folder, manifest)
    lengths = chat_lengths(starts, manifest.total_tokens)
    limits = [*(seq_len + 1 for seq_len, _ in wanted), manifest.total_tokens]
    labels = _labels(folder, manifest, starts, limits)
    return [
        chat_shares(lengths, within, labels[-1], seq_len, rule)
        for (seq_len, rule), within in zip(wanted, labels[:-1], strict=True)
    ]


def _labels(folder: Path, manifest: ShardManifest, starts: _Ints, limits: Sequence[int]) -> _Ints:
    """Returns the learnt labels in the first `limit` tokens of each chat, [len(limits), chats]."""
    masks = open_masks(folder, manifest)
    if masks is not None:
        return learnt_labels(masks, starts, limits)
    lengths = chat_lengths(starts, manifest.total_tokens)
    return np.asarray(np.minimum(lengths, np.array(limits)[:, None]) - 1, np.int64)


def chat_starts(folder: Path, manifest: ShardManifest) -> _Ints:
    """Returns where each chat of a dataset begins. Raises CorruptData if that is not recorded."""
    starts = read_document_starts(folder, manifest)
    if starts is None:
        raise CorruptData(f"{folder} does not record where its chats begin")
    return starts
