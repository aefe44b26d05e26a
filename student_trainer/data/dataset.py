"""Opens a dataset folder for a run: checks every byte and leaves out unusable rows.

One pass over the data checks the manifest's hashes, finds ids that are too large and rows without a
label that counts, and hashes each row. These hashes, 8 bytes per row, find rows that are in two
sets; their tokens are then compared, so no row is wrongly called a duplicate.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lectern_common.checks.documents import require_documents
from lectern_common.checks.row_counts import rows_with
from lectern_common.logs import get_logger
from lectern_common.tokens.shards import ShardManifest, read_document_starts, read_manifest
from student_trainer.batch import Tokens
from student_trainer.data.rows import ChosenRows, StreamRows
from student_trainer.data.scan import Seen, checked_blocks, open_streams, require_few
from student_trainer.seeds import Key, raw_bits

_log = get_logger()

# Tokens scanned at a time.
_SCAN_TOKENS = 1 << 22


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
        CorruptData: sizes, hashes or ids do not match the manifest.
        Incompatible: more than `max_bad_rows_fraction` of the rows have ids that the student lacks.
        InvalidSpec: there are too few tokens for one row of seq_len + 1, or documents must be kept
            apart but the folder does not say where they begin.
    """
    started = time.monotonic()
    manifest = read_manifest(folder)
    # Chats come here only in runs that began before chats were packed; their rows are a stream.
    across = attention_across_documents
    require_documents(folder, manifest.as_text(), seq_len, attention_across=across)
    stream, learnt = open_streams(folder, manifest)
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
    require_few(bad, len(rows), "row", folder, vocab_size, max_bad_rows_fraction)
    good = np.flatnonzero(~seen.is_bad & seen.is_labelled)
    unlabelled = int(np.count_nonzero(~seen.is_bad & ~seen.is_labelled))
    if unlabelled:
        _log.info("rows_without_labels_left_out", folder=str(folder), rows=unlabelled)
    _log.info("data_checked", rows=len(rows), seconds=round(time.monotonic() - started, 3))
    return OpenedDataset(ChosenRows(rows, good), seen.hashes[good], manifest, bad, unlabelled)


def _scan(rows: StreamRows, folder: Path, manifest: ShardManifest, vocab_size: int) -> Seen:
    """Reads and checks everything in one pass. Raises CorruptData as open_dataset says."""
    size, count, bos = rows.seq_len, len(rows), rows.bos_token_id
    seen = Seen(np.empty(count, np.uint64), np.zeros(count, bool), np.ones(count, bool))
    block = max(1, _SCAN_TOKENS // size) * size
    for start, tokens, _ in checked_blocks(rows.stream, rows.learnt, folder, manifest, block):
        row = start // size
        here = slice(row, min(row + block // size, count))
        num_rows = here.stop - here.start
        if num_rows < 1:
            continue
        used = tokens[: num_rows * size + rows.first_label]
        seen.hashes[here] = row_hashes(used, size, bos)
        if used.max() >= vocab_size:
            places = start + np.flatnonzero(used >= vocab_size)
            seen.is_bad[rows_with(places, size, count, rows.first_label)] = True
        if bos is not None and bos >= vocab_size:
            seen.is_bad[here] = True
        if rows.learnt is not None or rows.document_starts is not None:
            seen.is_labelled[here] = rows.labels_counted(row, num_rows).any(1)
    return seen


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
