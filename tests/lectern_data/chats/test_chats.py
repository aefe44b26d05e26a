"""Chats as ids: loss on the assistant's turns, and on nothing else."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import ByteLevel

from lectern_data.chats import chats
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.chats import ChatEncoder, EncodedChat, EndlessError
from lectern_data.read.rows import Content
from lectern_data.read.unusable import UnusableError
from lectern_data.tokens.tokenizer import train_tokenizer
from tests.support.chat_files import CHATML, MARKED, byte_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def encoder(source: str) -> ChatEncoder:
    return ChatEncoder(byte_tokenizer(), ChatTemplate(source, SPECIAL))


def chat(*turns: str) -> str:
    """A chat with alternating turns, the user's first, as Content.of returns it."""
    roles = ("user", "assistant")
    messages = [
        {"role": roles[index % 2], "content": content} for index, content in enumerate(turns)
    ]
    return Content("messages", is_chat=True).of({"messages": messages})


def refused_chat() -> str:
    """A chat with a call that no template here shows."""
    messages = json.loads(chat("Hi", "x"))
    messages[1]["tool_calls"] = [{"function": {"name": "look_up", "arguments": {}}}]
    return json.dumps(messages)


def learnt(source: str, *turns: str) -> list[str]:
    """The text of each masked run of tokens."""
    tokenizer = byte_tokenizer()
    [encoded] = encoder(source).encode([chat(*turns)])
    assert not isinstance(encoded, UnusableError), str(encoded)
    [(ids, mask)] = encoded.sequences
    runs: list[list[int]] = []
    before = 0
    for token, is_learnt in zip(ids.tolist(), mask.tolist(), strict=True):
        if is_learnt and not before:
            runs.append([])
        if is_learnt:
            runs[-1].append(token)
        before = is_learnt
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def test_turns_of_the_assistant_and_their_end_tokens_are_learnt() -> None:
    assert learnt(CHATML, "Hi", "Hello, caf\xe9", "And?", "\nNo  ") == [
        "Hello, caf\xe9<|im_end|>",
        "\nNo  <|im_end|>",
    ]


def test_every_token_is_there_and_control_tokens_are_single() -> None:
    tokenizer = byte_tokenizer()
    [encoded] = encoder(CHATML).encode([chat("Hi", "Yo")])
    assert not isinstance(encoded, UnusableError)
    [(ids, mask)] = encoded.sequences
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == text
    start, end = (tokenizer.token_to_id(token) for token in ("<|im_start|>", "<|im_end|>"))
    assert ids.tolist().count(start) == ids.tolist().count(end) == 2
    # <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n | Yo<|im_end|> | \n
    assert mask.tolist() == [0] * (1 + 5 + 2 + 1 + 1 + 1 + 10) + [1, 1, 1] + [0]


def test_the_turns_that_a_template_marks_are_learnt() -> None:
    assert learnt(MARKED, "Hi", "Hello", "And?", "No") == ["Hello</s>", "No</s>"]


def test_the_token_that_ends_a_turn_is_learnt_even_if_the_marks_leave_it_out() -> None:
    within, behind = "{{ eos_token }}{% endgeneration %}", "{% endgeneration %}{{ eos_token }}"
    source = MARKED.replace(within, behind)
    assert learnt(source, "Hi", "Hello", "And?", "No") == ["Hello</s>", "No</s>"]


def test_a_turn_without_an_ending_token_is_learnt_whole() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert learnt(source, "Hi", "Hello") == ["Hello\n\n"]


def test_a_token_that_crosses_the_border_of_a_turn_is_not_learnt() -> None:
    tokenizer = Tokenizer(BPE(vocab={"A": 0, ":": 1, "x": 2, "y": 3, ":x": 4}, merges=[(":", "x")]))
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}A:"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    [encoded] = ChatEncoder(tokenizer, ChatTemplate(source, {})).encode([chat("y", "xy")])
    assert not isinstance(encoded, UnusableError)
    assert [part.tolist() for part in encoded.sequences[0]] == [[3, 0, 4, 3], [0, 0, 0, 1]]


@pytest.mark.parametrize("answer", ["    if x:\n\t\treturn  1\n\n    y ", " one", "   "])
@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("source", [CHATML, MARKED.replace("A: ", "{{ bos_token }}")])
def test_white_space_is_learnt_even_if_the_tokenizer_trims_its_offsets(
    source: str, trim: bool, answer: str
) -> None:
    tokenizer = train_tokenizer(["    if x:\n\t\treturn  1\n\n    y  one" * 9], 300).tokenizer
    controls = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in controls])
    tokenizer.post_processor = ByteLevel(trim_offsets=trim)
    [encoded] = ChatEncoder(tokenizer, ChatTemplate(source, SPECIAL)).encode([chat("Hi", answer)])
    assert isinstance(encoded, EncodedChat)
    [(ids, mask)] = encoded.sequences
    end = "<|im_end|>" if source == CHATML else "</s>"
    assert tokenizer.decode(ids[mask == 1].tolist(), skip_special_tokens=False) == answer + end


def test_a_trimmed_token_that_begins_before_the_answer_is_not_learnt() -> None:
    """ "A: " + "one" has the token " one", whose offsets seem to begin with the answer."""
    tokenizer = train_tokenizer(["A: one A: one"] * 9, 270).tokenizer
    tokenizer.post_processor = ByteLevel(trim_offsets=True)
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A: {% endif %}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    template = ChatTemplate(source, {})
    [encoded] = ChatEncoder(tokenizer, template).encode([chat("x", "one one")])
    assert isinstance(encoded, EncodedChat)
    [(ids, mask)] = encoded.sequences
    assert tokenizer.decode(ids[mask == 1].tolist()) == " one"


# Thoughts are shown only in the last turn.
FORGETFUL = CHATML.replace(
    "message.content +", "(message.content if loop.last else message.content.split('/t')[-1]) +"
)


def test_the_ids_of_a_prompt_are_those_that_a_model_gets() -> None:
    """The line breaks at the border would be one token, if both sides were encoded together."""
    tokenizer = train_tokenizer(["a\n\nb\n\nassistant\n\n"] * 9, 300).tokenizer
    tokenizer.add_special_tokens([AddedToken(token) for token in ("<|im_start|>", "<|im_end|>")])
    assert len(tokenizer.encode("\n\n").ids) == 1
    template = ChatTemplate(FORGETFUL, {})
    turns = ("a", "t/t\nb", "a", "\nb")
    [encoded] = ChatEncoder(tokenizer, template).encode([chat(*turns)])
    assert isinstance(encoded, EncodedChat)
    messages = json.loads(chat(*turns))
    for (ids, mask), count in zip(encoded.sequences, (1, 3), strict=True):
        prompt = tokenizer.encode(template.render(messages[:count], prompt=True)).ids
        answer = tokenizer.encode(turns[count] + "<|im_end|>").ids
        tail = tokenizer.encode("\n").ids
        assert ids.tolist() == prompt + answer + tail
        assert mask.tolist() == [0] * len(prompt) + [1] * len(answer) + [0]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_an_answer_of_its_own_gets_no_space_that_it_does_not_have(scheme: Any) -> None:
    letters = "\u2581abt/:\n"
    vocab = {one: at for at, one in enumerate([*letters, ":a"])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[(":", "a")]))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme=scheme)
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}:{% endif %}"
        "{{ m.content if loop.last else m.content.split('/')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    template = ChatTemplate(source, {})
    [encoded] = ChatEncoder(tokenizer, template).encode([chat("b", "t/a", "b", "ab")])
    assert isinstance(encoded, EncodedChat)
    first, second = [
        (
            tokenizer.decode(ids[mask == 0].tolist()),
            [tokenizer.id_to_token(one) for one in ids[mask == 1]],
        )
        for ids, mask in encoded.sequences
    ]
    assert first[1] == ["t", "/", "a"]
    assert second[1] == ["a", "b"]


REWRITING = (
    "{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}...{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "turns", "reason"),
    [
        (REWRITING, ("a", "long", "b", "c"), "cannot find the assistant's message 2"),
        ("{% generation %}{% endgeneration %}", ("a", "b"), "no text"),
        ("{{ messages[7].x.y }}", ("a", "b"), "the chat template fails: "),
    ],
)
def test_a_chat_that_cannot_be_masked_exactly_is_not_used(
    source: str, turns: tuple[str, ...], reason: str
) -> None:
    [refused] = encoder(source).encode([chat(*turns)])
    assert isinstance(refused, UnusableError) and reason in str(refused)


def test_the_text_that_is_encoded_at_a_time_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = [
        chat("a", "t/tb", "a", "b"),
        refused_chat(),
        chat("<s>", "t/tx", "y", "z"),
        chat("a", "b"),
    ]

    def encoded() -> list[object]:
        return [
            str(one)
            if isinstance(one, UnusableError)
            else [(ids.tolist(), mask.tolist()) for ids, mask in one.sequences]
            for one in encoder(FORGETFUL).encode(asked)
        ]

    whole = encoded()
    assert [len(one) for one in whole if isinstance(one, list)] == [2, 2, 1]
    monkeypatch.setattr(chats, "_TEXT_AT_A_TIME", 1)
    assert encoded() == whole


def test_an_unused_chat_does_not_change_the_others() -> None:
    good = chat("Hi", "Hello")
    first, refused, last = encoder(CHATML).encode([good, refused_chat(), good])
    [alone] = encoder(CHATML).encode([good])
    assert isinstance(refused, UnusableError)
    for encoded in (first, last):
        assert not isinstance(encoded, UnusableError) and not isinstance(alone, UnusableError)
        assert [part.tolist() for part in encoded.sequences[0]] == [
            part.tolist() for part in alone.sequences[0]
        ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "has no messages under 'messages'"),
        ({"messages": "Hi"}, "has no messages"),
        ({"messages": [{"role": "user"}]}, "message 1 has no text under 'content', but 'role'$"),
        ({"messages": [{"role": "user", "content": []}]}, "message 1 has no text under 'content'$"),
        ({"messages": [{"role": 1, "content": "x"}]}, "message 1 has no text under 'role'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no turn of the assistant"),
        ({"messages": [{"role": "assistant", "content": "x", "at": b"1"}]}, "not plain JSON"),
    ],
)
def test_an_invalid_chat_is_named(row: object, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason):
        Content("messages", is_chat=True).of(row)


def test_equal_chats_are_equal_whatever_the_order_of_their_keys() -> None:
    content = Content("turns", is_chat=True)
    one = content.of({"turns": [{"role": "assistant", "content": "x", "name": None}]})
    other = content.of({"turns": [{"content": "x", "role": "assistant"}]})
    assert one == json.dumps([{"role": "assistant", "content": "x"}])
    assert other == json.dumps([{"content": "x", "role": "assistant"}])
    assert content.sha256(one) == content.sha256(other)


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}BODY{% endfor %}{% endfor %}"


@pytest.mark.parametrize("body", ["", "{% if b < 0 %}{{ b }}{% endif %}", "{{ b.x | default }}"])
def test_an_endless_template_is_interrupted(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGVTALRM)
    monkeypatch.setattr(chats, "_MAX_SECONDS", 0.05)
    endless = "{% if messages[0].content == 'x' %}" + LOOPS.replace("BODY", body) + "{% endif %}"
    asked = [chat("Hi", "Hello"), chat("<s>", "spelt"), chat("x", "y"), chat("x", "y")]
    with pytest.raises(EndlessError, match="chat 3") as caught:
        list(encoder(endless + CHATML).encode(asked))
    assert caught.value.index == 2
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_other_threads_give_the_same_chats() -> None:
    def encoded() -> tuple[list[int], list[int]]:
        [found] = encoder(CHATML).encode([chat("Hi", "Hello")])
        assert not isinstance(found, UnusableError)
        [(ids, mask)] = found.sequences
        return ids.tolist(), mask.tolist()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(encoded).result() == encoded()
