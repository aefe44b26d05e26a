"""The model's side of the rows in flight: logits of the next token, whatever its cache is.

`Cached` keeps keys and values. `Alone` computes each sequence anew, by itself, for the few models
that a cache does not serve.

Legend: B rows, S tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from student_trainer.generating.cache import (
    can_join,
    drop_columns,
    join,
    keep_rows,
    new_cache,
)

# Tokens of prompts that are computed at a time, padding included.
_TOKENS_AT_A_TIME = 1 << 14
# Prompts are computed together if the shortest has at least this part of the longest's tokens, or
# so few fewer.
_NEAR_PART, _NEAR_TOKENS = 0.75, 16
# Waiting prompts join once this part of all places is free.
_FREE_PART = 0.25


class Rows(Protocol):
    """Sequences that grow by a token at a time."""

    most_at_a_time: int | None
    """Rows that may be there at a time; None means any number."""

    def may_add(self, free: int, most: int) -> bool:
        """Returns True if it is time to fill `free` of `most` places."""
        ...

    def add(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Adds rows, longest first, below those that are there; returns their logits [B, V]."""
        ...

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Adds an id to each row; returns the logits [B, V] after it."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps the rows with these indices, in this order."""
        ...


def rows_of(model: PreTrainedModel, longest: int) -> Rows:
    """Returns rows of a model, none of them longer than `longest` tokens."""
    takes = inspect.signature(model.forward).parameters
    supported = cast(Any, model)._supports_default_dynamic_cache()
    has_cache = supported and any(name in takes for name in _CACHES)
    if has_cache and not _positions_change(model, longest):
        return Cached(model)
    return Alone(model)


class Cached:
    """Rows with a cache, padded on the left."""

    most_at_a_time: int | None = None

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        takes = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in takes
        self._cache_name = next(name for name in _CACHES if name in takes)
        self._options: dict[str, Any] = {"use_cache": True, "return_dict": True}
        if "logits_to_keep" in takes:
            self._options["logits_to_keep"] = 1
        self._cache = new_cache(model.config)
        self._lengths: list[int] = []
        # Of the cache: more than the longest row has where padding cannot be dropped.
        self._columns = 0

    def may_add(self, free: int, most: int) -> bool:
        if not self._lengths:
            return free > 0
        return free >= max(1, most * _FREE_PART) and can_join(self._cache)

    def add(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        parts = []
        for group in _groups(sequences, together=not can_join(new_cache(self._model.config))):
            cache = new_cache(self._model.config)
            lengths = [len(ids) for ids in group]
            # Several texts may continue one prompt, which is computed once.
            different = list(dict.fromkeys(tuple(ids) for ids in group))
            places = {ids: place for place, ids in enumerate(different)}
            rows = [places[tuple(ids)] for ids in group]
            own = [len(ids) for ids in different]
            logits_BV = self._computed(different, own, max(own), cache)
            if rows != list(range(len(different))):
                keep_rows(cache, rows, logits_BV.device)
                logits_BV = logits_BV[rows]
            if self._lengths:
                join(self._cache, cache)
            else:
                self._cache, self._columns = cache, max(lengths)
            self._lengths += lengths
            parts.append(logits_BV)
        return torch.cat(parts)

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        self._lengths = [length + 1 for length in self._lengths]
        self._columns += 1
        return self._computed([[one] for one in ids], self._lengths, self._columns, self._cache)

    def keep(self, rows: Sequence[int]) -> None:
        self._lengths = [self._lengths[row] for row in rows]
        if not rows:
            self._cache, self._columns = new_cache(self._model.config), 0
            return
        unused = self._columns - max(self._lengths)
        if unused and can_join(self._cache):
            drop_columns(self._cache, unused)
            self._columns -= unused
        keep_rows(self._cache, rows, self._model.device)

    def _computed(
        self, coming: Sequence[Sequence[int]], lengths: Sequence[int], columns: int, cache: Any
    ) -> Tensor:
        """Returns the logits [B, V] after the ids that come.

        The rows then have these lengths, and the cache so many columns.
        """
        device = self._model.device
        width = max(map(len, coming))
        padded = [[0] * (width - len(ids)) + list(ids) for ids in coming]
        arguments: dict[str, Any] = {"input_ids": torch.tensor(padded, device=device)}
        lengths_B1 = torch.tensor(lengths, device=device)[:, None]
        is_padded = any(length < columns for length in lengths)
        if self._takes_positions:
            places_S = torch.arange(-width, 0, device=device)
            arguments["position_ids"] = (lengths_B1 + places_S).clamp(min=0)
        if is_padded and (width > 1 or self._cache_name == "past_key_values"):
            columns_S = torch.arange(columns, device=device)
            arguments["attention_mask"] = (columns_S >= columns - lengths_B1).long()
        arguments[self._cache_name] = cache
        output: Any = self._model(**arguments, **self._options)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


class Alone:
    """Rows without a cache, each computed by itself: nothing is padded."""

    most_at_a_time: int | None = 1

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._rows: list[list[int]] = []

    def may_add(self, free: int, most: int) -> bool:
        return free > 0

    def add(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        added = [list(ids) for ids in sequences]
        self._rows += added
        return torch.cat([self._logits(ids) for ids in added])

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        for row, one in zip(self._rows, ids, strict=True):
            row.append(one)
        return torch.cat([self._logits(row) for row in self._rows])

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    def _logits(self, ids: list[int]) -> Tensor:
        output: Any = self._model(
            input_ids=torch.tensor([ids], device=self._model.device), use_cache=False
        )
        logits_1V: Tensor = output.logits[:, -1]
        return logits_1V


_CACHES = ("past_key_values", "cache_params")


def _groups(sequences: Sequence[Sequence[int]], *, together: bool) -> list[Sequence[Sequence[int]]]:
    """Returns the sequences, longest first, in groups of near lengths and limited size."""
    groups: list[list[Sequence[int]]] = []
    for ids in sequences:
        if groups:
            first = groups[-1][0]
            is_near = len(ids) >= min(_NEAR_PART * len(first), len(first) - _NEAR_TOKENS)
            fits = len(first) * (len(groups[-1]) + 1) <= _TOKENS_AT_A_TIME
            if together or (is_near and fits):
                groups[-1].append(ids)
                continue
        groups.append([ids])
    return list(groups)


def _positions_change(model: PreTrainedModel, longest: int) -> bool:
    """Returns True if the positions of earlier tokens change as a sequence grows so long.

    So it is with rotary embeddings that switch to other frequencies beyond a length (`longrope`,
    `dynamic`): what a cache holds is wrong from there on.
    """
    config = model.config.get_text_config(decoder=True)
    settings = getattr(config, "rope_parameters", None) or {}
    kinds = [settings, *(one for one in settings.values() if isinstance(one, dict))]
    changes = any(kind.get("rope_type") in ("longrope", "dynamic") for kind in kinds)
    limits = [kind.get("original_max_position_embeddings") for kind in kinds]
    limits.append(getattr(config, "original_max_position_embeddings", None))
    limits.append(getattr(config, "max_position_embeddings", None))
    limit = min((one for one in limits if isinstance(one, int)), default=None)
    return changes and limit is not None and longest > limit
