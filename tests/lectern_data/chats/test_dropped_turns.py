"""A message of which the template writes nothing is refused; one that it rewrites is not."""

import pytest

from lectern_data.chats.chat import Chat
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.dropped_turns import require_turns
from lectern_data.read.unusable import UnusableError

END = "{% if add_generation_prompt %}[assistant]{% endif %}"
# It writes the roles that it knows.
KNOWN = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant', 'tool'] %}"
    "[{{ m.role }}]{{ m.content if m.content is string else m.content[0].text }}"
    "{% endif %}{% endfor %}" + END
)
# A system prompt is put into the first question, and a tool's result is encoded.
MERGED = (
    "{% if messages[0].role == 'system' %}{% set begin = messages[0].content | trim + '!' %}"
    "{% set messages = messages[1:] %}{% else %}{% set begin = '' %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ begin if loop.first }}"
    "{{ (m.content | tojson) if m.role == 'tool' else (m.content | trim) }}{% endfor %}" + END
)
# Thoughts are shown only in the last turn, and a system prompt only in a prompt.
FORGETFUL = (
    "{% for m in messages %}{% if m.role != 'system' or messages[-1].role != 'assistant' %}"
    "[{{ m.role }}]{{ m.content if loop.last else m.content.split('</t>')[-1] }}"
    "{% endif %}{% endfor %}" + END
)
# What stands behind a line is for people.
CUT = KNOWN.replace("m.content if", "m.content.split('---')[0] | upper if")
# It fails on a text that it does not expect, and on a role.
STRICT = (
    "{% for m in messages %}{% if m.content not in ['a', 'b', 'c'] %}{{ raise_exception('no') }}"
    "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}" + END
)


def checked(source: str, *said: tuple[str, object]) -> None:
    messages = [{"role": role, "content": content} for role, content in said]
    template = ChatTemplate(source, {})
    require_turns(template, Chat(messages, {}), template.render(messages))


@pytest.mark.parametrize(
    ("role", "place"), [("developer", 0), ("asistant", 1), ("Assistant", 1), ("function", 3)]
)
@pytest.mark.parametrize("text", ["Be brief.", "a", [{"type": "text", "text": "Be."}]])
def test_a_message_of_a_role_that_the_template_does_not_know_is_refused(
    role: str, place: int, text: object
) -> None:
    # The other messages say the same, so that a text that is there proves nothing.
    said: list[tuple[str, object]] = [("user", "a"), ("assistant", "a"), ("user", "a")]
    said = [*said[:place], (role, text), *said[place:], ("assistant", "a")]
    why = f"writes nothing for message {place + 1}, whose role is '{role}'"
    with pytest.raises(UnusableError, match=why):
        checked(KNOWN, *said)


@pytest.mark.parametrize("source", [KNOWN, MERGED, FORGETFUL, CUT])
@pytest.mark.parametrize("end", [[], [("user", "bye")]])
def test_what_is_rewritten_merged_encoded_or_shown_in_a_prompt_is_written(
    source: str, end: list[tuple[str, str]]
) -> None:
    begin = [("system", "s "), ("user", "q---x"), ("assistant", "hm</t> a"), ("tool", '{"t": 5}')]
    checked(source, *begin, ("assistant", "hm</t>a"), ("user", "q"), ("assistant", "a"), *end)


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        (KNOWN, "Be brief, and never guess."),  # another message says it
        (KNOWN, "So be brief, and never guess. Why?"),  # as a part
        ("Be brief, and never guess." + KNOWN, "Why?"),  # the template itself says it
    ],
)
def test_a_long_message_that_is_dropped_is_refused_if_its_text_comes_from_elsewhere(
    source: str, asked: str
) -> None:
    said = [("developer", "Be brief, and never guess."), ("user", asked), ("assistant", "a")]
    with pytest.raises(UnusableError, match="message 1, whose role is 'developer'"):
        checked(source, *said)
    checked(source, ("system", "Be brief, and never guess."), *said[1:])


def test_a_blank_message_says_nothing_and_a_greeting_is_context() -> None:
    checked(KNOWN, ("developer", " \n"), ("user", "q"), ("assistant", "a"))
    checked(KNOWN, ("assistant", "hello"), ("user", "q"), ("assistant", "a"))


def test_a_template_that_fails_on_another_text_reads_it() -> None:
    checked(STRICT, ("user", "a"), ("assistant", "b"), ("user", "a"), ("assistant", "c"))
    deaf = STRICT.replace("{% if m.content", "{% if m.role != 'developer' and m.content").replace(
        "{{ m.content }}", "{{ m.content if m.role != 'developer' }}"
    )
    with pytest.raises(UnusableError, match="message 1, whose role is 'developer'"):
        checked(deaf, ("developer", "x"), ("user", "a"), ("assistant", "b"))
