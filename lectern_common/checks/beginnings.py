"""Warns if the data does not begin a text as the teacher's tokenizer does."""

import json
from collections.abc import Iterator
from pathlib import Path

from lectern_common.checks.check import Check, Outcome
from lectern_common.errors import LecternError
from lectern_common.tokens.beginning import usual_beginning
from lectern_common.tokens.shards import TOKENIZER_NAME, ShardManifest
from lectern_common.tokens.tokenizer_files import complete_tokenizer, read_tokenizer_files
from protos import teacher_pb2


def beginnings_check(
    teacher: teacher_pb2.Model, manifest: ShardManifest, dataset: Path
) -> Iterator[Check]:
    """Yields a warning if the data does not begin a text as the teacher's tokenizer does."""
    try:
        differ = beginnings_differ(teacher, manifest, dataset)
    except (LecternError, OSError):  # another check says what is wrong with the tokenizer
        return
    if differ is not None:
        yield Check("beginnings", Outcome.WARN, *differ)


def beginnings_differ(
    teacher: teacher_pb2.Model, manifest: ShardManifest, dataset: Path
) -> tuple[str, str] | None:
    """Returns (what differs, what to do about it); None if the data suits the teacher's habit.

    A server of an earlier release does not say what its tokenizer does; then the tokenizer in the
    dataset, which has the same tokens, speaks for it. Chats of an earlier release do not say what
    their template begins with, so nothing is known to differ.

    Raises:
        CorruptData: the tokenizer in the dataset cannot be read.
    """
    if manifest.is_chats and manifest.content is None:
        return None
    has = () if manifest.bos_token_id is None else (manifest.bos_token_id,)
    if teacher.HasField("text_beginning") and tuple(teacher.text_beginning.token_ids) == has:
        return None
    path = dataset / TOKENIZER_NAME
    files = read_tokenizer_files(path) if path.is_file() else {}
    tokenizer = complete_tokenizer(files, str(path))[0] if files else None
    if teacher.HasField("text_beginning"):
        usual = tuple(teacher.text_beginning.token_ids)
    elif tokenizer is not None:
        found = usual_beginning(tokenizer, files)
        usual = () if found is None else found.token_ids
    else:
        return None
    if usual == has or (manifest.is_chats and not usual):  # a template may write what it likes
        return None

    def named(ids: tuple[int, ...]) -> str:
        texts = [None if tokenizer is None else tokenizer.id_to_token(one) for one in ids]
        said = [
            f"id {one}" if text is None else f"{json.dumps(text)} (id {one})"
            for one, text in zip(ids, texts, strict=True)
        ]
        return " and ".join(said) or "nothing"

    again = "prepare the data again with --bos-policy"
    if not usual:
        return (
            f"each {_place(manifest)} begins with {named(has)}, but the tokenizer of "
            f"{teacher.model_id} puts nothing before a text",
            f"if the teacher has not learnt that token, {again} none",
        )
    what = (
        f"the tokenizer of {teacher.model_id} puts {named(usual)} before each text, but a "
        f"{_place(manifest)} begins with {named(has)}"
    )
    ways = "document" if manifest.is_chats else "document, or row"
    return what, f"many models answer nonsense to texts without it: {again} {ways}"


def _place(manifest: ShardManifest) -> str:
    if manifest.bos_policy == "row":
        return "row of the data"
    return "chat in the data" if manifest.is_chats else "document in the data"
