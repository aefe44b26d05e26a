"""How the documents of a run's data lie in its rows: what its spec leaves open, and what cannot be.

A dataset of text is one stream, cut into rows; a chat is never cut if it fits into a row. Preflight
checks and counts with what is here, and the trainer makes its rows by the same rules.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lectern_common.checks.rules import require_document_starts, require_row, rows_held_out
from lectern_common.errors import CorruptData, InvalidSpec, LecternError
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.chat_rows import (
    LONG_CHATS,
    ChatShares,
    LongChats,
    best_fit,
    chat_lengths,
    chat_shares,
    fit,
    learnt_labels,
)
from lectern_common.tokens.shards import (
    ShardManifest,
    open_masks,
    read_document_starts,
    read_manifest,
)
from lectern_common.words import counted

# Fields of data that are null until the data, or the run to resume, says what they are.
_LEFT_OPEN = ("attention_across_documents", "long_chats")


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
    """Raises InvalidSpec if the rule is `error` and a chat has more than seq_len + 1 tokens."""
    num_longer = int(np.count_nonzero(lengths > seq_len + 1))
    if rule == "error" and num_longer:
        why = (
            f"error: {num_longer:,} of {counted(len(lengths), 'chat')} in {folder} have more than "
            f"{seq_len} + 1 tokens (the longest {lengths.max():,}); raise data.seq_len, or set cut "
            "or drop"
        )
        raise InvalidSpec([("data.long_chats", why)])


def num_text_rows(manifest: ShardManifest, seq_len: int) -> int:
    """Returns how many rows a dataset of text has."""
    return (manifest.total_tokens - (manifest.row_bos_id is None)) // seq_len


class ChatCounts:
    """The lengths of a dataset's chats, to count the rows that they will make.

    Raises:
        CorruptData: documents.bin does not match the manifest.
        InvalidSpec: a chat is too long, and data.long_chats is `error`.
    """

    def __init__(self, folder: Path, manifest: ShardManifest, seq_len: int, rule: LongChats):
        starts = read_document_starts(folder, manifest)
        if starts is None:
            raise CorruptData(f"{folder} does not record where its chats begin")
        self._lengths = chat_lengths(starts, manifest.total_tokens)
        self._seq_len, self._rule = seq_len, rule
        require_short_chats(folder, self._lengths, seq_len, rule)
        self._fitted = fit(self._lengths, seq_len, rule)

    def __len__(self) -> int:
        return len(self._lengths)

    def rows(self, held_out: float | None = None) -> tuple[list[int], float]:
        """Returns the number of rows, and the share of their positions that holds tokens.

        Args:
            held_out: the share of the chats to hold out for validation; the rows of the others and
                then theirs are counted. None counts the rows of all chats.
        """
        parts = [self._fitted.lengths]
        if held_out is not None:
            parts = np.split(parts[0], [-rows_held_out(len(parts[0]), held_out, "chat")])
        packings = [best_fit(part, self._seq_len + 1) for part in parts]
        used = np.minimum(packings[0].row_tokens(parts[0]), self._seq_len).sum()
        filled = float(used) / max(1, len(packings[0]) * self._seq_len)
        return [len(packing) for packing in packings], filled


def shares_of(
    folder: Path, manifest: ShardManifest, wanted: Sequence[tuple[int, LongChats]]
) -> list[ChatShares]:
    """Returns what rows of each wanted (seq_len, rule) make of chats; reads the masks once.

    Raises:
        CorruptData: the dataset does not match its manifest.
    """
    starts = read_document_starts(folder, manifest)
    if starts is None:
        raise CorruptData(f"{folder} does not record where its chats begin")
    lengths = chat_lengths(starts, manifest.total_tokens)
    limits = [*(seq_len + 1 for seq_len, _ in wanted), manifest.total_tokens]
    masks = open_masks(folder, manifest)
    if masks is None:
        labels = np.minimum(lengths, np.array(limits)[:, None]) - 1
    else:
        labels = learnt_labels(masks, starts, limits)
    return [
        chat_shares(lengths, within, labels[-1], seq_len, rule)
        for (seq_len, rule), within in zip(wanted, labels[:-1], strict=True)
    ]
