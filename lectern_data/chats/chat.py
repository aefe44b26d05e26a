"""A chat as a template sees it: messages, and what stands beside them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lectern_data.chats.chat_template import ChatTemplate, Messages, Span
from lectern_data.read.chat_rows import FINISH, WEIGHT

_UNSEEN = (WEIGHT, FINISH)


@dataclass(frozen=True)
class Chat:
    """A chat.

    Attributes:
        messages: at least one, of the assistant unless it is a prompt; `content` is None if a turn
            only calls tools.
        inputs: what the template gets besides: tools, documents, and other names.
    """

    messages: Messages
    inputs: dict[str, Any]

    @classmethod
    def loaded(cls, text: str) -> "Chat":
        """Returns the chat of a document's text, as chat_rows.py writes it."""
        said = json.loads(text)
        if isinstance(said, list):
            return cls(said, {})
        inputs = said.pop("arguments", {})
        return cls(said.pop("messages"), {**said, **inputs})

    def strings(self) -> list[str]:
        """Returns every string in it, keys included."""
        return [*_strings([self.messages, self.inputs])]

    def as_seen(self) -> "Chat":
        """Returns the chat as a template sees it: what is learnt is no concern of it."""
        if not any(name in message for message in self.messages for name in _UNSEEN):
            return self
        messages = [
            {name: part for name, part in message.items() if name not in _UNSEEN}
            for message in self.messages
        ]
        return Chat(messages, self.inputs)


class Renderings:
    """Renders the beginnings of a chat, each once."""

    def __init__(self, template: ChatTemplate, chat: Chat) -> None:
        self.messages = chat.messages
        self._template = template
        self._inputs = chat.inputs
        self._done: dict[tuple[int, bool], tuple[str, list[Span]]] = {}

    def text(self, count: int) -> str:
        """Returns the first `count` messages as text. Raises UnusableError."""
        return self.marked(count)[0]

    def prompt(self, count: int) -> str:
        """Returns the prompt that asks for the message after the first `count`, at least one."""
        return self._rendered(count, prompt=True)[0]

    def marked(self, count: int) -> tuple[str, list[Span]]:
        """Returns `text(count)`, and the spans in it that the template marks."""
        return self._rendered(count, prompt=False)

    def _rendered(self, count: int, *, prompt: bool) -> tuple[str, list[Span]]:
        key = (count, prompt)
        if key not in self._done:
            self._done[key] = self._template.render_marked(
                self.messages[:count], prompt=prompt, inputs=self._inputs
            )
        return self._done[key]


def _strings(value: Any) -> Iterator[str]:
    """Yields every string in plain JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, part in value.items():
            yield name
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)
