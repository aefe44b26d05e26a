"""Chat templates: the same text as transformers', and nothing but text."""

import datetime
from typing import Any

import pytest

from lectern_common.errors import CorruptData
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.read.unusable import UnusableError
from tests.support.chat_files import CHATML, MARKED

SPECIAL: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": "caf\xe9 & 'quotes'?"},
    {"role": "assistant", "content": "Yes.\nTwo lines."},
    {"role": "user", "content": "More"},
    {"role": "assistant", "content": "No."},
]
COUNTING = (
    "{% set ns = namespace(count=0) %}{% for message in messages %}"
    "{% set ns.count = ns.count + message.content | length %}{% endfor %}"
    "{{ ns.count }} {{ dict(a=1) | tojson(indent=2) }} {{ messages[0] | tojson }}"
)


@pytest.mark.parametrize("source", [CHATML, MARKED, COUNTING], ids=["chatml", "marked", "counting"])
@pytest.mark.parametrize("prompt", [False, True])
def test_it_renders_what_transformers_renders(source: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        [CHAT],
        chat_template=source,
        add_generation_prompt=prompt,
        return_assistant_tokens_mask=source == MARKED,
        **SPECIAL,
    )
    [theirs], spans = rendered
    template = ChatTemplate(source, SPECIAL)
    assert template.render_marked(CHAT, prompt=prompt) == (
        theirs,
        [tuple(span) for span in spans[0]] if spans else [],
    )
    assert template.marks_turns is (source == MARKED)


def test_the_marked_spans_are_the_assistants_text() -> None:
    text, spans = ChatTemplate(MARKED, SPECIAL).render_marked(CHAT)
    assert [text[start:end] for start, end in spans] == ["Yes.\nTwo lines.</s>", "No.</s>"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ namespace(_x=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum() }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ strftime_now('%Y') }}",
        "{{ raise_exception('not like this') }}",
        "{{ messages[99].content.missing }}",
    ],
)
def test_a_template_reaches_nothing_but_its_messages(source: str) -> None:
    with pytest.raises(UnusableError, match="chat template fails"):
        ChatTemplate(source, SPECIAL).render(CHAT)


def test_the_date_is_the_one_that_is_given() -> None:
    source = "{{ strftime_now('%d %b %Y %H:%M') }}{{ strftime_now is defined }}"
    template = ChatTemplate(source, {}, datetime.date(2031, 2, 3))
    assert template.render(CHAT) == "03 Feb 2031 00:00True" and template.reads_date
    absent = ChatTemplate("{% if strftime_now is defined %}x{% endif %}", {})
    assert absent.render(CHAT) == "" and absent.reads_date
    assert not ChatTemplate(CHATML, {}, datetime.date(2031, 2, 3)).reads_date


def test_it_knows_what_a_template_reads() -> None:
    source = (
        "{% set x = 1 %}{{ tools }}{{ bos_token }}{{ x }}{% if think is defined %}{% endif %}"
        "{{ raise_exception }}{{ namespace }}{{ range(1) }}{{ strftime_now }}{{ messages }}"
        "{{ add_generation_prompt }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    assert ChatTemplate(source, SPECIAL).inputs == {"tools", "think"}


THOUGHTS = "{% for m in messages %}{{ m | tojson }}{{ m.reasoning_content }}{% endfor %}"


@pytest.mark.parametrize(
    "beside",
    [
        {"reasoning_content": "hm"},
        {"thinking": "hm"},
        {"reasoning": "hm"},
        {"reasoning": "hm", "thinking": ""},
        {},
    ],
)
def test_thoughts_tools_and_arguments_reach_it_as_in_transformers(beside: dict[str, str]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = THOUGHTS + "{{ tools | tojson }}{{ documents }}{{ dict.fromkeys('ab') }}{{ think }}"
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", **beside}]
    given: Any = {"tools": [{"b": 1, "a": 2}], "documents": [{"text": "x"}], "think": False}
    rendered: Any = render_jinja_template([chat], chat_template=source, **given)
    assert ChatTemplate(source, {}).render(chat, inputs=given) == rendered[0][0]


def test_hidden_attributes_are_undefined() -> None:
    source = "{{ '{0.__class__}'.format(messages) }}{{ ''.__class__ }}{{ namespace.__init__ }}"
    assert ChatTemplate(source, SPECIAL).render(CHAT) == ""


def test_an_invalid_template_is_refused() -> None:
    with pytest.raises(CorruptData, match="not a Jinja template"):
        ChatTemplate("{% for %}", {})
    with pytest.raises(CorruptData, match="larger than 1,048,576 bytes"):
        ChatTemplate("x" * (1 << 20) + "y", {})


def test_marks_in_text_that_the_template_moves_are_refused() -> None:
    source = (
        "{% set later %}{% generation %}{{ messages[2].content }}{% endgeneration %}{% endset %}"
        "before {{ later }}"
    )
    with pytest.raises(UnusableError, match="moves text that it marks as the assistant's"):
        ChatTemplate(source, {}).render_marked(CHAT)
