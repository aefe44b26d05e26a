"""Sources of token rows, batch after batch: the rows of a dataset, or random numbers.

Legend: B sequences, S tokens of a sequence.

A row is seq_len + 1 consecutive tokens: the first S are the inputs, the last S the labels, so
labels[i] is the token after inputs[i], and nothing is shifted later. Training addresses rows by
index (`rows.py`, `chats.py`); a `BatchSource` (batch.py) returns the same rows one batch after
another.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import CorruptData, InvalidRequest
from lectern_common.logs import get_logger
from lectern_common.tokens.chat_rows import LONG_CHATS
from lectern_common.tokens.shards import (
    ShardManifest,
    corpus_sha256,
    open_masks,
    open_shards,
    read_manifest,
)
from student_trainer.batch import Batch, Tokens, batch_of
from student_trainer.data.chat_dataset import open_chats
from student_trainer.data.chats import ChatRows
from student_trainer.data.rows import batch_from
from student_trainer.data.stream import TokenStream, synthetic_row
from student_trainer.targets import IGNORE_INDEX

_log = get_logger()


def open_stream(folder: Path) -> tuple[TokenStream, ShardManifest]:
    """Returns all tokens of a dataset folder, every byte checked against its manifest.

    Raises:
        NotFound: there is no dataset.
        CorruptData: sizes or hash do not match the manifest.
    """
    manifest = read_manifest(folder)
    shards = open_shards(folder, manifest)
    _log.info("checking_data", folder=str(folder), tokens=manifest.total_tokens)
    if corpus_sha256(shards) != manifest.corpus_sha256:
        raise CorruptData(
            f"the shards in {folder} do not match its manifest (corpus_sha256 differs); prepare "
            "the data again"
        )
    return TokenStream(shards), manifest


class ShardBatchSource:
    """Rows of a dataset in order; starts over when no whole row is left.

    Rows are what a run makes of the dataset: of text, a row begins where the last one's inputs
    ended; chats lie whole in their rows, padded at the end, and only learnt labels count.

    Args:
        stream: the tokens of text.
        learnt: one byte per token; a label counts if its byte is not 0. None means all count.
        bos_token_id: the first input of each row, before its tokens; None means there is none.
        chats: folder of a dataset of chats, read instead of the others.
    """

    def __init__(
        self,
        stream: TokenStream,
        learnt: TokenStream | None = None,
        bos_token_id: int | None = None,
        chats: Path | None = None,
    ) -> None:
        self._stream = stream
        self._learnt = learnt
        self._bos_token_id = bos_token_id
        self._chats = chats
        self._chat_rows: ChatRows | None = None
        self._position = 0

    @classmethod
    def open(cls, folder: Path) -> "ShardBatchSource":
        """Opens a dataset folder. Raises as `open_stream` says."""
        stream, manifest = open_stream(folder)
        if manifest.is_chats:
            return cls(stream, chats=folder)
        masks = open_masks(folder, manifest)
        learnt = None if masks is None else TokenStream(masks)
        return cls(stream, learnt, manifest.row_bos_id)

    def next_batch(
        self, batch_size: int, seq_len: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See BatchSource; labels may be IGNORE_INDEX.

        Chats of a row are apart only for a caller who takes the positions too (`next_rows`).
        """
        batch = self.next_rows(batch_size, seq_len)
        return batch.inputs_BS, batch.labels_BS

    def next_rows(self, batch_size: int, seq_len: int) -> Batch:
        """Returns the next rows, with positions that keep chats apart.

        Raises:
            InvalidRequest: as BatchSource says.
            CorruptData, InvalidSpec: as open_chats says.
        """
        _require_sizes(batch_size, seq_len)
        if self._chats is not None:
            rows = self._rows_of_chats(self._chats, seq_len)
            first, self._position = self._position, self._position + batch_size
            return batch_from(rows, [index % len(rows) for index in range(first, self._position)])
        needed = seq_len + self._first_label
        if len(self._stream) < needed:
            raise InvalidRequest(
                f"expected at least {needed} tokens for one row, got {len(self._stream)}",
                "seq_len",
            )
        return _joined([self._next_row(seq_len) for _ in range(batch_size)])

    def reset(self) -> None:
        self._position = 0

    @property
    def _first_label(self) -> int:
        return 1 if self._bos_token_id is None else 0

    def _next_row(self, seq_len: int) -> tuple[Tokens, npt.NDArray[np.bool_] | None]:
        """Returns a row of seq_len + 1 tokens, and which of its labels count; None means all."""
        if self._position + seq_len + self._first_label > len(self._stream):
            self._position = 0
        start, self._position = self._position, self._position + seq_len
        row = self._stream.read(start, seq_len + self._first_label)
        if self._bos_token_id is not None:
            row = np.concatenate([np.array([self._bos_token_id], np.uint32), row])
        if self._learnt is None:
            return row, None
        return row, self._learnt.read(start + self._first_label, seq_len) != 0

    def _rows_of_chats(self, folder: Path, seq_len: int) -> ChatRows:
        """Returns the rows of all chats for this seq_len."""
        if self._chat_rows is None or self._chat_rows.seq_len != seq_len:
            opened = open_chats(
                folder,
                seq_len,
                read_manifest(folder).vocab_size,
                0.0,
                attention_across_documents=False,
                long_chats=LONG_CHATS,
            )
            if not len(opened.chats):
                raise CorruptData(f"{folder} has no chat with a label that counts")
            self._chat_rows = opened.rows_of(np.arange(len(opened.chats)))
        return self._chat_rows


def _joined(rows: list[tuple[Tokens, npt.NDArray[np.bool_] | None]]) -> Batch:
    batch = batch_of([row for row, _ in rows])
    labels_BS = batch.labels_BS.copy()
    for labels_S, (_, counted_S) in zip(labels_BS, rows, strict=True):
        if counted_S is not None:
            labels_S[~counted_S] = IGNORE_INDEX
    return Batch(batch.inputs_BS, labels_BS)


class SyntheticBatchSource:
    """Batches of random tokens; equal seeds give equal batches."""

    def __init__(self, vocab_size: int, seed: int = 0) -> None:
        if vocab_size < 1:
            raise InvalidRequest(f"vocab_size is {vocab_size}; it must be >= 1", "vocab_size")
        self._vocab_size = vocab_size
        self._seed = seed
        self._next_row = 0

    def next_batch(
        self, batch_size: int, seq_len: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """See BatchSource."""
        _require_sizes(batch_size, seq_len)
        first, self._next_row = self._next_row, self._next_row + batch_size
        batch = batch_of(
            [
                synthetic_row(self._seed, index, seq_len, self._vocab_size)
                for index in range(first, self._next_row)
            ]
        )
        return batch.inputs_BS, batch.labels_BS

    def reset(self) -> None:
        self._next_row = 0


def _require_sizes(batch_size: int, seq_len: int) -> None:
    for name, value in (("batch_size", batch_size), ("seq_len", seq_len)):
        if value < 1:
            raise InvalidRequest(f"{name} is {value}; it must be >= 1", name)
