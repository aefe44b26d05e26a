"""The weight of a message decides whether it is learnt."""

import pytest

from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.chats import ChatEncoder
from lectern_data.read.rows import Content
from lectern_data.read.unusable import UnusableError
from tests.support.chat_files import CHATML, MARKED, byte_tokenizer


def encoder(source: str) -> ChatEncoder:
    return ChatEncoder(byte_tokenizer(), ChatTemplate(source, {"eos_token": "</s>"}))


def weighed(*turns: tuple[str, str, object]) -> str:
    """A chat of (role, content, weight)."""
    messages = [
        {"role": role, "content": content, "weight": weight} for role, content, weight in turns
    ]
    return Content("messages", is_chat=True).of({"messages": messages})


FORGETFUL = CHATML.replace(
    "message.content +", "(message.content if loop.last else message.content.split('/t')[-1]) +"
)


@pytest.mark.parametrize("source", [CHATML, MARKED, FORGETFUL])
@pytest.mark.parametrize("weights", [(0, 1, 1), (1, 0, None), (1, 1, 0), (0, 0, 1.0)])
def test_a_message_with_the_weight_0_is_context(source: str, weights: tuple[object, ...]) -> None:
    turns = [
        turn
        for number, weight in enumerate(weights)
        for turn in (("user", "?", 0), ("assistant", f"hm/t answer{number}", weight))
    ]
    told, plain = (
        next(iter(encoder(source).encode([weighed(*said)])))
        for said in (turns, [(role, content, None) for role, content, _ in turns])
    )
    assert not isinstance(told, UnusableError) and not isinstance(plain, UnusableError)
    text = "".join(byte_tokenizer().decode(ids[mask == 1].tolist()) for ids, mask in told.sequences)
    for number, weight in enumerate(weights):
        assert (f"answer{number}" in text) == (weight != 0)
    if len(plain.sequences) == 1:  # only the mask differs
        assert (told.sequences[0][0] == plain.sequences[0][0]).all()
    else:
        assert len(told.sequences) == sum(weight != 0 for weight in weights)


def test_a_greeting_with_the_weight_0_is_not_learnt_and_not_counted() -> None:
    said = (("assistant", "hello", 0), ("user", "?", None), ("assistant", "yes", None))
    for source in (CHATML, MARKED):
        [told] = encoder(source).encode([weighed(*said)])
        assert not isinstance(told, UnusableError) and told.unasked == 0
        [(ids, mask)] = told.sequences
        text = byte_tokenizer().decode(ids[mask == 1].tolist())
        assert "yes" in text and "hello" not in text


@pytest.mark.parametrize("weight", [0.5, 2, -1, "0", True, [1]])
def test_another_weight_is_refused(weight: object) -> None:
    with pytest.raises(UnusableError, match="message 2 has the weight"):
        weighed(("user", "?", None), ("assistant", "!", weight))


def test_a_chat_of_which_nothing_is_learnt_is_refused() -> None:
    with pytest.raises(UnusableError, match="every message of the assistant has the weight 0"):
        weighed(("user", "?", None), ("assistant", "!", 0))
