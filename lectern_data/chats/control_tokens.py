"""Keeps control tokens that a text spells apart from those that a chat template writes.

Before a chat is rendered, a mark is put into every spelling of a control token in it. So in the
rendered text, what still reads as a control token was written by the template. If there is any
mark, the text is encoded by a second tokenizer that knows the template's tokens under other names,
and encodes spellings as characters, like those of plain text.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Encoding, Tokenizer

from lectern_data.chats.answers import Sequence
from lectern_data.chats.chat import Chat
from lectern_data.read.chat_rows import ASSISTANT
from lectern_data.read.unusable import UnusableError

# Code points that no text holds: Unicode keeps them free for use inside a program.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDE0)]
_OPEN, _CLOSE = "\ufdee", "\ufdef"


@dataclass(frozen=True)
class Tokens:
    """Ids (uint32), and where each starts and ends in the text, in characters."""

    ids: npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    @classmethod
    def of(cls, encoding: Encoding) -> "Tokens":
        offsets = encoding.offsets
        flat = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets))
        starts, ends = flat.reshape(-1, 2).T
        return cls(np.array(encoding.ids, np.uint32), starts, ends)


class ControlTokens:
    """The special tokens of a tokenizer, which it must recognise in text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._spelling: Tokenizer | None = None
        self._numbers: dict[int | None, int] = {}
        self._special = {
            number: token
            for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
            if token.special
        }
        self._by_text = {token.content: number for number, token in self._special.items()}
        self._is_special = np.zeros(max(self._special, default=-1) + 2, np.bool_)
        self._is_special[[*self._special]] = True
        longest_first = sorted(self._by_text, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def among(self, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Returns which of the ids are special tokens."""
        return self._is_special[np.minimum(ids, len(self._is_special) - 1)]

    def marked(self, chat: Chat, looked_for: Collection[str]) -> tuple[Chat, str]:
        """Returns the chat with its spellings marked, and the mark; "" if it has none.

        What the template looks for, it must find in the assistant's messages: a token in such a
        text stays as it is there.

        Raises:
            UnusableError: the chat uses every code point that could be a mark.
        """
        texts = chat.strings()
        if not any(map(self._pattern.search, texts)):
            return chat, ""
        for mark in _MARKS:
            if not any(mark in text or _escaped(mark) in text for text in texts):
                break
        else:
            raise UnusableError("spells a control token, and holds all noncharacters")
        if any(_OPEN in text for text in texts):
            raise UnusableError("spells a control token, and holds the noncharacter U+FDEE")

        kept = {token for token in self._by_text if any(token in text for text in looked_for)}

        def spelt(text: str) -> str:
            return self._pattern.sub(lambda found: found[0][:1] + mark + found[0][1:], text)

        def own(text: str) -> str:
            return self._pattern.sub(
                lambda found: found[0] if found[0] in kept else spelt(found[0]), text
            )

        messages = [
            _mapped(message, own if message["role"] == ASSISTANT else spelt)
            for message in chat.messages
        ]
        return Chat(messages, _mapped(chat.inputs, spelt)), mark

    def unmarked(self, sequence: Sequence, mark: str) -> Sequence:
        """Returns a rendered sequence for `encode`: without marks, and with other names."""
        pattern = re.compile(f"{mark}|{re.escape(_escaped(mark))}|{self._pattern.pattern}")
        ends, moved = [0], [0]  # from an end of a replacement on, text is moved by so much

        def renamed(found: "re.Match[str]") -> str:
            number = self._by_text.get(found[0])
            name = "" if number is None else _name(number)
            ends.append(found.end())
            moved.append(moved[-1] + len(name) - len(found[0]))
            return name

        text = pattern.sub(renamed, sequence.text)

        def place(old: int) -> int:
            return old + moved[bisect_right(ends, old) - 1]

        spans = [(place(start), place(end)) for start, end in sequence.spans]
        return replace(sequence, text=text, spans=spans, prompt_chars=place(sequence.prompt_chars))

    def encode(self, text: str) -> Tokens:
        """Returns the tokens of a text from `unmarked`.

        Raises:
            UnusableError: the tokenizer makes a control token of characters.
        """
        if self._spelling is None:
            self._spelling = self._spelling_tokenizer()
            self._numbers = {
                self._spelling.token_to_id(_name(number)): number for number in self._special
            }
        found = Tokens.of(self._spelling.encode(text, add_special_tokens=False))
        made = np.flatnonzero(self.among(found.ids))
        if len(made):
            token = self._special[int(found.ids[made[0]])].content
            raise UnusableError(
                f"spells the control token {token!r}, which the tokenizer makes of characters"
            )
        ids = [self._numbers.get(number, number) for number in found.ids.tolist()]
        return replace(found, ids=np.array(ids, np.uint32))

    def _spelling_tokenizer(self) -> Tokenizer:
        twin = Tokenizer.from_str(self._tokenizer.to_str())
        twin.no_truncation()
        twin.no_padding()
        twin.encode_special_tokens = True
        twin.add_tokens(
            [
                AddedToken(
                    _name(number),
                    single_word=token.single_word,
                    lstrip=token.lstrip,
                    rstrip=token.rstrip,
                    normalized=False,
                    special=False,
                )
                for number, token in self._special.items()
            ]
        )
        return twin


def _name(number: int) -> str:
    """Returns the second name of the control token with that id."""
    return f"{_OPEN}{number}{_CLOSE}"


def _escaped(mark: str) -> str:
    """Returns the mark as JSON in ASCII shows it."""
    return f"\\u{ord(mark):04x}"


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Returns plain JSON data with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(name): _mapped(part, change) for name, part in value.items()}
    if isinstance(value, list):
        return [_mapped(part, change) for part in value]
    return value
