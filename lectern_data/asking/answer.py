"""What a server has answered to a request, believed only as far as it is checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lectern_common.words import inert_name
from lectern_data.asking.settings import Way
from lectern_data.read.chat_rows import ASSISTANT, REASONING_FIELDS, chat_json
from lectern_data.read.scan import MAX_DOCUMENT_BYTES
from lectern_data.read.unusable import UnusableError

# Servers give up on a request under these names.
_BROKEN_OFF = ("abort", "error")
_SHOWN_CHARACTERS = 200


class RefusedError(Exception):
    """There is no usable answer, and asking again would not change that."""


Failure = Literal["failed", "busy", "away", "unreached"]
"""Why there is no answer yet: this request failed; the server has no time; something in front of it
does not reach it; nothing listens at its address."""


class TryAgainError(Exception):
    """No answer, but the same request may get one later.

    Attributes:
        failure: see Failure.
        after_seconds: how long the server asks to wait.
    """

    def __init__(self, why: str, failure: Failure = "failed", after_seconds: float = 0.0) -> None:
        super().__init__(why)
        self.failure = failure
        self.after_seconds = after_seconds


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        message: of the assistant; None if the prompt was sent as text.
        text: what follows the prompt; None if it was sent as a chat.
        finish_reason: "length" if it was cut at the most tokens.
        tokens: how many it has; None means that the server does not say.
        model: the name that the server gives for the model.
    """

    message: dict[str, Any] | None
    text: str | None
    finish_reason: str
    tokens: int | None
    model: str | None


def judged(body: object, way: Way) -> Answer:
    """Returns the answer in the JSON of a reply.

    Raises:
        RefusedError: it has none, or one that cannot be used.
        TryAgainError: the reply is not one of this interface, or the server has broken off.
    """
    choices = body.get("choices") if isinstance(body, Mapping) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(body, Mapping) or not isinstance(choice, Mapping):
        raise _foreign(body)
    finish = choice.get("finish_reason")
    if finish == "content_filter":
        raise RefusedError("refused by the server's filter (finish_reason content_filter)")
    if finish in _BROKEN_OFF:
        raise TryAgainError(f"the server broke off (finish_reason {finish})")
    is_cut = finish == "length"
    message = _message(body, choice, is_cut=is_cut) if way == "chat" else None
    text = _text(body, choice, is_cut=is_cut) if way == "text" else None
    usage = body.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    is_count = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 2**53
    model = body.get("model")
    return Answer(
        message,
        text,
        "length" if is_cut else "stop",
        tokens if is_count else None,
        model if isinstance(model, str) else None,
    )


def _text(body: object, choice: Mapping[str, Any], *, is_cut: bool) -> str:
    text = choice.get("text")
    if not isinstance(text, str):
        raise _foreign(body)
    if not text.strip():
        raise RefusedError(_blank(is_cut=is_cut))
    _require_writable(text)
    return text


def _message(body: object, choice: Mapping[str, Any], *, is_cut: bool) -> dict[str, Any]:
    """Returns the message with what it says, thinks and calls, and nothing else."""
    given = choice.get("message")
    if not isinstance(given, Mapping):
        raise _foreign(body)
    content, calls = given.get("content"), given.get("tool_calls")
    if not (content is None or isinstance(content, str)) or not isinstance(calls, list | None):
        raise _foreign(body)
    if isinstance(given.get("refusal"), str) and given["refusal"]:
        raise RefusedError("refused by the model (it filled the field refusal)")
    message: dict[str, Any] = {"role": ASSISTANT, "content": content}
    thoughts = (given.get(name) for name in REASONING_FIELDS)
    thought = next((one for one in thoughts if isinstance(one, str) and one), None)
    if thought is not None:
        message[REASONING_FIELDS[0]] = thought
    if calls:
        message["tool_calls"] = calls
    elif not (content or "").strip():
        raise RefusedError(_blank(is_cut=is_cut))
    _require_writable(json.dumps(message, ensure_ascii=False))
    try:
        chat_json({"messages": [message]}, "messages")
    except UnusableError as error:
        raise RefusedError(str(error).replace("message 1 ", "the answer ")) from None
    return message


def _blank(*, is_cut: bool) -> str:
    if is_cut:
        return "cut before it said anything (it was thinking); raise --max-tokens"
    return "empty"


def _require_writable(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise RefusedError("the answer has a lone surrogate") from None
    if size > MAX_DOCUMENT_BYTES:
        raise RefusedError(f"larger than {MAX_DOCUMENT_BYTES:,} bytes; lower --max-tokens")


def _foreign(body: object) -> TryAgainError:
    """Returns the error for a reply that has another form."""
    return TryAgainError(f"the reply is not one of the OpenAI interface: {shown(body)}")


def shown(body: object) -> str:
    """Returns what a server has said, short, and safe on a terminal."""
    said: Any = body
    for _ in range(3):
        if not isinstance(said, Mapping):
            break
        inner = next(
            (said[name] for name in ("error", "message", "detail") if said.get(name)), None
        )
        if inner is None:
            break
        said = inner
    text = said if isinstance(said, str) else json.dumps(said, default=str)
    text = " ".join(text.split())
    return inert_name(text[:_SHOWN_CHARACTERS] + ("..." if len(text) > _SHOWN_CHARACTERS else ""))
