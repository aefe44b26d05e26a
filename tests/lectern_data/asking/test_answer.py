"""What is believed of a server's reply."""

from typing import Any

import pytest

from lectern_data.asking.answer import Answer, RefusedError, TryAgainError, judged, shown
from lectern_data.asking.settings import Way

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def body(way: Way = "chat", usage: Any = None, **choice: Any) -> dict[str, Any]:
    said = {"message": {"role": "assistant", "content": "hi"}} if way == "chat" else {"text": "hi"}
    choices = [{"index": 0, "finish_reason": "stop", **said, **choice}]
    return {"model": "m", "choices": choices, "usage": usage}


def message(**fields: Any) -> dict[str, Any]:
    return body(message={"role": "assistant", **fields})


def test_a_chat_gives_a_message_and_a_text_gives_its_text() -> None:
    usage = {"completion_tokens": 3}
    said = {"role": "assistant", "content": "hi"}
    assert judged(body(usage=usage), "chat") == Answer(said, None, "stop", 3, "m")
    assert judged(body("text"), "text") == Answer(None, "hi", "stop", None, "m")


def test_white_space_around_an_answer_is_kept() -> None:
    found = judged(message(content=" a\n"), "chat").message
    assert found is not None and found["content"] == " a\n"
    assert judged(body("text", text="\n a "), "text").text == "\n a "


def test_a_message_keeps_what_it_says_thinks_and_calls_and_nothing_else() -> None:
    said = message(content="hi", refusal=None, audio=None, annotations=[], tool_calls=None)
    assert judged(said, "chat").message == {"role": "assistant", "content": "hi"}
    calls = judged(message(content=None, tool_calls=[CALL]), "chat").message
    assert calls == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    for name in ("reasoning_content", "reasoning", "thinking"):
        thinks = judged(message(content="hi", **{name: "hm"}), "chat").message
        assert thinks == {"role": "assistant", "content": "hi", "reasoning_content": "hm"}


@pytest.mark.parametrize(
    ("finish", "kept"),
    [
        ("length", "length"),
        ("stop", "stop"),
        ("tool_calls", "stop"),
        ("eos", "stop"),
        (None, "stop"),
    ],
)
def test_only_length_means_that_an_answer_was_cut(finish: str | None, kept: str) -> None:
    ways: tuple[Way, ...] = ("chat", "text")
    for way in ways:
        assert judged(body(way, finish_reason=finish), way).finish_reason == kept


@pytest.mark.parametrize("count", [None, -1, 1.5, "7", True, [7], 2**60])
def test_a_count_of_tokens_that_cannot_be_is_not_believed(count: Any) -> None:
    assert judged(body(usage={"completion_tokens": count}), "chat").tokens is None


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (body(finish_reason="content_filter"), "filter"),
        (message(content=None, refusal="no"), "refused by the model"),
        (message(content="", refusal="no"), "refused by the model"),
        (message(content=""), "empty"),
        (message(content=" \n\t"), "empty"),
        (message(content=None), "empty"),
        (body(message={"content": None}, finish_reason="length"), "raise --max-tokens"),
        (message(content="\ud800"), "lone surrogate"),
        (message(content="x" * (9 << 20)), "larger than 8,388,608 bytes"),
        (message(content=None, tool_calls=[{"function": {}}]), "a function without a name"),
        (
            message(content=None, tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
            "the answer calls 'f' with arguments that are not JSON",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_its_reason(said: Any, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        judged(said, "chat")


@pytest.mark.parametrize(("text", "why"), [("", "empty"), (" ", "empty"), ("\udfff", "surrogate")])
def test_a_text_that_cannot_be_learnt_is_refused(text: str, why: str) -> None:
    with pytest.raises(RefusedError, match=why):
        judged(body("text", text=text), "text")


@pytest.mark.parametrize(
    "said",
    [
        None,
        "<html>",
        [],
        {},
        {"choices": []},
        {"choices": None},
        {"choices": ["hi"]},
        {"choices": [{}]},
        body(message="hi"),
        message(content=7),
        message(content=["hi"]),
        message(content="hi", tool_calls="f"),
        body("text"),
    ],
)
def test_another_form_of_reply_is_no_answer(said: Any) -> None:
    with pytest.raises(TryAgainError, match="not one of the OpenAI interface"):
        judged(said, "chat")


@pytest.mark.parametrize("said", [body(), body("text", text=None), body("text", text=["hi"])])
def test_another_form_of_reply_is_no_text(said: Any) -> None:
    with pytest.raises(TryAgainError):
        judged(said, "text")


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_a_request_that_the_server_gave_up_is_made_again(finish: str) -> None:
    with pytest.raises(TryAgainError, match=finish):
        judged(body(finish_reason=finish), "chat")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"error": {"message": "too long", "code": 400}}, "too long"),
        ({"message": "too long"}, "too long"),
        ({"detail": "Not Found"}, "Not Found"),
        ({"detail": [{"loc": ["body"]}]}, '[{"loc": ["body"]}]'),
        ({"error": "a\n  b\x1b[31m"}, "a b\\x1b[31m"),
        ("x" * 300, "x" * 200 + "..."),
        (None, "null"),
        ({}, "{}"),
    ],
)
def test_what_a_server_says_is_short_and_safe_on_a_terminal(said: Any, words: str) -> None:
    assert shown(said) == words
