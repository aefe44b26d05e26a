"""Rows as chats: as written in JSON, without filled-in nulls from columns."""

import json
from typing import Any

import pytest

from lectern_data.read.chat_rows import chat_json
from lectern_data.read.rows import Content
from lectern_data.read.unusable import UnusableError

CHATS = Content("messages", is_chat=True)
CALL = {"function": {"name": "f", "arguments": {"z": 1, "a": None}}}
QUESTION = {"role": "user", "content": "?"}
ANSWER = {"role": "assistant", "content": "!"}


def read(row: dict[str, Any], *, columnar: bool = False, content: Content = CHATS) -> Any:
    return json.loads(content.of({"messages": [QUESTION, ANSWER], **row}, columnar=columnar))


def calling(**message: Any) -> list[dict[str, Any]]:
    return [QUESTION, {"role": "assistant", **message}]


def test_keys_keep_the_order_in_which_they_were_written() -> None:
    one = {"tools": [{"name": "f", "about": {"b": 1, "a": 2}}]}
    assert json.dumps(read(one)["tools"]) == json.dumps(one["tools"])
    other = {"tools": [{"about": {"a": 2, "b": 1}, "name": "f"}]}
    texts = [CHATS.of({"messages": [QUESTION, ANSWER], **row}) for row in (one, other)]
    assert texts[0] != texts[1] and CHATS.sha256(texts[0]) == CHATS.sha256(texts[1])
    assert CHATS.sha256(texts[0]) != CHATS.sha256(CHATS.of({"messages": [QUESTION, ANSWER]}))


def test_nulls_inside_a_line_of_json_were_written() -> None:
    messages = calling(content="", tool_calls=[CALL], name=None)
    assert read({"messages": messages}) == calling(content="", tool_calls=[CALL])
    tools = [{"name": "f", "parameters": {"default": None}}]
    assert read({"tools": tools})["tools"] == tools


def test_nulls_of_columns_are_taken_off_at_every_depth() -> None:
    filled = {"name": "f", "arguments": {"z": 1, "a": None, "deep": [{"x": None, "y": 2}]}}
    messages = calling(content="", tool_calls=[{"id": None, "function": filled}], name=None)
    expected = {"name": "f", "arguments": {"z": 1, "deep": [{"y": 2}]}}
    assert read({"messages": messages}, columnar=True) == calling(
        content="", tool_calls=[{"function": expected}]
    )
    tools = [{"name": "f", "parameters": {"a": {"default": None, "enum": ["x"]}, "b": None}}]
    beside = {"tools": tools, "documents": None, "chat_template_kwargs": {"x": None, "y": 1}}
    found = read(beside, columnar=True)
    assert found["tools"] == [{"name": "f", "parameters": {"a": {"enum": ["x"]}}}]
    assert found["arguments"] == {"y": 1} and "documents" not in found


@pytest.mark.parametrize("columnar", [False, True])
@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": []}])
def test_a_turn_that_only_calls_a_tool_has_a_null_content(content: Any, columnar: bool) -> None:
    for calls in ({"tool_calls": [CALL]}, {"function_call": {"name": "f"}}):
        [_, message] = read({"messages": calling(**content, **calls)}, columnar=columnar)
        assert "content" in message and message["content"] is None
        assert list(message) == ["role", "content", *calls]
    last = [QUESTION, {"role": "assistant", "tool_calls": [CALL], **content}]
    order = ["role", "tool_calls", "content"] if content else ["role", "content", "tool_calls"]
    if not columnar or content != {"content": None}:
        assert list(read({"messages": last}, columnar=columnar)[1]) == order


def test_documents_and_arguments_are_read() -> None:
    content = Content("messages", is_chat=True, arguments=("enable_thinking", "style"))
    documents = [{"title": "t", "text": "x"}]
    row = {
        "documents": documents,
        "enable_thinking": True,
        "style": None,
        "chat_template_kwargs": {"date_string": "1 May", "enable_thinking": True},
        "other": 1,
    }
    assert read(row, content=content) == {
        "messages": [QUESTION, ANSWER],
        "documents": documents,
        "arguments": {"enable_thinking": True, "date_string": "1 May"},
    }
    assert read({"chat_template_kwargs": {"tools": [{"name": "f"}]}})["tools"] == [{"name": "f"}]
    with pytest.raises(UnusableError, match=r"its 'enable_thinking' and that in its 'chat_temp"):
        read({**row, "enable_thinking": False}, content=content)


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_tools_and_documents_among_the_arguments_are_those_of_the_row(name: str) -> None:
    items = [{"name": "f", "b": 1, "a": 2}]
    for own, other in [
        (items, [{"a": 2, "b": 1, "name": "f"}]),
        (items, json.dumps(items)),
        ([json.dumps(items[0])], items),
        (None, json.dumps(items)),
        (items, None),
    ]:
        found = read({name: own, "chat_template_kwargs": {name: other, "date_string": "1 May"}})
        assert json.dumps(found[name]) == json.dumps(items)
        assert found["arguments"] == {"date_string": "1 May"}


@pytest.mark.parametrize(
    "tools",
    [
        '[{"name": "f", "parameters": {"b": 1, "a": 2}}]',
        ['{"name": "f", "parameters": {"b": 1, "a": 2}}'],
        [{"name": "f", "parameters": '{"b": 1, "a": 2}'}],
    ],
)
def test_what_stands_beside_the_messages_may_be_json_text(tools: Any) -> None:
    expected = [{"name": "f", "parameters": {"b": 1, "a": 2}}]
    assert json.dumps(read({"tools": tools})["tools"]) == json.dumps(expected)
    nested = [{"type": "function", "function": tools[0]}]
    if isinstance(tools[0], dict):
        assert read({"tools": nested})["tools"] == [{"type": "function", "function": expected[0]}]


def test_messages_and_calls_may_be_json_text() -> None:
    messages = calling(content=None, tool_calls=json.dumps([CALL]))
    for given in (messages, json.dumps(messages)):
        assert read({"messages": given})[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": calling(content=None)}, "message 2 has no text under 'content'"),
        ({"messages": calling(content=None, tool_calls=[])}, "message 2 has no text"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "message 1 has no text"),
        ({"messages": calling(content=[{"type": "image_url"}])}, "a part of type 'image_url'"),
        ({"messages": calling(content=["text"])}, "message 2 has a part without a type"),
        ({"messages": calling(content=[{"type": "text"}])}, "a part without its text"),
        ({"messages": calling(content={"a": 1})}, "message 2 has no text under 'content'"),
        ({"messages": calling(content="", tool_calls=[{"id": 1}])}, "a function without a name"),
        ({"messages": calling(content="", tool_calls="f()")}, "no list of calls"),
        ({"messages": calling(content="", function_call={})}, "a function without a name"),
        ({"tools": "f"}, "no list of objects under 'tools'"),
        ({"tools": ["f"]}, "no list of objects under 'tools'"),
        ({"tools": {"name": "f"}}, "no list of objects under 'tools'"),
        ({"documents": [1]}, "no list of objects under 'documents'"),
        ({"chat_template_kwargs": [1]}, "no object under 'chat_template_kwargs'"),
        ({"chat_template_kwargs": {"messages": []}}, "cannot set 'messages'"),
        ({"chat_template_kwargs": {"add_generation_prompt": True}}, "'add_generation_prompt'"),
        ({"tools": [], "chat_template_kwargs": {"tools": [{"name": "f"}]}}, "'tools' and those in"),
        (
            {"documents": [{"text": "x"}], "chat_template_kwargs": {"documents": [{"text": "y"}]}},
            "its 'documents' and those in its 'chat_template_kwargs' differ",
        ),
        (
            {"tools": [{"name": "f"}], "chat_template_kwargs": {"tools": "f"}},
            "no list of objects under 'tools'",
        ),
        ({"tools": [{"x": float("nan")}]}, "not plain JSON"),
    ],
)
def test_a_row_that_says_something_else_is_refused(row: Any, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        read(row)


@pytest.mark.parametrize("text", ["Oslo, Norway", "{'a': 1}", '{"a": 1', '{"a": NaN}', "", " "])
@pytest.mark.parametrize("under", ["tool_calls", "flat", "json", "function_call"])
def test_arguments_that_are_text_but_not_json_are_refused(text: str, under: str) -> None:
    function = {"name": "f", "arguments": text}
    messages: dict[str, dict[str, Any]] = {
        "tool_calls": {"tool_calls": [CALL, {"function": function}]},
        "flat": {"tool_calls": [function]},
        "json": {"tool_calls": json.dumps([{"function": function}])},
        "function_call": {"function_call": function},
    }
    with pytest.raises(UnusableError, match="message 2 calls 'f' with arguments that are not JSON"):
        read({"messages": calling(content=None, **messages[under])})


@pytest.mark.parametrize("given", ['{"a": 1}', "{}", " [1]\n", "5", {"a": 1}, {}, None])
def test_arguments_that_are_json_stay_as_written(given: object) -> None:
    messages = calling(content="", tool_calls=[{"function": {"name": "f", "arguments": given}}])
    assert read({"messages": messages}) == messages


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        ("ua", "u"),
        ("u", "u"),
        ("sua", "su"),
        ("uaua", "uau"),
        ("uau", "uau"),
        ("uaa", "u"),
        ("uata", "uat"),
    ],
)
def test_a_prompt_is_what_stands_before_the_assistants_last_messages(roles: str, kept: str) -> None:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    messages = [{"role": names[role], "content": str(at)} for at, role in enumerate(roles)]
    found = json.loads(chat_json({"chat": json.dumps(messages)}, "chat", is_prompt=True))
    assert found == messages[: len(kept)]


def test_a_prompt_keeps_what_stands_beside_the_messages() -> None:
    row = {"messages": [QUESTION, ANSWER], "tools": [{"name": "f"}], "loud": True}
    found = json.loads(chat_json(row, "messages", ("loud",), is_prompt=True))
    assert found == {"messages": [QUESTION], "tools": [{"name": "f"}], "arguments": {"loud": True}}


def test_an_answer_that_is_not_kept_may_lack_its_content() -> None:
    row = {"messages": [QUESTION, {"role": "assistant", "content": None}]}
    assert json.loads(chat_json(row, "messages", is_prompt=True)) == [QUESTION]


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([ANSWER], "speaks only before anything is asked"),
        ([ANSWER, ANSWER], "speaks only before anything is asked"),
        ([], "has no messages under 'messages'"),
        (None, "has no messages under 'messages'"),
        ("hello", "has no messages under 'messages'"),
        ([{"content": "?"}, ANSWER], "message 1 has no text under 'role'"),
        ([QUESTION, "x"], "message 2 has no text under 'role'"),
    ],
)
def test_what_is_no_prompt_says_why(messages: Any, why: str) -> None:
    with pytest.raises(UnusableError, match=why):
        chat_json({"messages": messages}, "messages", is_prompt=True)
