"""Token-to-id maps: their hash, and the differences between two of them.

Sizes prove nothing: a 152,064-row head and a 151,936-row head can have the same 151,665 tokens, and
two heads of one size can have different ones. So maps are compared token by token.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from lectern_common.errors import CorruptData, TokenizerMismatch
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import complete_tokenizer, read_tokenizer_files

TokenizerMap = Mapping[str, int]


def tokenizer_sha256(tokens: TokenizerMap) -> str:
    """Returns the hex SHA-256 of "id<TAB>token<LF>" lines in UTF-8, in rising id order."""
    digest = hashlib.sha256()
    for token, token_id in sorted(tokens.items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{token_id}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_tokenizer_map(path: Path) -> dict[str, int]:
    """Returns token -> id of a tokenizer.json and the files beside it, added tokens included.

    Raises:
        CorruptData: the tokenizers library cannot read the file, or the files contradict each
            other.
    """
    return _map_of(read_tokenizer_files(path), path)


def read_dataset_map(path: Path) -> dict[str, int]:
    """Returns token -> id of the tokenizer.json in a dataset, which holds all tokens by itself.

    What stands beside it is not read: a dataset of an earlier release was written without.

    Raises:
        CorruptData: the file is missing, or the tokenizers library cannot read it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptData(f"cannot read {path}: {error.strerror}") from None
    return _map_of({TOKENIZER_NAME: content}, path)


def _map_of(files: Mapping[str, bytes], path: Path) -> dict[str, int]:
    tokenizer, _ = complete_tokenizer(files, str(path))
    return dict(tokenizer.get_vocab(with_added_tokens=True))


def first_differences(
    teacher: TokenizerMap, student: TokenizerMap, limit: int = 5
) -> list[tuple[int, str | None, str | None]]:
    """Returns up to `limit` (id, teacher's token, student's token), lowest ids first.

    None means that a map has no token at that id. A token with several ids, or an id with several
    tokens, counts once.
    """
    teacher_ids = {token_id: token for token, token_id in teacher.items()}
    student_ids = {token_id: token for token, token_id in student.items()}
    return [
        (token_id, teacher_ids.get(token_id), student_ids.get(token_id))
        for token_id in sorted(differing_ids(teacher, student))[:limit]
    ]


def differing_ids(one: TokenizerMap, other: TokenizerMap) -> set[int]:
    """Returns the ids at which two maps have different tokens, or only one has a token."""
    first = {token_id: token for token, token_id in one.items()}
    second = {token_id: token for token, token_id in other.items()}
    return {
        token_id
        for token_id in first.keys() | second.keys()
        if first.get(token_id) != second.get(token_id)
    }


def require_same_tokens(
    theirs: TokenizerMap, ours: TokenizerMap, *, other: str = "teacher", own: str = "student"
) -> None:
    """Raises TokenizerMismatch, naming the first ids that differ, unless the maps are equal.

    `other` and `own` name the owners of the maps for the message: "teacher", "data", "student".
    """
    differences = first_differences(theirs, ours)
    if differences:
        named = "; ".join(
            f"id {token_id}: {other} {json.dumps(their_token)}, {own} {json.dumps(our_token)}"
            for token_id, their_token, our_token in differences
        )
        raise TokenizerMismatch(
            f"{other} and {own} tokenizers differ: {named}. Prepare the data with the teacher's "
            "tokenizer, and choose a student that uses it"
        )
