"""Chooses the token that ends a document: that of the tokenizer, unless it only ends a turn.

The tokenizer of an instruct model names the end of a turn (<|im_end|>, <|eot_id|>) as its
eos_token, so that chats stop there. Text was never ended by it: before the model learnt to chat,
its documents ended in another token, which its tokenizer still has.
"""

from dataclasses import dataclass

from tokenizers import Tokenizer

from lectern_common.errors import InvalidRequest, LecternError
from lectern_common.tokens.tokenizer_files import NamedToken, special_ids
from lectern_data.chats.chat_template import ChatTemplate
from lectern_data.read.unusable import UnusableError

# Tokens that end a turn in models of today, none of them a text.
TURN_ENDS = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<|return|>"),
        *("<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|user_end|>"),
        *("<|assistant_end|>", "<|role_end|>", "<|eom|>", "<|message_end|>"),
    }
)
# Tokens that end a text in models of today.
DOCUMENT_ENDS = frozenset(
    {
        *("<|endoftext|>", "<|end_of_text|>", "<|end_of_document|>", "<|endofdocument|>"),
        *("</s>", "<eos>", "<EOS>", "[EOS]", "<EOS_TOKEN>", "<|eos|>", "<|eod|>", "<eod>"),
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    }
)


@dataclass(frozen=True)
class DocumentEnd:
    """The token that ends a document.

    Attributes:
        text, token_id: the token.
        why: where it comes from, for people.
        is_certain: False if it may be the wrong one; then a person should know.
    """

    text: str
    token_id: int
    why: str
    is_certain: bool = True


def document_end(
    tokenizer: Tokenizer,
    named: NamedToken | None,
    given: str | None,
    template: ChatTemplate | None,
    *,
    is_chat: bool,
) -> DocumentEnd | None:
    """Returns the token that ends a document; None if nothing names one.

    A chat ends in the tokenizer's eos_token, whatever that is: its template writes what else it
    needs. Text ends in it too, unless it ends a turn and the tokenizer has exactly one special
    token that is known to end documents.

    Args:
        tokenizer: a complete one.
        named: its eos_token, from its files.
        given: the token that --eos-token names.
        template: its chat template, if it has one that can be read.
        is_chat: documents are chats.

    Raises:
        InvalidRequest: the tokenizer does not have the token.
    """
    if given is not None:
        return DocumentEnd(given, _token_id(tokenizer, given), "--eos-token")
    if named is None:
        return None
    own = DocumentEnd(
        named.text,
        _token_id(tokenizer, named.text),
        f"the tokenizer's eos_token, from {named.file}",
    )
    if is_chat or not _ends_a_turn(named.text, template):
        return own
    others = {text: token_id for token_id, text in special_ids(tokenizer).items()}
    known = sorted(DOCUMENT_ENDS & others.keys() - {named.text})
    if len(known) == 1:
        why = (
            f"the tokenizer's eos_token {named.text} ends a turn of a chat, and {known[0]} is its "
            "only other token that is known to end a text"
        )
        return DocumentEnd(known[0], others[known[0]], why)
    has = f"has {' and '.join(known)}" if known else "has no other that is known to end a text"
    why = (
        f"the tokenizer's eos_token, from {named.file}; it ends a turn of a chat, and the "
        f"tokenizer {has}: set --eos-token to the one that ended the documents which the model "
        "was trained on"
    )
    return DocumentEnd(own.text, own.token_id, why, is_certain=False)


def _token_id(tokenizer: Tokenizer, text: str) -> int:
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        why = f"this tokenizer has no token {text!r}; set --eos-token to one that it has"
        raise InvalidRequest(why, field="eos_token")
    return int(token_id)


def _ends_a_turn(text: str, template: ChatTemplate | None) -> bool:
    """Returns whether a token is known to end turns, or the template writes it after a user."""
    if text in TURN_ENDS:
        return True
    if template is None or text in DOCUMENT_ENDS:
        return False
    try:
        return text in template.render([{"role": "user", "content": "a"}])
    except (UnusableError, LecternError):  # it cannot be asked
        return False
