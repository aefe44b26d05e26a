"""One pass over a dataset: every byte checked against its manifest, block by block."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.checks.rules import named_rows, require_few_unknown
from lectern_common.errors import CorruptData
from lectern_common.logs import get_logger
from lectern_common.tokens.shards import ShardManifest, open_masks, open_shards
from student_trainer.batch import Tokens
from student_trainer.data.stream import TokenStream

_log = get_logger()


def open_streams(folder: Path, manifest: ShardManifest) -> tuple[TokenStream, TokenStream | None]:
    """Returns the tokens, and the mask if there is one."""
    masks = open_masks(folder, manifest)
    stream = TokenStream(open_shards(folder, manifest))
    return stream, None if masks is None else TokenStream(masks)


@dataclass(frozen=True)
class Seen:
    """What a pass found, one value per row or chat."""

    hashes: npt.NDArray[np.uint64]
    is_bad: npt.NDArray[np.bool_]
    is_labelled: npt.NDArray[np.bool_]


def checked_blocks(
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


def require_few(
    bad: list[int],
    total: int,
    of: str,
    folder: Path,
    vocab_size: int,
    max_bad_rows_fraction: float,
) -> None:
    """Logs how many of the rows or chats are left out because the student lacks ids of them.

    Raises:
        Incompatible: they are too many.
    """
    require_few_unknown(folder, of, bad, total, vocab_size, max_bad_rows_fraction)
    if bad:
        counts = {f"{of}s": len(bad)}
        _log.warning(f"{of}s_left_out", folder=str(folder), **counts, first=named_rows(bad))
