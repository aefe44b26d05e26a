"""What is sent for a prompt: the body of a request, as a chat or as text, with its own seed."""

import datetime
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lectern_common.errors import InvalidRequest
from lectern_data.asking.prompts import Prompt
from lectern_data.asking.settings import GenerateSettings, Way
from lectern_data.chats.chat import Chat
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.forms import fitted
from lectern_data.read.chat_rows import CHAT_FIELDS, TOOLS_FIELD
from lectern_data.tokens.tokenizer import DatasetTokenizer

PATHS: dict[Way, str] = {"chat": "/chat/completions", "text": "/completions"}
_MAX_SEED = 2**31  # what every server takes; the highest of 32 bits means "any" to some


@dataclass(frozen=True)
class Request:
    """One request for one answer.

    Attributes:
        key: of the prompt.
        sample: which of its answers.
        way: decides the path, and what the answer holds.
        body: the JSON to send.
    """

    key: str
    sample: int
    way: Way
    body: dict[str, Any]


class Requests:
    """Makes requests of prompts.

    Args:
        settings: the model, and how to sample.
        tokenizer: its chat template renders chats that are sent as text; None means that chats are
            only sent as chats.
        date: what the template is told if it asks for the date.
    """

    def __init__(
        self, settings: GenerateSettings, tokenizer: DatasetTokenizer | None, date: datetime.date
    ) -> None:
        self._settings = settings
        self._template = self._tool_template = None
        self._begins_with = ""
        if tokenizer is not None and tokenizer.chat_template is not None:
            special = tokenizer.special_tokens
            self._template = ChatTemplate(tokenizer.chat_template, special, date)
            self._tool_template = self._template
            if tokenizer.tool_template is not None:
                self._tool_template = ChatTemplate(tokenizer.tool_template, special, date)
            if tokenizer.beginning is not None:
                self._begins_with = special.get("bos_token", "")

    @property
    def renders(self) -> bool:
        """Whether chats can be sent as text."""
        return self._template is not None

    def of(self, prompt: Prompt, sample: int, way: Way) -> Request:
        """Returns the request for one answer to a prompt.

        Raises:
            UnusableError: the chat template fails on the chat.
            InvalidRequest: a chat shall be sent as text, and there is no template.
        """
        settings = self._settings
        said = json.loads(prompt.text)
        body: dict[str, Any] = {"model": settings.model}
        if way == "chat":
            body.update(_chat_of(said))
        else:
            body["prompt"] = said if isinstance(said, str) else self._rendered(prompt.text)
        body["max_tokens"] = settings.max_tokens
        body["seed"] = seed_of(settings.seed, prompt.key, sample)
        for name in ("temperature", "top_p"):
            if getattr(settings, name) is not None:
                body[name] = getattr(settings, name)
        return Request(prompt.key, sample, way, body)

    def _rendered(self, text: str) -> str:
        """Returns a chat as its template writes it, with the start of the answer.

        A server puts the token that begins a text before it if the tokenizer does so; then it is
        not written here too.
        """
        if self._template is None or self._tool_template is None:
            raise InvalidRequest(
                "chats are sent as text by the tokenizer's chat template, and there is none: set "
                "--tokenizer to a folder with one, or --send chat",
                "send",
            )
        chat = Chat.loaded(text).as_seen()
        has_tools = chat.inputs.get(TOOLS_FIELD) is not None
        template = self._tool_template if has_tools else self._template
        form = fitted(template, chat)
        written = template.render(form.messages, prompt=True, inputs=form.inputs)
        return written.removeprefix(self._begins_with)


def seed_of(seed: int, key: str, sample: int) -> int:
    """Returns the seed of one request: of the prompt, not of its place among the others."""
    digest = hashlib.sha256(f"{seed} {key} {sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % _MAX_SEED


def _chat_of(said: Any) -> dict[str, Any]:
    """Returns the fields of a request for a chat; a text is one message of the user."""
    if isinstance(said, str):
        return {"messages": [{"role": "user", "content": said}]}
    chat = Chat.loaded(json.dumps(said)).as_seen()
    beside = {name: chat.inputs[name] for name in CHAT_FIELDS if name in chat.inputs}
    arguments = {name: value for name, value in chat.inputs.items() if name not in CHAT_FIELDS}
    return {
        "messages": chat.messages,
        **beside,
        **({"chat_template_kwargs": arguments} if arguments else {}),
    }


def row_of(prompt: str, answer: Mapping[str, Any], way: Way) -> dict[str, Any]:
    """Returns the row of a prompt (its JSON) and its answer, as `lectern data prepare` reads it.

    Of a chat, only this answer is learnt: what the assistant has said before gets the weight 0.
    """
    said = json.loads(prompt)
    if isinstance(said, str) and way == "text":
        return {"text": said + answer["text"], **_ended(answer)}
    if isinstance(said, str):
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": said}]}
    else:
        chat = {"messages": said} if isinstance(said, list) else dict(said)
    if "arguments" in chat:
        chat["chat_template_kwargs"] = chat.pop("arguments")
    context = [
        {**message, "weight": 0} if message["role"] == "assistant" else message
        for message in chat["messages"]
    ]
    message = answer.get("message") or {"role": "assistant", "content": answer["text"]}
    return {**chat, "messages": [*context, {**message, **_ended(answer)}]}


def _ended(answer: Mapping[str, Any]) -> dict[str, str]:
    """Returns what tells `lectern data prepare` that an answer has no end."""
    return {"finish_reason": "length"} if answer["finish_reason"] == "length" else {}
