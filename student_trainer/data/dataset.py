"""Opens a dataset folder for a run: checks every byte and leaves out unusable rows.

One pass over the data checks the manifest's hashes, finds ids that are too large and rows without a
label that counts, and hashes each row. These hashes, 8 bytes per row, find rows that are in two
sets; their tokens are then compared, so no row is wrongly called a duplicate.
"""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog

from lectern_common.checks.rules import require_document_starts, require_row
from lectern_common.errors import CorruptData
from lectern_common.tokens.shards import (
    ShardManifest,
    open_masks,
    open_shards,
    read_document_starts,
    read_manifest,
)
from student_trainer.data.rows import ChosenRows, Rows, StreamRows
from student_trainer.data.sources import TokenStream
from student_trainer.seeds import Key, raw_bits

_log = structlog.get_logger()

# Tokens scanned at a time.
_SCAN_TOKENS = 1 << 22
_NAMED_BAD_ROWS = 5


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


def open_dataset(
    folder: Path,
    seq_len: int,
    vocab_size: int,
    max_bad_rows_fraction: float,
    *,
    attention_across_documents: bool = True,
) -> OpenedDataset:
    """Returns the rows of a shard folder whose ids are all below `vocab_size`.

    Raises:
        NotFound: there is no dataset.
        CorruptData: sizes, hashes or ids do not match the manifest, or more than
            `max_bad_rows_fraction` of the rows have ids that the student lacks.
        InvalidSpec: there are too few tokens for one row of seq_len + 1, or documents must be kept
            apart but the folder does not say where they begin.
    """
    started = time.monotonic()
    manifest = read_manifest(folder)
    require_document_starts(
        folder,
        are_known=manifest.documents_sha256 is not None,
        needs_them=not attention_across_documents,
    )
    masks = open_masks(folder, manifest)
    starts = read_document_starts(folder, manifest)
    rows = StreamRows(
        TokenStream(open_shards(folder, manifest)),
        seq_len,
        None if masks is None else TokenStream(masks),
        None if attention_across_documents else starts,
    )
    require_row(folder, len(rows.stream), seq_len)
    _log.info("checking_data", folder=str(folder), tokens=manifest.total_tokens)
    seen = _scan(rows, folder, manifest, vocab_size)
    bad = [int(number) for number in np.flatnonzero(seen.is_bad)]
    _require_few(bad, len(rows), folder, vocab_size, max_bad_rows_fraction)
    good = np.flatnonzero(~seen.is_bad & seen.is_labelled)
    unlabelled = int(np.count_nonzero(~seen.is_bad & ~seen.is_labelled))
    if unlabelled:
        _log.info("rows_without_labels_left_out", folder=str(folder), rows=unlabelled)
    _log.info("data_checked", rows=len(rows), seconds=round(time.monotonic() - started, 3))
    return OpenedDataset(ChosenRows(rows, good), seen.hashes[good], manifest, bad, unlabelled)


@dataclass(frozen=True)
class _Seen:
    """What the scan found, one value per row."""

    hashes: npt.NDArray[np.uint64]
    is_bad: npt.NDArray[np.bool_]
    is_labelled: npt.NDArray[np.bool_]


def _scan(rows: StreamRows, folder: Path, manifest: ShardManifest, vocab_size: int) -> _Seen:
    """Reads and checks everything in one pass. Raises CorruptData as open_dataset says."""
    size, total, count = rows.seq_len, len(rows.stream), len(rows)
    seen = _Seen(np.empty(count, np.uint64), np.zeros(count, bool), np.ones(count, bool))
    shards_digest, mask_digest = hashlib.sha256(), hashlib.sha256()
    beyond: tuple[int, int] | None = None
    block = max(1, _SCAN_TOKENS // size) * size
    for start in range(0, total, block):
        tokens = rows.stream.read(start, min(block + 1, total - start))
        shards_digest.update(tokens[:block].tobytes())
        if rows.learnt is not None:
            mask_digest.update(rows.learnt.read(start, len(tokens[:block])).tobytes())
        if beyond is None and tokens.max() >= manifest.vocab_size:
            first = int(np.argmax(tokens >= manifest.vocab_size))
            beyond = start + first, int(tokens[first])
        row = start // size
        here = slice(row, min(row + block // size, count))
        num_rows = here.stop - here.start
        if num_rows < 1:
            continue
        seen.hashes[here] = row_hashes(tokens[: num_rows * size + 1], size)
        if tokens.max() >= vocab_size:
            windows = np.lib.stride_tricks.sliding_window_view(tokens, size + 1)
            seen.is_bad[here] = (windows[::size][:num_rows] >= vocab_size).any(1)
        if rows.learnt is not None or rows.document_starts is not None:
            seen.is_labelled[here] = rows.labels_counted(row, num_rows).any(1)
    if shards_digest.hexdigest() != manifest.corpus_sha256:
        raise CorruptData(
            f"the shards in {folder} do not match its manifest (corpus_sha256 differs); prepare "
            "the data again"
        )
    if rows.learnt is not None and mask_digest.hexdigest() != manifest.mask_sha256:
        raise CorruptData(
            f"the mask in {folder} does not match its manifest (mask_sha256 differs); prepare the "
            "data again"
        )
    if beyond is not None:
        raise CorruptData(
            f"token {beyond[0]} of {folder} has id {beyond[1]}, but its manifest says every id is "
            f"below {manifest.vocab_size}; prepare the data again"
        )
    return seen


def _require_few(
    bad: list[int], num_rows: int, folder: Path, vocab_size: int, max_bad_rows_fraction: float
) -> None:
    if not bad:
        return
    share = len(bad) / num_rows
    named = ", ".join(str(index) for index in bad[:_NAMED_BAD_ROWS])
    if share > max_bad_rows_fraction:
        raise CorruptData(
            f"{len(bad)} of {num_rows} rows of {folder} ({share:.2%}) have ids outside the "
            f"student's vocabulary of {vocab_size}; the first are rows {named}. "
            f"data.max_bad_rows_fraction allows {max_bad_rows_fraction}; prepare the data with the "
            "student's tokenizer"
        )
    _log.warning("rows_left_out", folder=str(folder), rows=len(bad), first=named)


def row_hashes(tokens: npt.NDArray[np.uint32], seq_len: int) -> npt.NDArray[np.uint64]:
    """Returns a hash of each row of seq_len + 1 tokens; row i begins at token i * seq_len.

    Multilinear: the sum of random factors times tokens, modulo 2^64. Two different rows collide
    with a probability of at most 2^-32, whatever their tokens.

    Args:
        tokens: whole rows and the last label, [n * seq_len + 1].
        seq_len: labels per row.
    """
    factors = raw_bits(Key.ROW_HASH, (0,), seq_len + 1)
    inputs_NS = tokens[:-1].reshape(-1, seq_len)
    last_N = tokens[seq_len::seq_len].astype(np.uint64)
    sums_N = np.einsum("ns,s->n", inputs_NS, factors[:seq_len])
    return np.asarray(sums_N + last_N * factors[seq_len], np.uint64)


def in_both(
    rows: Rows,
    hashes: npt.NDArray[np.uint64],
    others: Rows,
    other_hashes: npt.NDArray[np.uint64],
) -> npt.NDArray[np.bool_]:
    """Returns for each of `rows` whether one of `others` has the same tokens, [len(rows)].

    Args:
        rows, others: of the same seq_len.
        hashes, other_hashes: their `row_hashes`.
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
