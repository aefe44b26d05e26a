"""Opens a dataset of chats for a run: checks every byte and leaves out unusable chats.

As `dataset.py` does it with rows, but chats are packed into rows only afterwards: each chat is
checked, hashed, held out and compared by itself.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.checks.documents import require_documents, require_short_chats
from lectern_common.checks.row_counts import chat_starts, chats_with
from lectern_common.logs import get_logger
from lectern_common.tokens.chat_rows import LongChats, chat_lengths, fit, segments
from lectern_common.tokens.shards import (
    ShardManifest,
    read_chat_numbers,
    read_manifest,
)
from student_trainer.data.chats import ChatRows, Chats
from student_trainer.data.scan import Seen, checked_blocks, open_streams, require_few
from student_trainer.seeds import Key, raw_bits

_log = get_logger()

# Tokens scanned at a time; each takes about 40 bytes.
_SCAN_TOKENS = 1 << 20


@dataclass(frozen=True)
class OpenedChats:
    """The usable chats of a dataset, and what was left out.

    Attributes:
        chats: cut to seq_len + 1 tokens; those with ids that the student has, and with a label that
            counts.
        seq_len: labels per row.
        apart: chats of a row do not attend to each other.
        hashes: one per chat of `chats`.
        chat_of: which chat of the dataset each is of: if answers have sequences of their own,
            several of `chats` are of one.
        bad_rows: indices of chats with ids that the student lacks.
        cut: chats of `chats` that are cut.
        dropped: chats that are left out because they are longer than a row.
        unlabelled: number of the other chats without a label that counts.
    """

    chats: Chats
    seq_len: int
    apart: bool
    hashes: npt.NDArray[np.uint64]
    chat_of: npt.NDArray[np.int64]
    manifest: ShardManifest
    bad_rows: list[int]
    cut: int
    dropped: int
    unlabelled: int

    def units(self, indices: npt.NDArray[np.int64]) -> Chats:
        """Returns these chats, to be compared with others."""
        return self.chats.chosen(indices)

    def rows_of(self, indices: npt.NDArray[np.int64]) -> ChatRows:
        """Returns the rows that these chats are packed into."""
        rows = ChatRows.of(self.chats.chosen(indices), self.seq_len, apart=self.apart)
        padding = round(rows.padding, 4)
        _log.info("chats_packed", chats=len(indices), rows=len(rows), padding=padding)
        return rows


def open_chats(
    folder: Path,
    seq_len: int,
    vocab_size: int,
    max_bad_rows_fraction: float,
    *,
    attention_across_documents: bool,
    long_chats: LongChats,
) -> OpenedChats:
    """Returns the chats of a dataset whose ids are all below `vocab_size`, to be packed into rows.

    Raises:
        NotFound, CorruptData, Incompatible: as dataset.py says, of chats instead of rows.
        InvalidSpec: the folder does not say where chats begin, or `long_chats` is error and a chat
            is longer than a row.
    """
    started = time.monotonic()
    manifest = read_manifest(folder)
    require_documents(folder, manifest, seq_len, attention_across=attention_across_documents)
    starts = chat_starts(folder, manifest)
    numbers = read_chat_numbers(folder, manifest)
    lengths = chat_lengths(starts, manifest.total_tokens)
    require_short_chats(folder, lengths, seq_len, long_chats)
    stream, learnt = open_streams(folder, manifest)
    every = Chats(stream, learnt, starts, np.minimum(lengths, seq_len + 1))
    seen = _scan_chats(every, seq_len, folder, manifest, vocab_size)
    bad = [int(number) for number in np.flatnonzero(seen.is_bad)]
    require_few(bad, len(every), "chat", folder, vocab_size, max_bad_rows_fraction)
    # Of the others, so that a chat is counted once; a bad one is neither dropped nor unlabelled.
    good = np.flatnonzero(~seen.is_bad)
    fitted = fit(lengths[good], seq_len, long_chats, seen.is_labelled[good])
    chosen = good[fitted.chosen]
    counts = {"cut": fitted.cut, "dropped": fitted.dropped, "unlabelled": fitted.unlabelled}
    if any(counts.values()):
        _log.warning("chats_cut_or_left_out", folder=str(folder), **counts, of=len(every))
    _log.info("data_checked", chats=len(every), seconds=round(time.monotonic() - started, 3))
    return OpenedChats(
        every.chosen(chosen),
        seq_len,
        not attention_across_documents,
        seen.hashes[chosen],
        chosen if numbers is None else numbers[chosen],
        manifest,
        bad,
        **counts,
    )


def _scan_chats(
    chats: Chats, seq_len: int, folder: Path, manifest: ShardManifest, vocab_size: int
) -> Seen:
    """As `_scan`, of whole chats, each cut to seq_len + 1 tokens."""
    count = len(chats)
    factors = raw_bits(Key.ROW_HASH, (0,), seq_len + 2)
    # Padding must not make two chats equal, so the hash covers the length.
    hashes = chats.lengths.astype(np.uint64) * factors[-1]
    seen = Seen(hashes, np.zeros(count, bool), np.zeros(count, bool))
    for start, more, learnt in checked_blocks(
        chats.stream, chats.learnt, folder, manifest, _SCAN_TOKENS
    ):
        tokens = more[:_SCAN_TOKENS]
        first, begins, offsets = segments(chats.starts, start, len(tokens))
        here, is_used = slice(first, first + len(begins)), offsets <= seq_len
        terms = np.where(is_used, tokens, 0) * factors[np.minimum(offsets, seq_len)]
        seen.hashes[here] += np.add.reduceat(terms, begins)
        places = start + np.flatnonzero(tokens >= vocab_size)
        seen.is_bad[chats_with(places, chats.starts, seq_len)] = True
        is_label = is_used & (offsets > 0)
        if learnt is not None:
            is_label &= learnt != 0
        seen.is_labelled[here] |= np.logical_or.reduceat(is_label, begins)
    return seen
