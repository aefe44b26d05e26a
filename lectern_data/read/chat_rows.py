"""Reads chats from rows: messages, and what stands beside them (tools, documents, arguments).

A chat is kept as JSON in the order in which its keys were written, because templates render them in
that order. Nulls say "not there" in a row of a Parquet file or a hub dataset, whose structs fill in
every field that any row has; in a line of JSON they were written.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lectern_data.read.unusable import UnusableError, listed

ASSISTANT = "assistant"
TOOLS_FIELD = "tools"
DOCUMENTS_FIELD = "documents"
ARGUMENTS_FIELD = "chat_template_kwargs"
WEIGHT = "weight"
FINISH = "finish_reason"
CUT = "length"
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
# Of a message, what is always used, or refused where a template does not write it.
MESSAGE_FIELDS = ("role", "content", "tool_calls", "function_call", WEIGHT, FINISH)
CHAT_FIELDS = (TOOLS_FIELD, DOCUMENTS_FIELD, ARGUMENTS_FIELD)
_NOT_ARGUMENTS = ("messages", "chat_template", "add_generation_prompt", "continue_final_message")


def chat_json(
    row: Mapping[str, Any],
    field: str,
    arguments: tuple[str, ...] = (),
    *,
    columnar: bool = False,
    is_prompt: bool = False,
) -> str:
    """Returns a row's chat as JSON: its messages; or, if something stands beside them, an object.

    Args:
        row: the row.
        field: where its messages are.
        arguments: further fields that the chat template reads.
        columnar: the row's nulls mean "not there".
        is_prompt: only what comes before the assistant's messages at its end is wanted.

    Raises:
        UnusableError: the row has no chat, or one that cannot be learnt.
    """
    values = {name: row[name] for name in (field, *CHAT_FIELDS, *arguments) if name in row}
    if columnar:
        values = {name: without_nulls(value) for name, value in values.items()}
    said = values.pop(field, None)
    chat: dict[str, Any] = {
        "messages": _asking(said, field) if is_prompt else _messages(said, field)
    }
    given = _arguments(values.pop(ARGUMENTS_FIELD, None))
    for name in (TOOLS_FIELD, DOCUMENTS_FIELD):
        items = _mappings(values.pop(name, None), name)
        others = _mappings(given.pop(name, None), name)
        if items is not None and others is not None and items != others:
            raise UnusableError(f"its {name!r} and those in its {ARGUMENTS_FIELD!r} differ")
        if items is not None or others is not None:
            chat[name] = others if items is None else items
    beside = {name: value for name, value in values.items() if value is not None}
    for name, value in beside.items():
        if name in given and given[name] != value:
            raise UnusableError(f"its {name!r} and that in its {ARGUMENTS_FIELD!r} differ")
    if beside or given:
        chat["arguments"] = {**beside, **given}
    try:
        return _dumped(chat if len(chat) > 1 else chat["messages"])
    except (TypeError, ValueError, RecursionError):
        raise UnusableError("its messages are not plain JSON") from None


def sorted_json(chat: str) -> str:
    """Returns `chat_json`'s text with sorted keys: equal for chats that say the same."""
    return _dumped(json.loads(chat), sort_keys=True)


def is_learnt(message: Mapping[str, Any]) -> bool:
    """Returns whether a message is the assistant's own, and its `weight` is not 0."""
    return message["role"] == ASSISTANT and message.get(WEIGHT) != 0


def is_cut(said: Mapping[str, Any]) -> bool:
    """Returns whether a message, or a row of text, was cut: its `finish_reason` is "length".

    So what follows it is no end: a model that had gone on would have said more.
    """
    return said.get(FINISH) == CUT


def field_names(row: Mapping[str, Any], messages: str | None = None) -> Iterator[str]:
    """Yields the names of a row's fields, and of the template arguments and message fields in it.

    Args:
        row: the row.
        messages: the field where its messages are; None if it is no chat.
    """
    yield from row
    said = None if messages is None else _parsed(row.get(messages))
    for message in said if isinstance(said, (list, tuple)) else ():
        if isinstance(message, Mapping):
            for name, value in message.items():
                if value is not None:
                    yield f"{messages}.{name}"
    given = _parsed(row.get(ARGUMENTS_FIELD))
    if isinstance(given, Mapping):
        for name, value in given.items():
            if value is not None:
                yield f"{ARGUMENTS_FIELD}.{name}"


def without_nulls(value: Any) -> Any:
    """Returns the value without the nulls in its mappings, at every depth."""
    if isinstance(value, Mapping):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    if isinstance(value, (list, tuple)):
        return [without_nulls(part) for part in value]
    return value


def called(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the functions that a message calls: mappings with a name."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or ()]
    old_style = message.get("function_call")
    return [*calls, old_style] if old_style is not None else calls


def _asking(value: Any, field: str) -> list[dict[str, Any]]:
    """Returns the messages without the assistant's at the end: what asks for those."""
    given = list(_given(value, field))
    while given and isinstance(given[-1], Mapping) and given[-1].get("role") == ASSISTANT:
        given.pop()
    if not given:
        raise UnusableError("the assistant speaks only before anything is asked")
    return [_message(message, number) for number, message in enumerate(given, 1)]


def _given(value: Any, field: str) -> list[Any]:
    given = _parsed(value)
    if not isinstance(given, list) or not given:
        raise UnusableError(f"has no messages under {field!r}")
    return given


def _messages(value: Any, field: str) -> list[dict[str, Any]]:
    messages = [_message(message, number) for number, message in enumerate(_given(value, field), 1)]
    if not any(message["role"] == ASSISTANT for message in messages):
        raise UnusableError("has no turn of the assistant, so nothing would be learnt from it")
    if not any(map(is_learnt, messages)):
        raise UnusableError("every message of the assistant has the weight 0: nothing is learnt")
    return messages


def _message(message: Any, number: int) -> dict[str, Any]:
    """Returns the message without its nulls, but with `content` None if it only calls tools."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise _lacks(message, number, "role")
    kept = {name: part for name, part in message.items() if part is not None}
    weight = kept.get(WEIGHT, 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise UnusableError(
            f"message {number} has the weight {str(weight)[:40]!r}; it is 0 (context) or 1 (learnt)"
        )
    if "tool_calls" in kept:
        kept["tool_calls"] = _calls(kept["tool_calls"], number)
    if "function_call" in kept:
        _require_function(kept["function_call"], number)
    content = kept.get("content")
    if isinstance(content, str):
        return kept
    if isinstance(content, list) and content:
        _require_text_parts(content, number)
        return kept
    calls_only = message["role"] == ASSISTANT and called(kept)
    if not calls_only or content not in (None, []):
        raise _lacks(message, number, "content")
    if "content" in message:
        return {
            name: None if name == "content" else kept[name]
            for name in message
            if name == "content" or name in kept
        }
    return {"role": kept.pop("role"), "content": None, **kept}


def _require_text_parts(parts: list[Any], number: int) -> None:
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"of type {str(kind)[:40]!r}" if isinstance(kind, str) else "without a type"
            if kind == "text":
                what = "without its text"
            raise UnusableError(
                f"message {number} has a part {what} under 'content'; only text can be used"
            )


def _calls(value: Any, number: int) -> list[Any]:
    calls = _parsed(value)
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise UnusableError(f"message {number} has no list of calls under 'tool_calls'")
    for call in calls:
        _require_function(call.get("function", call), number)
    return calls


def _require_function(function: Any, number: int) -> None:
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UnusableError(f"message {number} calls a function without a name")
    if isinstance(function.get("arguments"), str) and not _is_json(function["arguments"]):
        raise UnusableError(
            f"message {number} calls {function['name'][:40]!r} with arguments that are not JSON; "
            "write an object, or its JSON text ({} for none)"
        )


def _mappings(value: Any, name: str) -> list[Any] | None:
    """Returns tools or documents; each, or all together, may be JSON text."""
    items = _parsed(value)
    if items is None:
        return None
    items = [_parsed(item) for item in items] if isinstance(items, list) else items
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise UnusableError(f"has no list of objects under {name!r}")
    return [_with_parameters(item) for item in items] if name == TOOLS_FIELD else items


def _with_parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a tool whose `parameters`, if they are JSON text, are what the text says."""
    if isinstance(tool.get("function"), Mapping):
        return {**tool, "function": _with_parameters(tool["function"])}
    if isinstance(tool.get("parameters"), str):
        return {**tool, "parameters": _parsed(tool["parameters"])}
    return tool


def _arguments(value: Any) -> dict[str, Any]:
    given = _parsed(value)
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UnusableError(f"has no object under {ARGUMENTS_FIELD!r}")
    for name in _NOT_ARGUMENTS:
        if name in given:
            raise UnusableError(f"its {ARGUMENTS_FIELD!r} cannot set {name!r}")
    return dict(given)


def _parsed(value: Any) -> Any:
    """Returns what a JSON text says if it is an object or a list; else the value as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return found if isinstance(found, (dict, list)) else None if found is None else value


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _lacks(message: Any, number: int, name: str) -> UnusableError:
    is_misnamed = isinstance(message, Mapping) and name not in message
    there = f", but {listed(message)}" if is_misnamed else ""
    return UnusableError(f"message {number} has no text under {name!r}{there}")


def _dumped(value: Any, *, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys)
