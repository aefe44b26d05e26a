"""Pieces of a corpus, each tokenised by one process at a time, and their files.

Documents are cut into pieces only by their sizes, so the same documents give the same pieces in
any process. A piece's file is named after a hash of its inputs, appears by rename, and is checked
when it is read. So work from before a kill is found again, and is used only if it is complete and
still needed.

    NAME.piece    a line of JSON (counts, what was left out, the hash of the rest), then
                  sequences of each document (u32, unless it is one of each), tokens of each
                  sequence (u32), ids (u32), and with chats the mask (u8)
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import CorruptData
from lectern_common.files import write_atomic
from lectern_data.read.documents import Document, LeftOut

# A tokenizer's results take some fifty times the memory of their text.
PIECE_BYTES = 2 << 20
_PIECE_DOCUMENTS = 1 << 15
_FORMAT = b"2"


@dataclass(frozen=True)
class Piece:
    """Consecutive documents, and the file name of their ids."""

    name: str
    documents: list[Document]


@dataclass(frozen=True)
class EncodedPiece:
    """The ids of a piece's documents, one after the other.

    Attributes:
        lengths: tokens of each sequence; of each document, if `sequences` is None.
        ids: uint32, as many as the sum of the lengths.
        mask: uint8, as many; None means that every token is learnt.
        left_out: (the document's index in the piece, reason).
        sequences: sequences of each document, 0 if it was left out; None means one of each, of
            length 0 if it was left out.
        unasked: turns of the assistant that nothing asks for.
        spelt: prompts of text that spell a control token.
    """

    lengths: npt.NDArray[np.uint32]
    ids: npt.NDArray[np.uint32]
    mask: npt.NDArray[np.uint8] | None
    left_out: list[tuple[int, str]]
    sequences: npt.NDArray[np.uint32] | None = None
    unasked: int = 0
    spelt: int = 0

    @property
    def documents(self) -> int:
        return len(self.lengths if self.sequences is None else self.sequences)


def cut(documents: Sequence[Document], encoder: str, piece_bytes: int) -> Iterator[Piece]:
    """Yields the documents in pieces of about `piece_bytes` of text, at least one document each.

    Args:
        documents: of one part of the corpus, in order.
        encoder: hash of the encoder's files; pieces of another encoder have other names.
        piece_bytes: a piece ends with the document that reaches this size.
    """
    size, taken = 0, list[Document]()
    for document in documents:
        taken.append(document)
        size += document.text_bytes
        if size >= piece_bytes or len(taken) >= _PIECE_DOCUMENTS:
            yield _piece(taken, encoder)
            size, taken = 0, []
    if taken:
        yield _piece(taken, encoder)


def write_piece(folder: Path, name: str, piece: EncodedPiece) -> None:
    """Writes NAME.piece atomically (not fsynced: a lost one is made again)."""
    counts = () if piece.sequences is None else (piece.sequences,)
    body = b"".join(
        numbers.astype("<u4").tobytes() for numbers in (*counts, piece.lengths, piece.ids)
    )
    if piece.mask is not None:
        body += piece.mask.tobytes()
    header = {
        "documents": piece.documents,
        "sequences": None if piece.sequences is None else len(piece.lengths),
        "tokens": len(piece.ids),
        "masked": piece.mask is not None,
        "left_out": piece.left_out,
        "unasked": piece.unasked,
        "spelt": piece.spelt,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    data = json.dumps(header).encode() + b"\n" + body
    write_atomic(_path(folder, name), data, durable=False)


def read_piece(folder: Path, piece: Piece) -> EncodedPiece:
    """Returns what `write_piece` wrote.

    Raises:
        CorruptData: the file is missing or incomplete.
    """
    path = _path(folder, piece.name)
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        header = json.loads(head)
        if hashlib.sha256(body).hexdigest() != header["sha256"]:
            raise ValueError("another hash")
        documents, count, tokens = header["documents"], header["sequences"], header["tokens"]
        sequences, place = None, 0
        if count is not None:
            sequences, place = np.frombuffer(body, "<u4", documents), 4 * documents
        count = documents if count is None else count
        lengths = np.frombuffer(body, "<u4", count, place)
        ids = np.frombuffer(body, "<u4", tokens, place + 4 * count)
        mask = None
        if header["masked"]:
            mask = np.frombuffer(body, "u1", tokens, place + 4 * (count + tokens))
        left_out = [(int(index), str(reason)) for index, reason in header["left_out"]]
        unasked, spelt = int(header["unasked"]), int(header["spelt"])
        is_whole = (sequences is None or sequences.sum() == count) and lengths.sum() == tokens
        if documents != len(piece.documents) or not is_whole:
            raise ValueError("another number of documents")
    except (OSError, ValueError, KeyError, TypeError):
        raise CorruptData(f"{path} is incomplete; run again") from None
    return EncodedPiece(lengths, ids, mask, left_out, sequences, unasked, spelt)


def piece_left_out(piece: Piece, folder: Path) -> list[LeftOut]:
    """Returns the documents of a finished piece that could not be encoded."""
    lost = read_piece(folder, piece).left_out
    return [LeftOut(piece.documents[index].name, reason) for index, reason in lost]


def is_done(folder: Path, piece: Piece) -> bool:
    """Returns whether a piece's file exists and is complete."""
    try:
        read_piece(folder, piece)
    except CorruptData:
        return False
    return True


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.piece"


def _piece(documents: list[Document], encoder: str) -> Piece:
    digest = hashlib.sha256(_FORMAT + encoder.encode())
    for document in documents:
        digest.update(bytes.fromhex(document.written_sha256))
    return Piece(digest.hexdigest()[:32], documents)
