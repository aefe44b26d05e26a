"""Prompt sets on disk: token ids for a student to continue. No torch.

A prompt set is a folder like a dataset (shards.py), made by `lectern data prepare --prompts`. Its
documents are prompts: documents.bin says where each begins, no token ends one, and nothing of them
is learnt, so there is no mask. `content` of the manifest is "prompts".
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lectern_common.errors import CorruptData, InvalidRequest, LecternError, NotFound
from lectern_common.tokens.shards import (
    MANIFEST_NAME,
    ShardManifest,
    read_any_manifest,
    read_document_starts,
)
from lectern_common.words import inert_name


@dataclass(frozen=True)
class PromptFacts:
    """What is known of a prompt set without reading its ids.

    Attributes:
        count: prompts.
        tokens: of all of them.
        longest: tokens of the longest.
        manifest: of the set.
    """

    count: int
    tokens: int
    longest: int
    manifest: ShardManifest


def read_prompt_manifest(folder: Path) -> ShardManifest:
    """Returns the manifest of a prompt set.

    Raises:
        NotFound: no such folder, or no manifest in it.
        CorruptData: the manifest does not follow the schema.
        InvalidRequest: the folder is a dataset to train on.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise NotFound(
            f"no prompt set at {inert_name(folder)} ({MANIFEST_NAME} is missing); make one with "
            "`lectern data prepare --prompts`"
        )
    manifest = read_any_manifest(folder)
    if not manifest.is_prompts:
        raise InvalidRequest(
            f"{inert_name(folder)} is a dataset, not a prompt set; prepare its text again with "
            "`lectern data prepare --prompts` under another name, or set rollout.prompt_tokens to "
            "continue the first tokens of the rows of data.path"
        )
    return manifest


def is_prompt_set(folder: Path) -> bool:
    """Returns whether a folder has the manifest of a prompt set."""
    try:
        return read_any_manifest(folder).is_prompts
    except (LecternError, OSError):
        return False


def prompt_facts(folder: Path) -> PromptFacts:
    """Returns the number and lengths of the prompts of a set; reads no token.

    Raises:
        NotFound, CorruptData, InvalidRequest: as `read_prompt_manifest` and `prompt_starts` say.
    """
    manifest = read_prompt_manifest(folder)
    lengths = prompt_lengths(prompt_starts(folder, manifest), manifest)
    return PromptFacts(len(lengths), manifest.total_tokens, int(lengths.max()), manifest)


def prompt_starts(folder: Path, manifest: ShardManifest) -> npt.NDArray[np.int64]:
    """Returns the index of each prompt's first token, rising from 0.

    Raises:
        CorruptData: documents.bin is missing, or does not match the manifest.
    """
    starts = read_document_starts(folder, manifest)
    if starts is None:
        raise CorruptData(f"{folder} does not record where its prompts begin; prepare it again")
    return starts


def prompt_lengths(starts: npt.NDArray[np.int64], manifest: ShardManifest) -> npt.NDArray[np.int64]:
    """Returns the tokens of each prompt, at least 1."""
    return np.diff(np.append(starts, manifest.total_tokens))
