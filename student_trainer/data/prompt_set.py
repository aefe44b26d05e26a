"""Prompts by index, for a student to continue: of a prompt set, or the first tokens of rows.

Ids are read when they are asked for, so memory holds only where each prompt begins.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lectern_common.checks.compatibility import require_data_fits
from lectern_common.checks.needs.rollouts import why_no_beginnings
from lectern_common.checks.rules import named_rows
from lectern_common.errors import Incompatible, InvalidSpec
from lectern_common.logs import get_logger
from lectern_common.tokens.prompt_sets import prompt_lengths, prompt_starts, read_prompt_manifest
from lectern_common.tokens.shards import ShardManifest
from lectern_common.tokens.tokenizer_map import TokenizerMap
from student_trainer.batch import Tokens
from student_trainer.data.chats import ChatRows
from student_trainer.data.rows import ChosenRows, Rows
from student_trainer.data.scan import checked_blocks, open_streams

_log = get_logger()

# Tokens scanned at a time.
_SCAN_TOKENS = 1 << 22


@dataclass(frozen=True)
class PromptSet:
    """Prompts, each of at least one token.

    Attributes:
        longest: tokens of the longest.
        folder: of the set; None for prompts that are the first tokens of rows.
        manifest: of the set, with the facts of its tokenizer; None without a folder.
    """

    longest: int
    folder: Path | None
    manifest: ShardManifest | None
    _count: int
    _read: Callable[[int], Tokens]

    def __len__(self) -> int:
        return self._count

    def ids(self, index: int) -> Tokens:
        """Returns the tokens of a prompt, uint32 [its length].

        Raises:
            IndexError: there is no such prompt.
            DataUnavailable: a file has changed, or cannot be read.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"prompt {index} of {self._count}")
        return self._read(index)

    @cached_property
    def sha256(self) -> str:
        """The hash of the set: equal if all prompts are, in their order.

        Of the first tokens of rows, reads all of them when it is first asked for.
        """
        digest = hashlib.sha256()
        if self.manifest is not None:
            digest.update("\n".join(self.manifest.hashes).encode())
            return digest.hexdigest()
        for index in range(self._count):
            ids = self._read(index)
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<u4").tobytes())
        return digest.hexdigest()


def open_prompt_set(path: Path, vocab_size: int, tokens: TokenizerMap | None) -> PromptSet:
    """Returns the prompts of a set, every byte and id checked.

    Args:
        path: folder of the set.
        vocab_size: the student's.
        tokens: the student's tokenizer; None if it came without one.

    Raises:
        NotFound: there is no such set.
        InvalidRequest: the folder is a dataset, not a prompt set.
        CorruptData: sizes, hashes or ids do not match the manifest.
        TokenizerMismatch: the tokenizers of prompts and student differ at ids that the prompts use.
        Incompatible: a prompt has ids that the student lacks.
    """
    manifest = read_prompt_manifest(path)
    starts = prompt_starts(path, manifest)
    lengths = prompt_lengths(starts, manifest)
    note = require_data_fits(path, manifest, tokens)
    if note is not None:
        _log.warning("tokenizers_differ", message=note)
    stream, _ = open_streams(path, manifest)
    unknown = np.zeros(len(starts), bool)
    for first, more, _mask in checked_blocks(stream, None, path, manifest, _SCAN_TOKENS):
        places = first + np.flatnonzero(more[:_SCAN_TOKENS] >= vocab_size)
        unknown[np.searchsorted(starts, places, side="right") - 1] = True
    if unknown.any():
        bad = np.flatnonzero(unknown).tolist()
        raise Incompatible(
            f"{len(bad)} of {len(starts)} prompts of {path} have ids outside the student's "
            f"vocabulary of {vocab_size}; the first are prompts {named_rows(bad)}. Prepare them "
            "with the student's tokenizer"
        )
    _log.info("prompts_checked", prompts=len(starts), longest=int(lengths.max()))
    return PromptSet(
        longest=int(lengths.max()),
        folder=path,
        manifest=manifest,
        _count=len(starts),
        _read=lambda index: stream.read(int(starts[index]), int(lengths[index])),
    )


def prompts_of_rows(rows: Rows, prompt_tokens: int) -> PromptSet:
    """Returns as many prompts as there are rows: the first `prompt_tokens` tokens of each.

    Raises:
        InvalidSpec: rows are shorter, hold chats, or keep their documents apart, so that their
            first tokens may be of several texts.
    """
    apart = len(rows) > 0 and rows.position_ids(0) is not None
    why = why_no_beginnings(is_chats=isinstance(_whole(rows), ChatRows), apart=apart)
    if not 1 <= prompt_tokens <= rows.seq_len:
        why = f"{prompt_tokens} is not from 1 to data.seq_len {rows.seq_len}"
    if why is not None:
        raise InvalidSpec([("rollout.prompt_tokens", why)])
    return PromptSet(
        longest=prompt_tokens,
        folder=None,
        manifest=None,
        _count=len(rows),
        _read=lambda index: rows.row(index)[:prompt_tokens],
    )


def _whole(rows: Rows) -> Rows:
    """Returns the rows that these were chosen from."""
    while isinstance(rows, ChosenRows):
        rows = rows.rows
    return rows
