"""Encodes chats as token ids, with a mask of the assistant's tokens: only they carry loss.

If the template marks the assistant's turns itself ({% generation %}), those marks are used.
Otherwise a turn is the text that the template adds to its rendering of the earlier messages and the
generation prompt. If that rendering is not a prefix of the whole (some templates rewrite earlier
turns), the turn's tokens are ambiguous, and the chat is not used.

A template is a third party's program, whose nested loops may never end: it gets ten seconds of
processor time per chat.
"""

import json
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from lectern_data.chats.chat_template import ChatTemplate, Messages, Span
from lectern_data.read.rows import UnusableError

_ASSISTANT = "assistant"
_MAX_SECONDS = 10.0

Encoded = tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8]]


class EndlessError(Exception):
    """The template does not finish on a chat; `index` counts the chats before it."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the chat template does not finish on chat {index + 1}")
        self.index = index


class ChatEncoder:
    """Turns chats into (ids, mask). Changes the tokenizer: it recognises special tokens in text."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        tokenizer.encode_special_tokens = False
        self._tokenizer = tokenizer
        self._template = template
        special = {
            token.content: number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        self._special_ids = np.array(sorted(special.values()), np.uint32)
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def encode(self, chats: list[str]) -> Iterator[Encoded | UnusableError]:
        """Yields (ids uint32, mask uint8) of each chat (see Content.of), or why it is unusable.

        The mask is 1 for tokens within a turn of the assistant, and for the token that ends the
        turn. No token is added: the template decides what starts and ends a chat.

        Raises:
            EndlessError: the template takes too long on a chat.
        """
        rendered: list[tuple[str, list[Span]] | UnusableError] = []
        with _TimeLimit() as limit:
            for index, chat in enumerate(chats):
                limit.restart()
                try:
                    rendered.append(self._rendered(json.loads(chat)))
                except (UnusableError, TimeoutError) as error:
                    if limit.is_over or isinstance(error, TimeoutError):
                        raise EndlessError(index) from None
                    rendered.append(error)
        texts = [entry[0] for entry in rendered if not isinstance(entry, UnusableError)]
        encodings = iter(self._tokenizer.encode_batch(texts, add_special_tokens=False))
        for entry in rendered:
            yield (
                entry if isinstance(entry, UnusableError) else self._masked(next(encodings), *entry)
            )

    def _rendered(self, messages: Messages) -> tuple[str, list[Span]]:
        """Returns the chat's text and the assistant's spans in it."""
        for text in _strings(messages):
            found = self._special.search(text)
            if found is not None:
                raise UnusableError(f"contains the control token {found.group()!r}")
        if self._template.marks_turns:
            text, spans = self._template.render_marked(messages)
        else:
            text = self._template.render(messages)
            spans = [
                self._turn(text, messages, index)
                for index, message in enumerate(messages)
                if message["role"] == _ASSISTANT
            ]
        if not any(start < end for start, end in spans):
            raise UnusableError("the chat template renders no text for the assistant's turns")
        return text, spans

    def _turn(self, text: str, messages: Messages, index: int) -> Span:
        before = self._template.render(messages[:index], prompt=True)
        after = self._template.render(messages[: index + 1])
        if not (text.startswith(after) and after.startswith(before)):
            raise UnusableError(
                f"cannot find the assistant's message {index + 1} in the text: the chat template "
                "renders earlier messages differently once later ones follow; add "
                "{% generation %} blocks to the template"
            )
        return len(before), len(after)

    def _masked(self, encoding: Encoding, text: str, spans: list[Span]) -> Encoded:
        ids = np.array(encoding.ids, np.uint32)
        starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
        is_special = np.isin(ids, self._special_ids)
        mask = np.zeros(len(ids), np.uint8)
        for begin, end in spans:
            within = np.flatnonzero((starts >= begin) & (ends <= end) & (starts < ends))
            specials = within[is_special[within]]
            if len(specials) and not text[ends[specials[-1]] : end].strip():
                # White space after the token that ends the turn belongs to the template.
                within = within[within <= specials[-1]]
            mask[within] = 1
            follows = int(np.searchsorted(starts, end))
            ended = len(within) and is_special[within[-1]]
            if not ended and follows < len(ids) and starts[follows] == end and is_special[follows]:
                mask[follows] = 1
        return ids, mask


class _TimeLimit:
    """Raises TimeoutError in code that still runs _MAX_SECONDS of processor time after `restart`.

    It uses a signal, which reaches only the main thread: prepare and its processes render there;
    other threads have no limit. A single Python operation is not interrupted either.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._works = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "_TimeLimit":
        if self._works:
            self._before = signal.signal(signal.SIGVTALRM, self._interrupt)
        return self

    def restart(self) -> None:
        if self._works:
            # Repeated every second: code in the template may catch the first one.
            signal.setitimer(signal.ITIMER_VIRTUAL, _MAX_SECONDS, 1.0)

    def __exit__(self, *_: object) -> None:
        if self._works:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._before)

    def _interrupt(self, *_: object) -> None:
        self.is_over = True
        raise TimeoutError


def _strings(value: Any) -> Iterator[str]:
    """Yields every string in plain JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
