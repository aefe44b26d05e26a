"""Chats as token ids, with a mask of what the assistant wrote: loss falls on that alone.

Where the template marks the assistant's turns itself ({% generation %}), they are those. Elsewhere
a turn is what the template adds to the rendering of the messages before it and of the prompt that
asks for it; where that is not how the whole begins (templates that rewrite earlier turns), nobody
can say which tokens are the turn's, and the chat is not used.

A template is somebody else's program, and its loops within loops may last for ever: it is given ten
seconds of processor time for a chat.
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
    """The template does not come to its end on a chat; `index` counts the chats before it."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the chat template does not come to an end on chat {index + 1}")
        self.index = index


class ChatEncoder:
    """Turns chats into (ids, mask). Changes the tokenizer: special tokens in a text are such."""

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
        """Yields (ids uint32, mask uint8) of each chat (see Content.of), or why it has none.

        The mask is 1 for a token that lies within a turn of the assistant, and for the token that
        ends the turn. No token is added: the template says what begins and ends a chat.

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
                raise UnusableError(f"spells the control token {found.group()!r}")
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
            raise UnusableError("the chat template gives the assistant's turns no text")
        return text, spans

    def _turn(self, text: str, messages: Messages, index: int) -> Span:
        before = self._template.render(messages[:index], prompt=True)
        after = self._template.render(messages[: index + 1])
        if not (text.startswith(after) and after.startswith(before)):
            raise UnusableError(
                f"message {index + 1}, the assistant's, cannot be told from the rest: the chat "
                "template does not render a chat's beginning as the beginning of the chat; give "
                "the template {% generation %} blocks"
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
                # White space behind the token that ends the turn is the template's.
                within = within[within <= specials[-1]]
            mask[within] = 1
            follows = int(np.searchsorted(starts, end))
            ended = len(within) and is_special[within[-1]]
            if not ended and follows < len(ids) and starts[follows] == end and is_special[follows]:
                mask[follows] = 1
        return ids, mask


class _TimeLimit:
    """Interrupts what runs _MAX_SECONDS of processor time after `restart`, by a TimeoutError.

    By a signal, which reaches the main thread alone: that is where prepare and its processes
    render; elsewhere there is no limit. A single operation of Python's is not interrupted either.
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
            # Once more a second later, and so on: a template's own operations may catch the first.
            signal.setitimer(signal.ITIMER_VIRTUAL, _MAX_SECONDS, 1.0)

    def __exit__(self, *_: object) -> None:
        if self._works:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, self._before)

    def _interrupt(self, *_: object) -> None:
        self.is_over = True
        raise TimeoutError


def _strings(value: Any) -> Iterator[str]:
    """Yields every text in plain JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
