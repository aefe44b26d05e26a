"""Counts the rows that a run makes of a dataset, and what they make of its chats, without torch."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.checks.documents import (
    documents_held_out,
    require_documents,
    require_short_chats,
)
from lectern_common.checks.rules import rows_held_out
from lectern_common.errors import CorruptData
from lectern_common.spec.sections import DataSpec
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
    open_masks,
    read_chat_numbers,
    read_document_starts,
)


class DatasetRows:
    """The rows of a dataset; ids that the student lacks and missing labels are not known yet.

    Attributes:
        manifest: of the dataset.
        num_chats: None for text, and for chats that are read as text.
    """

    def __init__(
        self, folder: Path, manifest: ShardManifest, data: DataSpec, *, packs_chats: bool = True
    ) -> None:
        """`data` says how rows are made; see RunFolder.packs_chats.

        Raises:
            CorruptData: documents.bin or chats.bin does not match the manifest.
            InvalidSpec: rows cannot be made in this way.
        """
        across = data.attention_across_documents is not False
        laid_out = manifest if packs_chats else manifest.as_text()
        require_documents(folder, laid_out, data.seq_len, attention_across=across)
        self.manifest = manifest
        self.num_chats: int | None = None
        self._seq_len = data.seq_len
        if laid_out.is_chats:
            rule = data.long_chats or LONG_CHATS
            lengths = chat_lengths(_starts(folder, manifest), manifest.total_tokens)
            require_short_chats(folder, lengths, data.seq_len, rule)
            self.num_chats = len(lengths)
            fitted = fit(lengths, data.seq_len, rule)
            self._lengths, numbers = fitted.lengths, read_chat_numbers(folder, manifest)
            self._chat_of = fitted.chosen if numbers is None else numbers[fitted.chosen]

    def count(self) -> int:
        """Returns the rows of the whole dataset."""
        if self.num_chats is None:
            # The first token of a stream is no label, unless a row begins before it.
            labels = self.manifest.total_tokens - (self.manifest.row_bos_id is None)
            return labels // self._seq_len
        return len(self._packing)

    def counts_without(self, held_out: float) -> tuple[int, int]:
        """Returns the rows to train on, and those held out for validation.

        Args:
            held_out: data.validation_fraction: of the rows, or of the chats.

        Raises:
            InvalidSpec: no rows would be left to train on.
        """
        if self.num_chats is None:
            rows = self.count()
            validation = rows_held_out(rows, held_out)
            return rows - validation, validation
        num_held = documents_held_out(self._chat_of, held_out)
        parts = np.split(self._lengths, [-num_held])
        training, validation = (len(best_fit(part, self._seq_len + 1)) for part in parts)
        return training, validation

    def filled(self) -> float:
        """Returns the share of the rows' positions that holds tokens; the rest is padding."""
        if self.num_chats is None:
            return 1.0
        used = np.minimum(self._packing.row_tokens(self._lengths), self._seq_len).sum()
        return float(used) / (len(self._packing) * self._seq_len)

    @cached_property
    def _packing(self) -> Packing:
        return best_fit(self._lengths, self._seq_len + 1)


def shares_of(
    folder: Path, manifest: ShardManifest, wanted: Sequence[tuple[int, LongChats]]
) -> list[ChatShares]:
    """Returns what rows of each wanted (seq_len, rule) make of chats; reads the masks once.

    Raises:
        CorruptData: the dataset does not match its manifest.
    """
    starts = _starts(folder, manifest)
    lengths = chat_lengths(starts, manifest.total_tokens)
    limits = [*(seq_len + 1 for seq_len, _ in wanted), manifest.total_tokens]
    masks = open_masks(folder, manifest)
    if masks is None:
        labels = np.minimum(lengths, np.array(limits)[:, None]) - 1
    else:
        labels = learnt_labels(masks, starts, limits)
    return [
        chat_shares(lengths, within, labels[-1], seq_len, rule)
        for (seq_len, rule), within in zip(wanted, labels[:-1], strict=True)
    ]


def _starts(folder: Path, manifest: ShardManifest) -> npt.NDArray[np.int64]:
    starts = read_document_starts(folder, manifest)
    if starts is None:
        raise CorruptData(f"{folder} does not record where its chats begin")
    return starts
