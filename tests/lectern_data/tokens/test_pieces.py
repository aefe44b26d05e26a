"""A piece's file holds its documents' sequences, and is checked when it is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import CorruptData
from lectern_data.read.documents import Document
from lectern_data.tokens.pieces import (
    EncodedPiece,
    Piece,
    is_done,
    piece_left_out,
    read_piece,
    write_piece,
)

DOCUMENTS = [Document(f"row#{number}", Path("rows"), 1, "0" * 64) for number in range(3)]
PIECE = Piece("name", DOCUMENTS)
CHATS = EncodedPiece(
    lengths=np.array([2, 3, 1], np.uint32),
    ids=np.arange(6, dtype=np.uint32),
    mask=np.array([0, 1, 0, 0, 1, 1], np.uint8),
    left_out=[(1, "why")],
    sequences=np.array([2, 0, 1], np.uint32),
    unasked=4,
)
TEXTS = EncodedPiece(np.array([2, 0, 4], np.uint32), CHATS.ids, None, [])


def listed(piece: EncodedPiece) -> list[object]:
    arrays = (piece.lengths, piece.ids, piece.mask, piece.sequences)
    return [
        *(None if part is None else part.tolist() for part in arrays),
        *(piece.left_out, piece.unasked, piece.documents),
    ]


@pytest.mark.parametrize("piece", [CHATS, TEXTS], ids=["chats", "texts"])
def test_a_piece_is_read_as_it_was_written(tmp_path: Path, piece: EncodedPiece) -> None:
    write_piece(tmp_path, "name", piece)
    assert listed(read_piece(tmp_path, PIECE)) == listed(piece)
    assert is_done(tmp_path, PIECE) and not is_done(tmp_path, Piece("name", DOCUMENTS[:2]))
    lost = [entry.name for entry in piece_left_out(PIECE, tmp_path)]
    assert lost == (["row#1"] if piece is CHATS else [])


def test_counts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for wrong in ([1, 0, 1], [2, 0, 2]):
        write_piece(tmp_path, "name", replace(CHATS, sequences=np.array(wrong, np.uint32)))
        with pytest.raises(CorruptData, match="incomplete"):
            read_piece(tmp_path, PIECE)
