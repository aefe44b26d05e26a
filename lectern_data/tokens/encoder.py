"""Encodes a piece's documents as ids, with a tokenizer and, for chats, a template.

It is built only from files, so that every process gets the same ids.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lectern_common.errors import CorruptData
from lectern_common.tokens.tokenizer_files import special_ids
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.chats import ChatEncoder, EndlessError
from lectern_data.read.documents import Document, texts_of
from lectern_data.read.rows import Content
from lectern_data.read.unusable import UnusableError
from lectern_data.tokens.pieces import EncodedPiece


@dataclass(frozen=True)
class EncoderFiles:
    """Everything that the ids depend on, besides the documents.

    Attributes:
        tokenizer: a tokenizer.json.
        content: what a row holds.
        chat_template: its source; None if and only if rows are not chats.
        special_tokens: the names that the template may use.
        tool_template: the source of the one for chats with tools; None means the same.
        date: what a template that asks for the date is told, as YYYY-MM-DD; None if none asks.
    """

    tokenizer: Path
    content: Content
    chat_template: str | None
    special_tokens: dict[str, str]
    tool_template: str | None = None
    date: str | None = None

    def sha256(self) -> str:
        """Returns the hash of their content, independent of their location."""
        said = {**asdict(self), "tokenizer": None}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        digest.update(self.tokenizer.read_bytes())
        return digest.hexdigest()


class Encoder:
    """Encodes documents; see EncoderFiles.

    In plain text a special token's spelling is encoded as characters, so that no document can end
    itself. There are no added tokens, no truncation and no padding.
    """

    def __init__(self, files: EncoderFiles) -> None:
        """Raises CorruptData if the chat template is not one."""
        self._content = files.content
        self._tokenizer = Tokenizer.from_file(str(files.tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._control_tokens = set(special_ids(self._tokenizer).values())
        self._chats = None
        if files.chat_template is not None:
            date = None if files.date is None else datetime.date.fromisoformat(files.date)
            template = ChatTemplate(files.chat_template, files.special_tokens, date)
            tool_template = None
            if files.tool_template is not None:
                tool_template = ChatTemplate(files.tool_template, files.special_tokens, date)
            self._chats = ChatEncoder(
                self._tokenizer, template, tool_template, is_prompt=files.content.is_prompt
            )

    def encode(self, documents: Sequence[Document]) -> EncodedPiece:
        """Reads the documents again and returns their ids.

        Raises:
            CorruptData: a file changed since the documents were found, or the chat template does
                not finish.
        """
        texts = list(texts_of(documents, self._content))
        if self._chats is not None:
            try:
                piece = _of_chats(self._chats, texts)
                return replace(piece, mask=None) if self._content.is_prompt else piece
            except EndlessError as error:
                raise CorruptData(
                    f"the chat template does not finish on {documents[error.index].name}; fix its "
                    "loops, or remove that chat"
                ) from None
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        parts = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        lengths = np.array([len(part) for part in parts], np.uint32)
        if not self._content.is_prompt:
            return EncodedPiece(lengths, _joined(parts, np.uint32), None, [])
        lost = [(int(index), "makes no tokens") for index in np.flatnonzero(lengths == 0)]
        spelt = sum(self._spells_control_tokens(text) for text in texts)
        return EncodedPiece(lengths, _joined(parts, np.uint32), None, lost, spelt=spelt)

    def _spells_control_tokens(self, text: str) -> bool:
        return any(token in text for token in self._control_tokens)


def _of_chats(encoder: ChatEncoder, texts: list[str]) -> EncodedPiece:
    encoded, left_out, counts, unasked = [], [], [], 0
    for index, chat in enumerate(encoder.encode(texts)):
        if isinstance(chat, UnusableError):
            left_out.append((index, str(chat)))
            counts.append(0)
            continue
        encoded += chat.sequences
        counts.append(len(chat.sequences))
        unasked += chat.unasked
    return EncodedPiece(
        np.array([len(ids) for ids, _ in encoded], np.uint32),
        _joined([ids for ids, _ in encoded], np.uint32),
        _joined([mask for _, mask in encoded], np.uint8),
        left_out,
        np.array(counts, np.uint32),
        unasked,
    )


def _joined(parts: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
