"""What turns a piece's documents into ids: a tokenizer, and for chats a template. From files alone,
so that another process makes the same of them.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lectern_common.errors import CorruptData
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.chats import ChatEncoder, EndlessError
from lectern_data.read.documents import Document, texts_of
from lectern_data.read.rows import Content, UnusableError
from lectern_data.tokens.pieces import EncodedPiece


@dataclass(frozen=True)
class EncoderFiles:
    """All that the ids depend on beside the documents.

    Attributes:
        tokenizer: a tokenizer.json.
        content: what a row holds.
        chat_template: its source; None exactly where no chats are read.
        special_tokens: what the template may name.
    """

    tokenizer: Path
    content: Content
    chat_template: str | None
    special_tokens: dict[str, str]

    def sha256(self) -> str:
        """Returns the hash over what they say, wherever they lie."""
        said = {**asdict(self), "tokenizer": None}
        digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
        digest.update(self.tokenizer.read_bytes())
        return digest.hexdigest()


class Encoder:
    """See EncoderFiles. A special token's spelling in a plain text is encoded as its characters: no
    document can end itself. No token is added, cut off or padded.
    """

    def __init__(self, files: EncoderFiles) -> None:
        """Raises CorruptData where the chat template is none."""
        self._content = files.content
        self._tokenizer = Tokenizer.from_file(str(files.tokenizer))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._chats = None
        if files.chat_template is not None:
            template = ChatTemplate(files.chat_template, files.special_tokens)
            self._chats = ChatEncoder(self._tokenizer, template)

    def encode(self, documents: Sequence[Document]) -> EncodedPiece:
        """Returns the ids of the documents, read again.

        Raises:
            CorruptData: a file changed since the documents were found, or the chat template does
                not come to an end.
        """
        texts = list(texts_of(documents, self._content))
        if self._chats is not None:
            try:
                return _of_chats(self._chats, texts)
            except EndlessError as error:
                raise CorruptData(
                    f"the chat template does not come to an end on {documents[error.index].name}; "
                    "mend its loops, or leave that chat out"
                ) from None
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        parts = [np.array(encoding.ids, np.uint32) for encoding in encodings]
        lengths = np.array([len(part) for part in parts], np.uint32)
        return EncodedPiece(lengths, _joined(parts, np.uint32), None, [])


def _of_chats(encoder: ChatEncoder, texts: list[str]) -> EncodedPiece:
    ids, masks, lengths, left_out = [], [], [], []
    for index, encoded in enumerate(encoder.encode(texts)):
        if isinstance(encoded, UnusableError):
            left_out.append((index, str(encoded)))
            lengths.append(0)
            continue
        ids.append(encoded[0])
        masks.append(encoded[1])
        lengths.append(len(encoded[0]))
    return EncodedPiece(
        np.array(lengths, np.uint32), _joined(ids, np.uint32), _joined(masks, np.uint8), left_out
    )


def _joined(parts: list[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)
