"""A control token that a text spells is characters; one that the template writes is the token."""

import json
import re
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import Metaspace

from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.chats.chats import ChatEncoder, EncodedChat
from lectern_data.read.rows import Content
from lectern_data.read.unusable import UnusableError
from lectern_data.tokens.tokenizer import train_tokenizer
from tests.support.chat_files import CHATML, byte_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CONTROL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]
TOOLS = "{{ tools | tojson if tools }}{{ prefix }}" + CHATML
ESCAPED = CHATML.replace("message.content", "(message.content | tojson(ensure_ascii=True))")


def encoded(source: str, tokenizer: Tokenizer, row: dict[str, Any]) -> EncodedChat | UnusableError:
    text = Content("messages", is_chat=True, arguments=("prefix",)).of(row)
    [found] = ChatEncoder(tokenizer, ChatTemplate(source, SPECIAL)).encode([text])
    return found


def chat(question: str, answer: str, **beside: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **beside}


def expected(text: str, stand_in: str, spelt: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text with `stand_in` for each spelling, cut at the control tokens by hand."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    ids: list[int] = []
    for part in re.split("(" + "|".join(map(re.escape, CONTROL)) + ")", text):
        if part in CONTROL:
            ids.append(plain.get_vocab()[part])
        else:
            ids += plain.encode(part.replace(stand_in, spelt), add_special_tokens=False).ids
    return ids


def merging_tokenizer() -> Tokenizer:
    """Its merges cross the borders of the spellings: "a <", "> b"."""
    trained = train_tokenizer(["a <|im_end|> b|>< <s> hello\n" * 50], 320).tokenizer
    trained.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    trained.add_tokens([AddedToken("<plain>", special=False)])
    return trained


@pytest.mark.parametrize("spelt", ["<|im_end|>", "<s>", "<|im_start|><|im_end|>", "<<s>|im_end|>"])
@pytest.mark.parametrize("make", [byte_tokenizer, merging_tokenizer])
def test_a_spelling_is_characters_as_in_plain_text(make: Any, spelt: str) -> None:
    tokenizer = make()
    found = encoded(CHATML, tokenizer, chat(f"a {spelt} b", f"b{spelt} a"))
    assert isinstance(found, EncodedChat)
    [(ids, mask)] = found.sequences
    text = "<|im_start|>user\na @ b<|im_end|>\n<|im_start|>assistant\nb@ a<|im_end|>\n"
    assert ids.tolist() == expected(text, "@", spelt, tokenizer)
    learnt = expected("b@ a<|im_end|>", "@", spelt, tokenizer)
    assert ids[mask == 1].tolist() == learnt
    assert mask.tolist()[-len(learnt) - 1 :] == [1] * len(learnt) + [0]


def test_a_spelling_beside_the_messages_is_characters_too() -> None:
    spelt = "<|im_end|>"
    tools = [{"name": "f", "about": f"x{spelt}", f"k{spelt}": 1}]
    found = encoded(TOOLS, byte_tokenizer(), chat("q", "a", tools=tools, prefix=f"{spelt}!"))
    assert isinstance(found, EncodedChat)
    ids = found.sequences[0][0]
    shown = json.dumps(tools).replace(spelt, "@") + "@!"
    text = shown + "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    assert ids.tolist() == expected(text, "@", spelt, byte_tokenizer())


def test_a_template_may_show_text_in_ascii() -> None:
    found = encoded(ESCAPED, byte_tokenizer(), chat("<s>\xe9", "a"))
    assert isinstance(found, EncodedChat)
    text = '<|im_start|>user\n"@\\u00e9"<|im_end|>\n<|im_start|>assistant\n"a"<|im_end|>\n'
    assert found.sequences[0][0].tolist() == expected(text, "@", "<s>", byte_tokenizer())


def test_an_added_token_that_is_not_special_is_a_token_in_any_text() -> None:
    tokenizer = merging_tokenizer()
    plain = tokenizer.token_to_id("<plain>")
    for question in ("<plain>", "<plain><s>"):
        found = encoded(CHATML, tokenizer, chat(question, "<plain>"))
        assert isinstance(found, EncodedChat)
        assert found.sequences[0][0].tolist().count(plain) == 2


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_tokenizer_that_puts_a_space_before_texts_does_so_as_without_spellings(
    scheme: Any,
) -> None:
    letters = "\u2581abq<>|_/\nimendstrurpco"
    tokenizer = Tokenizer(BPE(vocab={one: at for at, one in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme=scheme)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROL])
    source = "{% for m in messages %}<s>{{ m.content }}{{ eos_token }}{% endfor %}"
    without = encoded(source, tokenizer, chat("a q", "b"))
    spelt = encoded(source, tokenizer, chat("a q<s>", "b"))
    assert isinstance(without, EncodedChat) and isinstance(spelt, EncodedChat)
    short, long = (found.sequences[0][0].tolist() for found in (without, spelt))
    end = tokenizer.token_to_id("</s>")
    at = short.index(end)
    added = [tokenizer.token_to_id(letter) for letter in "<s>"]
    assert long == short[:at] + added + short[at:]


def test_what_a_template_looks_for_it_finds_in_an_answer() -> None:
    """It takes the thoughts out by their end, which is a control token here."""
    source = CHATML.replace("message.content +", "message.content.split('</s>')[-1] +")
    found = encoded(source, byte_tokenizer(), chat("x</s>q", "thoughts</s>a<s>"))
    assert isinstance(found, EncodedChat)
    text = "<|im_start|>user\nx@q<|im_end|>\n<|im_start|>assistant\na&<|im_end|>\n"
    ids = expected(text.replace("&", "@"), "@", "</s>", byte_tokenizer())
    spelt = expected("@", "@", "<s>", byte_tokenizer())
    other = expected("@", "@", "</s>", byte_tokenizer())
    places = [at for at in range(len(ids)) if ids[at : at + 4] == other]
    assert found.sequences[0][0].tolist() == ids[: places[1]] + spelt + ids[places[1] + 4 :]


def test_private_code_points_in_a_text_are_kept_apart() -> None:
    for held in ("\ufdd0", "\ufdd0\ufdd1", "\ufdef", "\\ufdd0"):
        found = encoded(CHATML, byte_tokenizer(), chat(f"<s>{held}", "a"))
        assert isinstance(found, EncodedChat)
        text = f"<|im_start|>user\n@{held}<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        assert found.sequences[0][0].tolist() == expected(text, "@", "<s>", byte_tokenizer())
    refused = encoded(CHATML, byte_tokenizer(), chat("<s>\ufdee1\ufdef", "a"))
    assert isinstance(refused, UnusableError) and "U+FDEE" in str(refused)


def test_a_tokenizer_that_makes_the_token_of_characters_is_refused() -> None:
    pieces = [("<unk>", 0.0), ("<s>", -0.1), *((one, -9.0) for one in "\n<s>/aqbuertin_|mdo")]
    tokenizer = Tokenizer(Unigram(list(dict(pieces).items()), unk_id=0))
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    refused = encoded(source, tokenizer, chat("<s>", "a"))
    assert isinstance(refused, UnusableError)
    assert "'<s>', which the tokenizer makes of characters" in str(refused)


def test_other_chats_are_encoded_as_without_the_spelling() -> None:
    texts = [
        Content("messages", is_chat=True).of(chat(question, "a"))
        for question in ("q", "<s>", "q", "<|im_end|>", "q")
    ]
    template = ChatTemplate(CHATML, SPECIAL)
    found = list(ChatEncoder(byte_tokenizer(), template).encode(texts))
    [alone] = ChatEncoder(byte_tokenizer(), template).encode(texts[:1])
    for one in found[::2]:
        assert isinstance(one, EncodedChat) and isinstance(alone, EncodedChat)
        assert one.sequences[0][0].tolist() == alone.sequences[0][0].tolist()
        assert one.sequences[0][1].tolist() == alone.sequences[0][1].tolist()
