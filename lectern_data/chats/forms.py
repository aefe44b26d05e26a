"""Gives a chat the form in which its template writes all of it.

Templates differ in what they take. For a turn that only calls a tool, some want a null content,
some fail on it, and some write it as the word None. Some write text parts, others only a text. Some
write JSON text as it is, others would encode it a second time, or want an object. So the forms are
tried, as written first, until the template writes everything that the chat says.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lectern_data.chats.chat import Chat
from lectern_data.chats.chat_template import ChatTemplate, Messages
from lectern_data.read.chat_rows import called
from lectern_data.read.unusable import UnusableError

_PROBE = '{"lectern": "x"}'
_ABSENT = object()

Message = dict[str, Any]
Rendering = Callable[[Messages], str]


def fitted(template: ChatTemplate, chat: Chat) -> Chat:
    """Returns the chat in the first form that the template writes whole.

    Raises:
        UnusableError: there is none: the template fails on the chat, or leaves out a call.
    """
    if not any(map(_has_forms, chat.messages)):
        return chat
    why: list[UnusableError] = []
    for messages in _forms(chat.messages):
        try:
            _require_written(template, messages, chat.inputs)
            return Chat(messages, chat.inputs)
        except _LeftOutError as error:
            why.insert(0, error)
        except UnusableError as error:
            why.append(error)
    raise why[0]


class _LeftOutError(UnusableError):
    """The template does not write a call."""


def _has_forms(message: Message) -> bool:
    return bool(called(message)) or not isinstance(message.get("content"), str)


def _forms(messages: Messages) -> Iterator[Messages]:
    """Yields the chat as written, then with other forms of what templates take differently."""
    written = [messages]
    if any(isinstance(message.get("content"), list) for message in messages):
        written.append([_with_joined_text(message) for message in messages])
    for one in written:
        nulls: tuple[Any, ...] = (None,)
        if any(_is_null(message) for message in one):
            nulls = (None, _ABSENT, "")
        for null in nulls:
            form = [
                _with_content(message, null) if _is_null(message) else message for message in one
            ]
            yield form
            for change in (_parsed, _dumped):
                changed = [_with_arguments(message, change) for message in form]
                if changed != form:
                    yield changed


def _require_written(template: ChatTemplate, messages: Messages, inputs: dict[str, Any]) -> None:
    """Raises UnusableError unless the template writes everything.

    It is rendered only a few times, however long the chat: with other contents, names and arguments
    in all messages at once. Only what is not found then is looked for message by message.
    """

    def rendered(chat: Messages) -> str:
        return template.render(chat, inputs=inputs)

    text = rendered(messages)
    _require_nulls(rendered, messages, text)
    parts = {
        index: [{"type": "text", "text": f"lectern{index}."}]
        for index, message in enumerate(messages)
        if isinstance(message.get("content"), list)
    }
    if parts:
        told = rendered(_replaced(messages, parts))
        for index, [part] in parts.items():
            if str(part) in told:
                raise UnusableError("the chat template writes text parts as Python does")
            if part["text"] not in told:
                _require_parts(rendered, messages, index, text)
    for place in _lost_calls(rendered, messages):
        _require_calls(rendered, messages[: place + 1])


def _require_nulls(rendered: Rendering, messages: Messages, text: str) -> None:
    nulls = [index for index, message in enumerate(messages) if _is_null(message)]
    for places in [nulls, nulls[:1], nulls[-1:]] if len(nulls) > 1 else [nulls]:
        words = dict.fromkeys(places, "None")
        if places and rendered(_replaced(messages, words)) == text:
            raise UnusableError("the chat template writes a null content as the word None")


def _require_parts(rendered: Rendering, messages: Messages, index: int, text: str) -> None:
    parts = messages[index]["content"]
    blank = [{**part, "text": ""} for part in parts]
    if _joined(parts).strip() and rendered(_replaced(messages, {index: blank})) == text:
        raise UnusableError(f"the chat template leaves out the text parts of message {index + 1}")


def _lost_calls(rendered: Rendering, messages: Messages) -> list[int]:
    """Returns the places of messages whose calls are not found when all are rendered at once."""
    calling = [index for index, message in enumerate(messages) if called(message)]
    if not calling:
        return []
    changed, wanted = list(messages), dict[int, list[str]]()
    for index in calling:
        calls = called(messages[index])
        names = [f"{call['name']}_{index}_{number}." for number, call in enumerate(calls)]
        probe = _PROBE.replace("x", f"x{index}")
        has_text = any(_is_json_text(call.get("arguments")) for call in calls)
        wanted[index] = [*names, probe] if has_text else names
        changed[index] = _with_probes(_with_names(messages[index], names), probe)
    try:
        told = rendered(changed)
    except UnusableError:  # perhaps it knows the names of its functions
        return calling
    return [index for index, texts in wanted.items() if not all(part in told for part in texts)]


def _require_calls(rendered: Rendering, messages: Messages) -> None:
    """Raises UnusableError unless the last message's calls are written, and encoded once."""
    *before, message = messages
    if any(_is_json_text(call.get("arguments")) for call in called(message)):
        text = rendered([*before, _with_probes(message, _PROBE)])
        if _PROBE not in text:
            raise UnusableError("the chat template does not take arguments that are JSON text")
    names = [call["name"] for call in called(message)]
    renamed = [f"{name}_{number}." for number, name in enumerate(names)]
    try:
        text, wanted = rendered([*before, _with_names(message, renamed)]), renamed
    except UnusableError:  # it knows the names of its functions
        text, wanted = rendered(messages), names
    lost = [name for name, shown in zip(names, wanted, strict=True) if shown not in text]
    if lost:
        raise _LeftOutError(
            f"the chat template does not write the call of {lost[0]!r} in message {len(messages)}"
        )


def _is_null(message: Message) -> bool:
    return "content" in message and message["content"] is None


def _replaced(messages: Messages, contents: Mapping[int, object]) -> Messages:
    """Returns the messages with other contents, by their places."""
    return [
        _with_content(message, contents[index]) if index in contents else message
        for index, message in enumerate(messages)
    ]


def _with_content(message: Message, content: object) -> Message:
    if content is _ABSENT:
        return {name: part for name, part in message.items() if name != "content"}
    return {**message, "content": content}


def _with_joined_text(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": _joined(content)} if isinstance(content, list) else message


def _joined(parts: list[dict[str, str]]) -> str:
    return "".join(part["text"] for part in parts)


def _with_arguments(message: Message, change: Callable[[Any], Any]) -> Message:
    return _with_calls(
        message,
        lambda _, call: (
            {**call, "arguments": change(call["arguments"])} if "arguments" in call else call
        ),
    )


def _with_probes(message: Message, probe: str) -> Message:
    """Returns the message with `probe` for arguments that are JSON text."""
    return _with_arguments(message, lambda value: probe if _is_json_text(value) else value)


def _with_names(message: Message, names: list[str]) -> Message:
    return _with_calls(message, lambda number, call: {**call, "name": names[number]})


def _with_calls(message: Message, change: Callable[[int, Any], Any]) -> Message:
    """Returns the message with each called function changed; `change` gets its number."""
    if not called(message):
        return message
    changed = dict(message)
    calls = message.get("tool_calls") or []
    if calls:
        changed["tool_calls"] = [
            {**call, "function": change(number, call["function"])}
            if "function" in call
            else change(number, call)
            for number, call in enumerate(calls)
        ]
    if message.get("function_call") is not None:
        changed["function_call"] = change(len(calls), message["function_call"])
    return changed


def _is_json_text(value: object) -> bool:
    return isinstance(value, str) and isinstance(_parsed(value), dict)


def _parsed(value: Any) -> Any:
    """Returns the object that JSON text says; else the value as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, dict) else value


def _dumped(value: Any) -> Any:
    """Returns an object as JSON text; else the value as it is."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
