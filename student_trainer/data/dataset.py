"""Opens a dataset folder for a run: checks every byte and leaves out unusable rows, or chats.

One pass over the data checks the manifest's hashes, finds ids that are too large and rows without a
label that counts, and hashes each row. These hashes, 8 bytes per row, find rows that are in two
sets; their tokens are then compared, so no row is wrongly called a duplicate. Of chats, which are
packed into rows only afterwards, each chat is checked and hashed.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from lectern_common.checks.documents import require_documents, require_short_chats
from lectern_common.errors import CorruptData
from lectern_common.tokens.chat_rows import LongChats, chat_lengths, fit, segments
from lectern_common.tokens.shards import (
    ShardManifest,
    open_masks,
    open_shards,
    read_document_starts,
    read_manifest,
)
from student_trainer.batch import Tokens
from student_trainer.data.chats import ChatRows, Chats
from student_trainer.data.rows import ChosenRows, StreamRows
from student_trainer.data.stream import TokenStream
from student_trainer.seeds import Key, raw_bits

_log = structlog.get_logger()

# Tokens scanned at a time.
_SCAN_TOKENS = 1 << 22
# The same for chats, whose tokens each take about 40 bytes more.
_CHAT_SCAN_TOKENS = 1 << 20
_NAMED_BAD_ROWS = 5


class TokenRows(Protocol):
    """Sequences of tokens by index, such as rows or chats."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Tokens: ...


@dataclass(frozen=True)
class OpenedDataset:
    """The usable rows of a dataset, and what was left out.

    Attributes:
        rows: those whose ids the student has, and with a label that counts.
        hashes: one per row of `rows`, see `row_hashes`.
        bad_rows: indices of rows with ids that the student lacks.
        unlabelled: number of rows without a label that counts; they teach nothing, and a step of
            only such rows would have no loss.
    """

    rows: ChosenRows
    hashes: npt.NDArray[np.uint64]
    manifest: ShardManifest
    bad_rows: list[int]
    unlabelled: int

    def units(self, indices: npt.NDArray[np.int64]) -> ChosenRows:
        """Returns these rows, to be compared with others."""
        return self.rows_of(indices)

    def rows_of(self, indices: npt.NDArray[np.int64]) -> ChosenRows:
        """Returns these rows."""
        return ChosenRows(self.rows.rows, self.rows.indices[indices])


@dataclass(frozen=True)
class OpenedChats:
    """The usable chats of a dataset, and what was left out.

    Attributes:
        chats: cut to seq_len + 1 tokens; those with ids that the student has, and with a label that
            counts.
        seq_len: labels per row.
        apart: chats of a row do not attend to each other.
        hashes: one per chat of `chats`.
        bad_rows: indices of chats with ids that the student lacks.
        cut: chats of `chats` that are cut.
        dropped: chats that are left out because they are longer than a row.
        unlabelled: number of the other chats without a label that counts.
    """

    chats: Chats
    seq_len: int
    apart: bool
    hashes: npt.NDArray[np.uint64]
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


def open_dataset(
    folder: Path,
    seq_len: int,
    vocab_size: int,
    max_bad_rows_fraction: float,
    *,
    attention_across_documents: bool = True,
) -> OpenedDataset:
    """Returns the rows of a stream of documents whose ids are all below `vocab_size`.

    Raises:
        NotFound: there is no dataset.
        CorruptData: sizes, hashes or ids do not match the manifest, or more than
            `max_bad_rows_fraction` of the rows have ids that the student lacks.
        InvalidSpec: there are too few tokens for one row of seq_len + 1, or documents must be kept
            apart but the folder does not say where they begin.
    """
    started = time.monotonic()
    manifest = read_manifest(folder)
    # Chats come here only in runs that began before chats were packed; their rows are a stream.
    as_text = manifest.model_copy(update={"content": "text"})
    require_documents(folder, as_text, seq_len, attention_across=attention_across_documents)
    stream, learnt = _streams(folder, manifest)
    starts = read_document_starts(folder, manifest)
    rows = StreamRows(
        stream,
        seq_len,
        learnt,
        None if attention_across_documents else starts,
        manifest.row_bos_id,
    )
    seen = _scan(rows, folder, manifest, vocab_size)
    bad = [int(number) for number in np.flatnonzero(seen.is_bad)]
    _require_few(bad, len(rows), "row", folder, vocab_size, max_bad_rows_fraction)
    good = np.flatnonzero(~seen.is_bad & seen.is_labelled)
    unlabelled = int(np.count_nonzero(~seen.is_bad & ~seen.is_labelled))
    if unlabelled:
        _log.info("rows_without_labels_left_out", folder=str(folder), rows=unlabelled)
    _log.info("data_checked", rows=len(rows), seconds=round(time.monotonic() - started, 3))
    return OpenedDataset(ChosenRows(rows, good), seen.hashes[good], manifest, bad, unlabelled)


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
        NotFound, CorruptData: as `open_dataset` says, of chats instead of rows.
        InvalidSpec: the folder does not say where chats begin, or `long_chats` is error and a chat
            is longer than a row.
    """
    started = time.monotonic()
    manifest = read_manifest(folder)
    require_documents(folder, manifest, seq_len, attention_across=attention_across_documents)
    starts = read_document_starts(folder, manifest)
    if starts is None:
        raise CorruptData(f"{folder} does not record where its chats begin")
    lengths = chat_lengths(starts, manifest.total_tokens)
    require_short_chats(folder, lengths, seq_len, long_chats)
    stream, learnt = _streams(folder, manifest)
    every = Chats(stream, learnt, starts, np.minimum(lengths, seq_len + 1))
    seen = _scan_chats(every, seq_len, folder, manifest, vocab_size)
    bad = [int(number) for number in np.flatnonzero(seen.is_bad)]
    _require_few(bad, len(every), "chat", folder, vocab_size, max_bad_rows_fraction)
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
        manifest,
        bad,
        **counts,
    )


def _streams(folder: Path, manifest: ShardManifest) -> tuple[TokenStream, TokenStream | None]:
    """Returns the tokens, and the mask if there is one."""
    masks = open_masks(folder, manifest)
    stream = TokenStream(open_shards(folder, manifest))
    return stream, None if masks is None else TokenStream(masks)


@dataclass(frozen=True)
class _Seen:
    """What the scan found, one value per row or chat."""

    hashes: npt.NDArray[np.uint64]
    is_bad: npt.NDArray[np.bool_]
    is_labelled: npt.NDArray[np.bool_]


def _scan(rows: StreamRows, folder: Path, manifest: ShardManifest, vocab_size: int) -> _Seen:
    """Reads and checks everything in one pass. Raises CorruptData as open_dataset says."""
    size, count, bos = rows.seq_len, len(rows), rows.bos_token_id
    seen = _Seen(np.empty(count, np.uint64), np.zeros(count, bool), np.ones(count, bool))
    block = max(1, _SCAN_TOKENS // size) * size
    for start, tokens, _ in _checked(rows.stream, rows.learnt, folder, manifest, block):
        row = start // size
        here = slice(row, min(row + block // size, count))
        num_rows = here.stop - here.start
        if num_rows < 1:
            continue
        used = tokens[: num_rows * size + rows.first_label]
        seen.hashes[here] = row_hashes(used, size, bos)
        if used.max() >= vocab_size:
            windows = np.lib.stride_tricks.sliding_window_view(used, size + rows.first_label)
            seen.is_bad[here] = (windows[::size][:num_rows] >= vocab_size).any(1)
        if bos is not None and bos >= vocab_size:
            seen.is_bad[here] = True
        if rows.learnt is not None or rows.document_starts is not None:
            seen.is_labelled[here] = rows.labels_counted(row, num_rows).any(1)
    return seen


def _scan_chats(
    chats: Chats, seq_len: int, folder: Path, manifest: ShardManifest, vocab_size: int
) -> _Seen:
    """As `_scan`, of whole chats, each cut to seq_len + 1 tokens."""
    count = len(chats)
    factors = raw_bits(Key.ROW_HASH, (0,), seq_len + 2)
    # Padding must not make two chats equal, so the hash covers the length.
    hashes = chats.lengths.astype(np.uint64) * factors[-1]
    seen = _Seen(hashes, np.zeros(count, bool), np.zeros(count, bool))
    for start, more, learnt in _checked(
        chats.stream, chats.learnt, folder, manifest, _CHAT_SCAN_TOKENS
    ):
        tokens = more[:_CHAT_SCAN_TOKENS]
        first, begins, offsets = segments(chats.starts, start, len(tokens))
        here, is_used = slice(first, first + len(begins)), offsets <= seq_len
        terms = np.where(is_used, tokens, 0) * factors[np.minimum(offsets, seq_len)]
        seen.hashes[here] += np.add.reduceat(terms, begins)
        seen.is_bad[here] |= np.logical_or.reduceat(is_used & (tokens >= vocab_size), begins)
        is_label = is_used & (offsets > 0)
        if learnt is not None:
            is_label &= learnt != 0
        seen.is_labelled[here] |= np.logical_or.reduceat(is_label, begins)
    return seen


def _checked(
    stream: TokenStream,
    learnt: TokenStream | None,
    folder: Path,
    manifest: ShardManifest,
    block: int,
) -> Iterator[tuple[int, Tokens, npt.NDArray[np.uint8] | None]]:
    """Yields (first token, tokens, mask) of each block of the data, and at the end checks it all.

    The tokens are one more than the block has, if there is one more; the mask has just the block's.

    Raises:
        CorruptData: a hash or an id does not match the manifest.
    """
    total = len(stream)
    shards_digest, mask_digest = hashlib.sha256(), hashlib.sha256()
    beyond: tuple[int, int] | None = None
    _log.info("checking_data", folder=str(folder), tokens=total)
    for start in range(0, total, block):
        tokens = stream.read(start, min(block + 1, total - start))
        shards_digest.update(tokens[:block].tobytes())
        mask = None
        if learnt is not None:
            mask = learnt.read(start, len(tokens[:block])).astype(np.uint8, copy=False)
            mask_digest.update(mask.tobytes())
        if beyond is None and tokens.max() >= manifest.vocab_size:
            first = int(np.argmax(tokens >= manifest.vocab_size))
            beyond = start + first, int(tokens[first])
        yield start, tokens, mask
    if shards_digest.hexdigest() != manifest.corpus_sha256:
        raise CorruptData(
            f"the shards in {folder} do not match its manifest (corpus_sha256 differs); prepare "
            "the data again"
        )
    if learnt is not None and mask_digest.hexdigest() != manifest.mask_sha256:
        raise CorruptData(
            f"the mask in {folder} does not match its manifest (mask_sha256 differs); prepare the "
            "data again"
        )
    if beyond is not None:
        raise CorruptData(
            f"token {beyond[0]} of {folder} has id {beyond[1]}, but its manifest says every id is "
            f"below {manifest.vocab_size}; prepare the data again"
        )


def _require_few(
    bad: list[int],
    total: int,
    of: str,
    folder: Path,
    vocab_size: int,
    max_bad_rows_fraction: float,
) -> None:
    """Raises CorruptData if too many of the rows or chats have ids that the student lacks."""
    if not bad:
        return
    share = len(bad) / total
    named = ", ".join(str(index) for index in bad[:_NAMED_BAD_ROWS])
    if share > max_bad_rows_fraction:
        raise CorruptData(
            f"{len(bad)} of {total} {of}s of {folder} ({share:.2%}) have ids outside the "
            f"student's vocabulary of {vocab_size}; the first are {of}s {named}. "
            f"data.max_bad_rows_fraction allows {max_bad_rows_fraction}; prepare the data with the "
            "student's tokenizer"
        )
    _log.warning(f"{of}s_left_out", folder=str(folder), **{f"{of}s": len(bad)}, first=named)


def row_hashes(
    tokens: npt.NDArray[np.uint32], seq_len: int, bos_token_id: int | None = None
) -> npt.NDArray[np.uint64]:
    """Returns a hash of each row of seq_len + 1 tokens; row i begins at token i * seq_len.

    Multilinear: the sum of random factors times tokens, modulo 2^64. Two different rows collide
    with a probability of at most 2^-32, whatever their tokens.

    Args:
        tokens: whole rows and the last label, [n * seq_len + 1]; without that label if a
            `bos_token_id` begins each row.
        seq_len: labels per row.
        bos_token_id: as in StreamRows.
    """
    factors = raw_bits(Key.ROW_HASH, (0,), seq_len + 1)
    if bos_token_id is not None:
        sums_N = np.einsum("ns,s->n", tokens.reshape(-1, seq_len), factors[1:])
        of_bos = np.uint64(bos_token_id * int(factors[0]) % (1 << 64))
        return np.asarray(sums_N + of_bos, np.uint64)
    inputs_NS = tokens[:-1].reshape(-1, seq_len)
    last_N = tokens[seq_len::seq_len].astype(np.uint64)
    sums_N = np.einsum("ns,s->n", inputs_NS, factors[:seq_len])
    return np.asarray(sums_N + last_N * factors[seq_len], np.uint64)


def in_both(
    rows: TokenRows,
    hashes: npt.NDArray[np.uint64],
    others: TokenRows,
    other_hashes: npt.NDArray[np.uint64],
) -> npt.NDArray[np.bool_]:
    """Returns for each of `rows` whether one of `others` has the same tokens, [len(rows)].

    Args:
        rows, others: rows of one seq_len, or chats.
        hashes, other_hashes: one for each of them; equal tokens have equal hashes.
    """
    order = np.argsort(other_hashes, kind="stable")
    ordered = other_hashes[order]
    first = np.searchsorted(ordered, hashes, "left")
    end = np.searchsorted(ordered, hashes, "right")
    found = np.zeros(len(rows), bool)
    for index in np.flatnonzero(first < end):
        row = rows.row(int(index))
        candidates = order[first[index] : end[index]]
        found[index] = any(np.array_equal(row, others.row(int(other))) for other in candidates)
    return found
