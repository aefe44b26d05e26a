"""A dataset folder, put together from tokenised pieces: shards, what is beside them, manifest."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from lectern_common.errors import InvalidRequest
from lectern_common.shards import MANIFEST_NAME, ShardManifest
from lectern_common.tokenizer_map import tokenizer_sha256
from lectern_data.documents import Document
from lectern_data.pieces import EncodedPiece, Piece, read_piece
from lectern_data.rows import Content
from lectern_data.shard_writer import ShardWriter
from lectern_data.tokenizer import DatasetTokenizer

EosPolicy = Literal["none", "between", "after"]


@dataclass(frozen=True)
class Part:
    """One written dataset."""

    path: Path
    documents: int
    text_bytes: int
    tokens: int
    shards: int
    learnt_tokens: int


@dataclass(frozen=True)
class Layout:
    """How ids are laid out in files. `content` is what rows were taken for."""

    eos_policy: EosPolicy
    shard_tokens: int
    seq_length_hint: int | None
    content: Content


def write_part(
    folder: Path,
    target: Path,
    pieces: list[Piece],
    pieces_folder: Path,
    tokenizer: DatasetTokenizer,
    layout: Layout,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Part:
    """Writes the dataset of `pieces`, in order, into `folder`, which becomes `target`.

    Args:
        folder: exists, empty.
        target: for messages.
        pieces: each with its file.
        pieces_folder: where the files are.
        tokenizer: that the ids are of.
        layout: see there.
        on_progress: told (documents done, documents).

    Raises:
        InvalidRequest: not one token comes of them.
        CorruptData: a piece's file is not whole.
    """
    eos = tokenizer.eos_token_id if layout.eos_policy != "none" else None
    used, done, learnt = list[Document](), 0, 0
    total = sum(len(piece.documents) for piece in pieces)
    masked = layout.content.is_chat
    with ShardWriter(folder, layout.shard_tokens, tokenizer.vocab_size, masked=masked) as writer:
        for piece in pieces:
            encoded = read_piece(pieces_folder, piece)
            lost = {index for index, _ in encoded.left_out}
            kept = np.array([index not in lost for index in range(len(piece.documents))], bool)
            is_first = not used
            used += [entry for entry, is_kept in zip(piece.documents, kept, strict=True) if is_kept]
            ids, mask, starts = _laid_out(encoded, kept, layout.eos_policy, eos, is_first=is_first)
            writer.append(ids, mask, starts)
            learnt += len(ids) if mask is None else int(np.count_nonzero(mask))
            done += len(piece.documents)
            on_progress(done, total)
        if writer.total_tokens == 0:
            raise InvalidRequest(
                f"the tokenizer makes no token of the text of {target.name}", "inputs"
            )
        found = writer.finished()
    manifest = ShardManifest.model_validate(
        {
            "schema": "pretokenize-bin-v1",
            "tokenizer_sha256": tokenizer_sha256(tokenizer.tokens),
            "eos_policy": layout.eos_policy,
            "eos_token_id": eos,
            "seq_length_hint": layout.seq_length_hint,
            "producer_version": f"lectern {version('lectern')}",
            "producer_sha256": _producer_sha256(used, layout),
            **found,
        }
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(by_alias=True, indent=2) + "\n")
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    size = sum(document.text_bytes for document in used)
    return Part(target, len(used), size, manifest.total_tokens, manifest.shard_count, learnt)


def _laid_out(
    encoded: EncodedPiece,
    kept: npt.NDArray[np.bool_],
    policy: EosPolicy,
    eos: int | None,
    *,
    is_first: bool,
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8] | None, npt.NDArray[np.int64]]:
    """Returns (ids, mask, where documents begin) of a piece, with the end-of-text tokens in it.

    An end-of-text token belongs to the document that it ends, and is not learnt where there is a
    mask: an assistant's turn has ended before it. With "between" a piece begins with the one of the
    document before it, unless it `is_first`. A document without any token has no beginning.
    """
    lengths = encoded.lengths[kept].astype(np.int64)
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids, mask, before = encoded.ids, encoded.mask, 0
    if eos is not None and len(lengths):
        if policy == "after":
            places = begins[1:]
        else:
            places = begins[:-1] if not is_first else begins[1:-1]
            before = 0 if is_first else 1
        ids = np.insert(ids, places, np.uint32(eos))
        mask = None if mask is None else np.insert(mask, places, np.uint8(0))
        begins = begins + np.arange(len(begins)) + before
        begins[-1] = len(ids)
    starts = begins[:-1]
    return ids, mask, starts[np.diff(begins) > 0]


def _producer_sha256(documents: list[Document], layout: Layout) -> str:
    """Returns the hash over the settings, and the content of each document in order."""
    digest = hashlib.sha256(json.dumps(asdict(layout), sort_keys=True).encode())
    for document in documents:
        digest.update(bytes.fromhex(document.sha256))
    return digest.hexdigest()
