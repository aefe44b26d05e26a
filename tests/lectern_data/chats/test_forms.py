"""A chat reaches its template in a form that the template writes whole."""

from typing import Any

import pytest

from lectern_data.chats.chat import Chat
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.forms import fitted
from lectern_data.read.unusable import UnusableError

HEAD = "{% for m in messages %}[{{ m.role }}]"
TAIL = "{% endfor %}"
CALLS = (
    "{% for c in m.tool_calls %}<{{ c.function.name }} {{ c.function.arguments | tojson }}>"
    "{% endfor %}"
)
RAW = CALLS.replace("arguments | tojson", "arguments")
EITHER = CALLS.replace(
    "{{ c.function.arguments | tojson }}",
    "{{ c.function.arguments if c.function.arguments is string else "
    "c.function.arguments | tojson }}",
)
PAIRS = CALLS.replace(
    "{{ c.function.arguments | tojson }}",
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}",
)
ONLY_NULL = "{% if m.content is none %}" + CALLS + "{% else %}{{ m.content }}{% endif %}"
FAILS_ON_NULL = "{{ m.content + '' }}" + CALLS
WRITES_NONE = "{{ m.content }}" + CALLS
TRIMS_NONE = "{{ m.content | trim }}" + CALLS
WANTS_TEXT = "{{ m['content'].strip() }}" + CALLS
PARTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}({{ p.text }}){% endfor %}{% endif %}"
)
DROPS_PARTS = "{% if m.content is string %}{{ m.content }}{% endif %}"


def calling(content: object, arguments: object = None, **more: Any) -> list[dict[str, Any]]:
    given = {"city": "Oslo", "a": None} if arguments is None else arguments
    call = {"function": {"name": "look_up", "arguments": given}}
    return [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": content, "tool_calls": [call], **more},
    ]


def rendered(source: str, messages: list[dict[str, Any]], **inputs: Any) -> str:
    template = ChatTemplate(HEAD + source + TAIL, {})
    chat = fitted(template, Chat(messages, inputs))
    return template.render(chat.messages, inputs=chat.inputs)


@pytest.mark.parametrize(
    "source", [ONLY_NULL, FAILS_ON_NULL, WRITES_NONE, TRIMS_NONE, WANTS_TEXT, CALLS]
)
def test_a_turn_that_only_calls_a_tool_is_written(source: str) -> None:
    question = "" if source == CALLS else "?"
    called = '[assistant]<look_up {"city": "Oslo", "a": null}>'
    assert rendered(source, calling(None)) == f"[user]{question}{called}"


def test_null_is_present_if_the_template_takes_it() -> None:
    source = "{% if 'content' in m and m.content is none %}null{% endif %}" + CALLS
    assert "[assistant]null<look_up" in rendered(source, calling(None))


@pytest.mark.parametrize("content", ["", "let me see", None])
@pytest.mark.parametrize(
    "source", ["{{ m.content }}", "{{ m.content }}{% if m.calls %}look_up{% endif %}"]
)
def test_a_call_that_the_template_drops_is_an_error(source: str, content: object) -> None:
    with pytest.raises(UnusableError, match="does not write the call of 'look_up' in message 2"):
        rendered(source, calling(content))


def test_a_call_is_not_found_in_what_else_names_the_function() -> None:
    tools = [{"function": {"name": "look_up"}}]
    with pytest.raises(UnusableError, match="does not write the call"):
        rendered("{{ tools }}{{ m.content }}", calling("I look_up that"), tools=tools)
    with pytest.raises(UnusableError, match="does not write the call"):
        rendered(ONLY_NULL, calling("I look_up that"))


def test_each_of_several_calls_is_written() -> None:
    messages = calling(None)
    messages[1]["tool_calls"] = [
        {"function": {"name": name, "arguments": {}}} for name in ("look_up", "look_up", "add")
    ]
    assert rendered(CALLS, messages).count("<") == 3
    first = CALLS.replace("m.tool_calls", "(m.tool_calls or [])[:1]")
    with pytest.raises(UnusableError, match="does not write the call of 'look_up'"):
        rendered(first, messages)


def test_a_template_that_knows_its_functions_is_not_given_others() -> None:
    source = (
        "{% for c in m.tool_calls %}{% if c.function.name != 'look_up' %}"
        "{{ raise_exception('unknown') }}{% endif %}<{{ c.function.name }}>{% endfor %}"
    )
    assert rendered(source, calling(None)) == "[user][assistant]<look_up>"


def test_a_call_in_the_old_form_counts_too() -> None:
    messages = calling(None, function_call={"name": "add", "arguments": "{}"})
    del messages[1]["tool_calls"]
    assert (
        rendered("{{ m.function_call.name if m.function_call }}", messages)
        == "[user][assistant]add"
    )
    with pytest.raises(UnusableError, match="the call of 'add' in message 2"):
        rendered("{{ m.content or '' }}", messages)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (CALLS, '{"b": 1, "a": "x"}'),
        (RAW, '{"b":1,  "a":"x"}'),
        (EITHER, '{"b":1,  "a":"x"}'),
        (PAIRS, "b=1a=x"),
    ],
    ids=["encodes", "writes", "either", "pairs"],
)
def test_arguments_that_are_json_text_are_encoded_once(source: str, shown: str) -> None:
    for text in (None, "", "so"):
        told = rendered(source, calling(text, '{"b":1,  "a":"x"}'))
        assert told == f"[user][assistant]<look_up {shown}>"


def test_arguments_are_json_text_for_a_template_that_wants_text() -> None:
    source = RAW.replace("{{ c.function.arguments }}", "{{ '' + c.function.arguments }}")
    assert rendered(source, calling("", {"b": 1, "a": "\xe9"})) == (
        '[user][assistant]<look_up {"b": 1, "a": "\xe9"}>'
    )


@pytest.mark.parametrize("text", ["Oslo, Norway", "5", "[1]", '{"a": NaN}', "{'a': 1}", ""])
def test_arguments_that_are_no_json_object_stay_as_written(text: str) -> None:
    assert f"<look_up {text}>" in rendered(RAW, calling("", text))


def test_the_whole_message_as_json_has_its_arguments_as_an_object() -> None:
    told = rendered("{{ m | tojson }}", calling(None, '{"b": 1, "a": 2}'))
    assert '"content": null, "tool_calls"' in told and '"arguments": {"b": 1, "a": 2}' in told


def parts(*texts: str) -> list[dict[str, Any]]:
    content = [{"type": "text", "text": text} for text in texts]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": content}]


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (PARTS, "(one)(two)"),
        ("{{ m.content }}", "onetwo"),
        ("{{ m.content | trim }}", "onetwo"),
        ("{{ m.content + '' }}", "onetwo"),
        (DROPS_PARTS, "onetwo"),
    ],
)
def test_text_parts_are_written_as_the_template_wants_them(source: str, shown: str) -> None:
    assert rendered(source, parts("one", "two")) == f"[user]{shown}[assistant]{shown}"


class CountingTemplate(ChatTemplate):
    """Counts its renderings."""

    renderings = 0

    def render(self, *given: Any, **options: Any) -> str:
        self.renderings += 1
        return super().render(*given, **options)


def test_a_long_chat_is_rendered_only_a_few_times() -> None:
    one = [*calling(None, '{"b": 1}'), {"role": "tool", "content": "5"}, *parts("x", "y")]
    template = CountingTemplate(HEAD + EITHER.join(["{{ m.content }}", ""]) + TAIL, {})
    assert fitted(template, Chat(one * 40, {})).messages[1].keys() == {"role", "tool_calls"}
    assert template.renderings < 20


def test_a_call_that_only_later_messages_hide_is_written() -> None:
    """The template shows calls only in the last message."""
    source = "{% if loop.last %}" + CALLS + "{% endif %}"
    chat = Chat([*calling(""), {"role": "tool", "content": "5"}], {})
    assert fitted(ChatTemplate(HEAD + source + TAIL, {}), chat).messages == chat.messages


def test_a_plain_chat_is_given_as_it_is() -> None:
    chat = Chat([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], {})
    assert fitted(ChatTemplate("{{ messages[9].x.y }}", {}), chat) is chat


def test_a_template_that_fails_on_every_form_says_why() -> None:
    with pytest.raises(UnusableError, match="the chat template fails: no tools here"):
        rendered(
            "{% if m.tool_calls %}{{ raise_exception('no tools here') }}{% endif %}", calling("")
        )
