"""Templates that rewrite history: one sequence per answer, behind the prompt that asks for it."""

from typing import Any

import pytest

from lectern_data.chats.answers import Sequence, sequences_of
from lectern_data.chats.chat import Chat, Renderings
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.read.unusable import UnusableError
from tests.support.chat_files import CHATML, MARKED

# Thoughts are shown only in the turns after the last question.
FORGETFUL = (
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' and loop.index0 < ns.last %}{{ m.content.split('</t>')[-1] }}"
    "{% else %}{{ m.content }}{% endif %}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETFUL_MARKED = FORGETFUL.replace(
    "{% else %}{{ m.content }}{% endif %}[end]",
    "{% elif m.role == 'assistant' %}{% generation %}{{ m.content }}[end]{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}",
)
# The system prompt is dropped once an answer follows.
DROPPING = (
    "{% for m in messages %}"
    "{% if m.role != 'system' or messages[-1].role != 'assistant' %}"
    "[{{ m.role }}]{{ m.content }}[end]{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# The system prompt is put into the last question.
MERGING = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '::' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "[I]{% if loop.last %}{{ system }}{% endif %}{{ m.content }}[/I]"
    "{% else %} {{ m.content }}[end]{% endif %}{% endfor %}"
)
# The prompt opens the thoughts, the chat shows none.
OPENING = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1].lstrip() }}"
    "{% else %}{{ m.content }}{% endif %}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)


def chat(*turns: str) -> list[dict[str, Any]]:
    """Messages from "s ...", "u ..." and "a ..."."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def found(source: str, *turns: str) -> list[tuple[str, list[str]]]:
    """(text before the last span, each span's text) of each sequence."""
    return [
        (one.text[: one.spans[-1][0]], [one.text[start:end] for start, end in one.spans])
        for one in sequences(source, *turns)
    ]


def sequences(source: str, *turns: str) -> list[Sequence]:
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})
    chat_ = Renderings(template, Chat(chat(*turns), {}))
    return sequences_of(chat_, marks_turns=template.marks_turns)[0]


@pytest.mark.parametrize("source", [FORGETFUL, FORGETFUL_MARKED], ids=["plain", "marked"])
def test_an_answer_keeps_the_thoughts_that_later_turns_lose(source: str) -> None:
    assert found(source, "u one", "a t</t>yes", "u two", "a tt</t>no", "u three") == [
        (
            "[user]one[end][assistant]" if source == FORGETFUL else "[user]one[assistant]",
            ["t</t>yes[end]"],
        ),
        (
            "[user]one[end][assistant]yes[end][user]two[end][assistant]"
            if source == FORGETFUL
            else "[user]one[assistant]yes[user]two[assistant]",
            ["tt</t>no[end]"],
        ),
    ]


def test_a_chat_without_thoughts_stays_one_sequence() -> None:
    [one] = sequences(FORGETFUL, "u one", "a yes", "u two", "a no")
    assert one.text == "[user]one[end][assistant]yes[end][user]two[end][assistant]no[end]"
    assert [one.text[start:end] for start, end in one.spans] == ["yes[end]", "no[end]"]
    assert one.prompt_chars == 0


def test_the_prompt_has_the_system_prompt_that_the_answer_drops() -> None:
    assert found(DROPPING, "s be brief", "u one", "a yes", "u two", "a no") == [
        ("[system]be brief[end][user]one[end][assistant]", ["yes[end]"]),
        (
            "[system]be brief[end][user]one[end][assistant]yes[end][user]two[end][assistant]",
            ["no[end]"],
        ),
    ]


def test_the_prompt_has_the_system_prompt_that_is_put_into_the_last_question() -> None:
    assert found(MERGING, "s brief", "u one", "a yes", "u two", "a no") == [
        ("[I]brief::one[/I]", [" yes[end]"]),
        ("[I]one[/I] yes[end][I]brief::two[/I]", [" no[end]"]),
    ]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("<think>\nhm\n</think>\n\nyes", "hm\n</think>\n\nyes[end]"),
        ("<think>hm</think>yes ", "hm</think>yes [end]"),
        ("hm\n</think>\n\n<b>yes</b>", "hm\n</think>\n\n<b>yes</b>[end]"),
    ],
)
def test_an_answer_goes_on_where_the_prompt_opens_its_thoughts(content: str, answer: str) -> None:
    prompt = "[user]one[end][assistant]<think>\n"
    assert found(OPENING, "u one", f"a {content}") == [(prompt, [answer])]
    _, later = found(OPENING, "u one", "a hm</think>ok", "u two", f"a {content}")
    assert later == (f"[user]one[end][assistant]ok[end]{prompt.replace('one', 'two')}", [answer])


def test_a_prompt_that_opens_thoughts_may_be_the_beginning_of_the_chat() -> None:
    verbatim = CHATML.replace("assistant\\n'", "assistant\\n<think>\\n'")
    start = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert found(verbatim, "u one", "a <think>\nhm</think>yes") == [
        (start, ["hm</think>yes<|im_end|>\n"])
    ]


@pytest.mark.parametrize(
    ("source", "turns"),
    [
        (OPENING, ("u one", "a yes")),  # no thoughts, which the prompt has opened
        (OPENING, ("u one", "a <think>hm</think>")),  # nothing else
        (CHATML.replace("assistant\\n'", "model\\n'"), ("u one", "a yes")),
        # The question itself is another once it is answered.
        (
            "{% for m in messages %}{{ m.role }}{{ m.content | upper if loop.last else m.content }}"
            "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
            ("u one", "a yes"),
        ),
    ],
)
def test_an_answer_that_cannot_be_found_exactly_is_refused(
    source: str, turns: tuple[str, ...]
) -> None:
    with pytest.raises(UnusableError, match="cannot find the assistant's message 2 in the text"):
        sequences(source, *turns)


def test_what_the_assistant_says_before_anything_is_asked_is_context() -> None:
    [one] = found(CHATML, "a hello", "u one", "a yes")
    assert one[1] == ["yes<|im_end|>\n"]
    assert one[0].startswith("<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\none")
    template = ChatTemplate(CHATML, {})
    begun = Renderings(template, Chat(chat("a hello", "a there", "u one", "a yes"), {}))
    assert sequences_of(begun, marks_turns=False)[1] == 2
    with pytest.raises(UnusableError, match="only before anything is asked"):
        sequences(CHATML, "a hello", "u one")


def test_a_system_prompt_asks_only_if_nobody_else_does() -> None:
    [(before, spans)] = found(CHATML, "s brief", "a hello", "u one", "a yes")
    assert spans == ["yes<|im_end|>\n"] and "hello" in before
    assert found(CHATML, "s a poem", "a roses")[0][1] == ["roses<|im_end|>\n"]


def test_a_template_that_marks_turns_says_what_is_learnt_of_a_greeting() -> None:
    assert found(MARKED, "a hello", "u one", "a yes")[0][1] == ["hello</s>", "yes</s>"]


def test_an_assistant_that_goes_on_by_itself_begins_each_turn_anew() -> None:
    [(_, spans)] = found(CHATML, "u one", "a yes", "a and", "u two", "a no")
    assert spans == ["yes<|im_end|>\n", "and<|im_end|>\n", "no<|im_end|>\n"]
    assert found(FORGETFUL, "u one", "a t</t>yes", "a u</t>and", "u two", "a no")[1] == (
        "[user]one[end][assistant]t</t>yes[end][assistant]",
        ["u</t>and[end]"],
    )


@pytest.mark.parametrize("source", [CHATML, FORGETFUL, DROPPING, MERGING, MARKED])
def test_a_template_is_only_called_with_lists_that_somebody_would_give_it(source: str) -> None:
    """It fails if nobody asks anything, and on a prompt after the assistant's own message."""
    strict = (
        "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
        "{% if not asked or (add_generation_prompt and messages[-1].role == 'assistant') %}"
        "{{ raise_exception('nobody asks this') }}{% endif %}"
    )
    for turns in (
        ("a hello", "u one", "a x</t>yes", "a and", "u two", "a no"),
        ("s brief", "u one", "a x</t>yes", "u two", "a no"),
        ("s brief", "a hello", "u one", "a x</t>yes", "u two", "a no"),
        ("u one", "a x</t>yes", "t 5", "a no", "u more"),
    ):
        assert sequences(strict + source, *turns)
