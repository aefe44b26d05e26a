"""Resolves --bos-policy: where the token that begins a text (BOS) goes, and which it is."""

from dataclasses import dataclass
from typing import Literal

from lectern_common.errors import InvalidRequest
from lectern_data.tokens.tokenizer import DatasetTokenizer

BosPolicy = Literal["none", "document", "row"]
BosChoice = Literal["auto", "none", "document", "row"]


@dataclass(frozen=True)
class DocumentStart:
    """How documents begin.

    Attributes:
        policy: as in the manifest. A chat template may write the token where the policy is "none".
        token_id: the token; None if there is none.
        why: how the policy was chosen, for people.
    """

    policy: BosPolicy
    token_id: int | None
    why: str


def document_start(
    choice: BosChoice, tokenizer: DatasetTokenizer, *, is_chat: bool
) -> DocumentStart:
    """Returns the policy to prepare with.

    With "auto", a text begins with the token that the tokenizer puts before every text, if it does.
    A chat begins as its template says, as it does at inference: nothing is put before it.

    Raises:
        InvalidRequest: the tokenizer names no such token, or "row" was chosen for chats.
    """
    usual = tokenizer.beginning
    single = usual.token_ids[0] if usual is not None and len(usual.token_ids) == 1 else None
    token_id = tokenizer.named_beginning if single is None else single
    if is_chat and choice == "row":
        raise InvalidRequest(
            "a chat begins as its template says, not where a row begins; set --bos-policy auto",
            "bos_policy",
        )
    if is_chat and choice == "auto":
        return DocumentStart("none", token_id, "chats begin as the chat template says")
    if choice == "auto":
        if usual is None:
            return DocumentStart("none", None, "the tokenizer puts nothing before a text")
        if single is None:
            raise InvalidRequest(
                f"{usual.why} puts {len(usual.token_ids)} tokens before a text, so it is not clear "
                "how documents begin; set --bos-policy none, or document for its bos_token",
                "bos_policy",
            )
        return DocumentStart("document", single, f"{usual.why} puts it before every text")
    if choice == "none":
        return DocumentStart("none", token_id if is_chat else None, "--bos-policy none")
    if token_id is None:
        raise InvalidRequest(
            f"--bos-policy {choice} needs a token that begins a text, and this tokenizer names no "
            "bos_token and puts nothing before a text; set --bos-policy none",
            "bos_policy",
        )
    return DocumentStart(choice, token_id, f"--bos-policy {choice}")
