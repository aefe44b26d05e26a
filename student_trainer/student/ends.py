"""The tokens that begin and end a text for a student: what training taught, and what it had before.

A model stops where its generation config says. A student that learnt to end its turns in a chat
must stop there, whatever the model that it comes from was made for; and the ids that transformers
puts into a config that names none (2 for `llama`) are tokens of another vocabulary.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from lectern_common.errors import NotFound
from lectern_common.tokens.shards import (
    TOKENIZER_NAME,
    ShardManifest,
    open_masks,
    open_shards,
    read_document_starts,
    read_manifest,
)
from lectern_common.tokens.tokenizer_files import complete_tokenizer, named_tokens, special_ids

# Tokens of a dataset that are searched for the ends of turns.
_SEARCHED = 1 << 22
# A token that ends fewer of the learnt spans is an accident: a cut, or a chat that broke off.
_FEWEST_SPANS = 0.01
_CONFIG_NAME = "config.json"
_GENERATION_NAME = "generation_config.json"


@dataclass(frozen=True)
class Edges:
    """The tokens around a text.

    Attributes:
        ends: ids that end a text or a turn, the one that was learnt first; none is twice.
        begins: the id that begins a text; None means none.
        taught_begin: what began the texts of training: one id or none; None means unknown.
    """

    ends: tuple[int, ...]
    begins: int | None
    taught_begin: tuple[int, ...] | None = None

    def put_into(self, folder: Path) -> None:
        """Writes the ids into config.json and generation_config.json of a model folder."""
        path = folder / _GENERATION_NAME
        generation = _mapping(path)
        for name, value in (
            ("eos_token_id", _one_or_list(self.ends)),
            ("bos_token_id", self.begins),
        ):
            generation.pop(name, None)
            if value is not None:
                generation[name] = value
        path.write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")
        path = folder / _CONFIG_NAME
        config = _mapping(path)
        for part in _parts(config):
            had_several = isinstance(part.get("eos_token_id"), list)
            first = self.ends[0] if self.ends else None
            part["eos_token_id"] = _one_or_list(self.ends) if had_several else first
            part["bos_token_id"] = self.begins
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def edges_of(
    model: PreTrainedModel,
    folder: Path | None,
    dataset: Path | None,
    tokenizer_files: Mapping[str, bytes],
    data_end: int | None = None,
) -> Edges:
    """Returns the tokens that begin and end a text for a student.

    Args:
        model: the student's.
        folder: where it came from; only ids that its files name are its own.
        dataset: what it is trained on; None means nothing that has an end.
        tokenizer_files: name -> content of the student's tokenizer. An id of the model that is not
            one of its special tokens belongs to another vocabulary. Without a tokenizer.json that
            is unknown, and all are taken.
        data_end: the dataset's end-of-document token, for a dataset without a manifest.
    """
    ids = _written_ids(model, folder)
    special = _special(tokenizer_files)
    if special is not None:
        ids = {name: [one for one in found if one in special] for name, found in ids.items()}
    manifest = None if dataset is None else _manifest(dataset)
    taught: list[int] = []
    if dataset is not None and manifest is not None:
        taught = _taught_ends(dataset, manifest, special)
        data_end = manifest.eos_token_id
    if data_end is not None:
        taught.append(data_end)
    begins = ids["bos_token_id"][0] if ids["bos_token_id"] else None
    taught_begin: tuple[int, ...] | None = None
    if manifest is not None:
        taught_begin = () if manifest.bos_token_id is None else (manifest.bos_token_id,)
        begins = next(iter(taught_begin), begins)
    return Edges(tuple(dict.fromkeys([*taught, *ids["eos_token_id"]])), begins, taught_begin)


def _special(files: Mapping[str, bytes]) -> set[int] | None:
    """Returns the ids of the special and of the named tokens; None without a tokenizer.json."""
    if TOKENIZER_NAME not in files:
        return None
    tokenizer, _ = complete_tokenizer(files, TOKENIZER_NAME)
    named = (tokenizer.token_to_id(token.text) for token in named_tokens(files).values())
    return set(special_ids(tokenizer)) | {one for one in named if one is not None}


def _written_ids(model: PreTrainedModel, folder: Path | None) -> dict[str, list[int]]:
    """Returns the ids that the model's files name, those of the generation config first."""
    config = {} if folder is None else _mapping(folder / _CONFIG_NAME)
    if not config:  # a model that came from no folder: what it says is all there is
        config = {
            "eos_token_id": model.config.get_text_config().eos_token_id,
            "bos_token_id": model.config.get_text_config().bos_token_id,
        }
    generation = {} if folder is None else _mapping(folder / _GENERATION_NAME)
    parts = [generation, *_parts(config), config]
    return {
        name: list(dict.fromkeys(one for part in parts for one in _as_ids(part.get(name))))
        for name in ("eos_token_id", "bos_token_id")
    }


def _taught_ends(
    dataset: Path, manifest: ShardManifest, special: Collection[int] | None
) -> list[int]:
    """Returns the tokens that end what the assistant says, the commonest first; for text, none."""
    masks = open_masks(dataset, manifest)
    if masks is None or not manifest.is_chats:
        return []
    shards, left = open_shards(dataset, manifest), _SEARCHED
    starts = read_document_starts(dataset, manifest)
    found, first = Counter[int](), 0
    for shard, mask in zip(shards, masks, strict=True):
        size = min(len(shard), left)
        learnt = np.append(mask[:size] != 0, False)
        is_last = learnt[:-1] & ~learnt[1:]
        if starts is not None:
            here = starts[(starts > first) & (starts < first + size)] - first
            is_last[here - 1] |= learnt[here - 1]
        found.update(np.asarray(shard[:size])[is_last].tolist())
        first, left = first + len(shard), left - size
        if not left:
            break
    fewest = _FEWEST_SPANS * found.total()
    return [
        token
        for token, count in found.most_common()
        if count >= fewest and (special is None or token in special)
    ]


def _manifest(dataset: Path) -> ShardManifest | None:
    try:
        return read_manifest(dataset)
    except NotFound:
        return None


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the parts of a config that have a text model's settings."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return [config]
    return [inner, config] if "eos_token_id" in config else [inner]


def _as_ids(value: Any) -> list[int]:
    """Returns an id, a list of ids or nothing as a list."""
    listed = value if isinstance(value, list) else [value]
    return [one for one in listed if type(one) is int and one >= 0]


def _one_or_list(ids: tuple[int, ...]) -> int | list[int] | None:
    if len(ids) > 1:
        return list(ids)
    return ids[0] if ids else None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
