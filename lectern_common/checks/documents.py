"""How the documents of a run's data lie in its rows: what its spec leaves open, and what cannot be.

A dataset of text is one stream, cut into rows; a chat is never cut if it fits into a row. The
checks before a run and the trainer apply the same rules.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lectern_common.checks.rules import require_document_starts, require_row, rows_held_out
from lectern_common.errors import InvalidSpec, LecternError
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.chat_rows import LONG_CHATS, LongChats
from lectern_common.tokens.shards import ShardManifest, read_manifest
from lectern_common.words import counted

# Fields of data that are null until the data, or the run to resume, says what they are.
_LEFT_OPEN = ("attention_across_documents", "long_chats")


def data_folders(spec: RunSpec, roots: Roots) -> tuple[Path | None, Path | None]:
    """Returns the folders of training and validation data; None for none of its own."""
    path, other = spec.data.path, spec.data.validation_path
    return (
        resolve_under(roots.data, path, "data.path") if path else None,
        resolve_under(roots.data, other, "data.validation_path") if other else None,
    )


def with_documents(spec: RunSpec, roots: Roots, begun: RunSpec | None = None) -> RunSpec:
    """Returns the spec with data.attention_across_documents and data.long_chats filled in.

    Documents attend to each other in text, not in chats. Null stays null if a dataset cannot be
    read, which the checks report, and long_chats also if there are no chats.

    Args:
        spec: the run's.
        roots: what its paths are relative to.
        begun: the spec that a run to be resumed has had; it decides instead of the data.
    """
    data = spec.data
    if begun is not None:
        filled = {name: getattr(begun.data, name) for name in _LEFT_OPEN}
    else:
        manifests = list(_readable(spec, roots))
        filled = dict[str, Any](zip(_LEFT_OPEN, (None, None), strict=True))
        if data.path is not None and manifests:
            filled["attention_across_documents"] = not manifests[0].is_chats
        if any(manifest.is_chats for manifest in manifests):
            filled["long_chats"] = LONG_CHATS
    update = {name: value for name, value in filled.items() if getattr(data, name) is None}
    return spec.model_copy(update={"data": data.model_copy(update=update)})


def _readable(spec: RunSpec, roots: Roots) -> Iterator[ShardManifest]:
    """Yields the manifests of data.path and data.validation_path; none if one cannot be read."""
    found = []
    for name in ("path", "validation_path"):
        path = getattr(spec.data, name)
        if path is not None:
            try:
                found.append(read_manifest(resolve_under(roots.data, path, f"data.{name}")))
            except (LecternError, OSError):
                return
    yield from found


def require_documents(
    folder: Path, manifest: ShardManifest, seq_len: int, *, attention_across: bool
) -> None:
    """Raises InvalidSpec unless rows of `seq_len` can be made of a dataset.

    Args:
        folder: of the dataset.
        manifest: its manifest.
        seq_len: labels per row.
        attention_across: whether the tokens of a row attend to other documents in it.
    """
    if manifest.is_chats:
        if manifest.documents_sha256 is None:
            why = f"{folder} holds chats, but does not record where each begins; prepare it again"
            raise InvalidSpec([("data.path", f"{why} with `lectern data prepare`")])
        if manifest.row_bos_id is not None:
            why = f"{folder} was prepared with bos_policy row, which is for text: a row of chats"
            why += " begins with a chat; prepare it again with --bos-policy document or none"
            raise InvalidSpec([("data.path", why)])
        return
    require_document_starts(
        folder,
        are_known=manifest.documents_sha256 is not None,
        needs_them=not attention_across,
    )
    if manifest.row_bos_id is not None:
        if not attention_across:
            why = (
                f"false lets documents begin within a row, but {folder} was prepared with "
                "bos_policy row, so they would begin without their first token; prepare it again "
                "with --bos-policy document, or set true"
            )
            raise InvalidSpec([("data.attention_across_documents", why)])
        require_row(folder, manifest.total_tokens + 1, seq_len)
    else:
        require_row(folder, manifest.total_tokens, seq_len)


def require_chats(spec: RunSpec, manifests: list[ShardManifest]) -> None:
    """Raises InvalidSpec if data.long_chats is set for data without chats."""
    if spec.data.long_chats is not None and not any(one.is_chats for one in manifests):
        why = f"has no effect: {spec.data.path} holds text, not chats; remove it"
        raise InvalidSpec([("data.long_chats", why)])


def require_short_chats(
    folder: Path, lengths: npt.NDArray[np.int64], seq_len: int, rule: LongChats
) -> None:
    """Raises InvalidSpec if chats have more than seq_len + 1 tokens and the rule forbids that.

    `error` forbids one such chat; `drop` must leave a chat.
    """
    num_longer = int(np.count_nonzero(lengths > seq_len + 1))
    if rule == "drop" and num_longer == len(lengths):
        why = (
            f"drop leaves none of {counted(len(lengths), 'chat')} in {folder}: all have more than "
            f"{seq_len} + 1 tokens; raise data.seq_len, or set cut"
        )
        raise InvalidSpec([("data.long_chats", why)])
    if rule == "error" and num_longer:
        why = (
            f"error: {num_longer:,} of {counted(len(lengths), 'chat')} in {folder} have more than "
            f"{seq_len} + 1 tokens (the longest {lengths.max():,}); raise data.seq_len, or set cut "
            "or drop"
        )
        raise InvalidSpec([("data.long_chats", why)])


def documents_held_out(chat_of: npt.NDArray[np.int64], fraction: float) -> int:
    """Returns how many documents of chats, the last ones, are held out for validation.

    They are all the documents of this fraction of the chats, but of at least one: one chat may be
    several documents, each of which holds what comes before its answer.

    Args:
        chat_of: which chat each document is of, rising.
        fraction: data.validation_fraction.

    Raises:
        InvalidSpec: no chats would be left to train on.
    """
    chats = np.unique(chat_of)
    num_held = rows_held_out(len(chats), fraction, "chat")
    return int(np.count_nonzero(chat_of >= chats[-num_held]))
