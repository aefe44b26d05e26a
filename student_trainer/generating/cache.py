"""The cache of keys and values of rows in flight: rows leave it, others join it.

transformers' own cache and its layers, with three things that they lack: room for coming tokens,
so that a new token is written and not everything copied; rows of another cache added below; and
columns dropped that no row has.

Rows are padded on the left: the last column of each is its last token.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

# Columns that a full layer grows by at least; a quarter of its columns if that is more.
_ROOM = 64


class RoomyLayer(DynamicLayer):
    """A layer that grows as DynamicLayer does, copying what it holds only when its room is full."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends the columns [B, heads, S, size]; returns all keys and values, views of the room.

        A returned view is valid until the next call.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        end = before + key_states.shape[-2]
        if self._rooms is None or self._rooms[0].shape[-2] < end:
            columns = end + max(_ROOM, end // 4)
            self._rooms = (
                _with_room(self.keys, key_states, columns),
                _with_room(self.values, value_states, columns),
            )
        keys, values = self._rooms
        keys[:, :, before:end] = key_states
        values[:, :, before:end] = value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Replaces what the layer holds."""
        self.keys, self.values, self._rooms = keys, values, None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the rows with these indices, in this order."""
        super().reorder_cache(cast(torch.LongTensor, beam_idx))
        self._rooms = None


_JOINED = (
    DummyLayer,
    RoomyLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


def new_cache(config: PreTrainedConfig) -> Cache:
    """Returns an empty cache for a model with this config."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(one) is DynamicLayer else one for one in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    return cache


def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Returns the most bytes of keys and values of a token; 0 for a model without attention."""
    config = config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return 0
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    # With latent attention, keys are larger than values.
    size = max(size, getattr(config, "qk_head_dim", None) or 0)
    known = new_cache(config).layers
    layers = sum(isinstance(layer, CacheLayerMixin) for layer in known)
    layers = layers if known else int(config.num_hidden_layers)
    return 2 * int(layers * key_value_heads * size) * dtype.itemsize


def can_join(cache: Cache) -> bool:
    """Returns True if `join` and `drop_columns` know all layers of the cache."""
    return all(type(layer) in _JOINED for layer in cache.layers)


def keep_rows(cache: Cache, rows: Sequence[int], device: torch.device) -> None:
    """Keeps the rows with these indices, in this order; an index may come twice."""
    cache.reorder_cache(cast(torch.LongTensor, torch.tensor(rows, device=device)))


def join(cache: Cache, others: Cache) -> None:
    """Adds the rows of `others` below those of `cache`, which has at least as many columns."""
    pairs: Any = zip(cache.layers, others.layers, strict=True)
    for layer, other in pairs:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            _join_states(layer, other)
        if isinstance(layer, CacheLayerMixin) and layer.is_initialized:
            keys, values = _held(layer)
            columns = keys.shape[-2]
            _hold(
                layer,
                torch.cat([keys, _padded(other.keys, columns)]),
                torch.cat([values, _padded(other.values, columns)]),
            )


def drop_columns(cache: Cache, count: int) -> None:
    """Drops the first `count` columns of the sequences, which only padding has."""
    for layer in cache.layers:
        if not isinstance(layer, CacheLayerMixin) or not layer.is_initialized:
            continue
        left = layer.get_seq_length() - count
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length = left
        keys, values = _held(layer)
        if left < keys.shape[-2]:
            _hold(layer, keys[:, :, -left:], values[:, :, -left:])


def _with_room(held: Tensor | None, coming: Tensor, columns: int) -> Tensor:
    rows, heads, _, size = coming.shape
    room = coming.new_empty((rows, heads, columns, size))
    if held is not None and held.numel():
        room[:, :, : held.shape[-2]] = held
    return room


def _held(layer: CacheLayerMixin) -> tuple[Tensor, Tensor]:
    return cast(tuple[Tensor, Tensor], (layer.keys, layer.values))


def _hold(layer: CacheLayerMixin, keys: Tensor, values: Tensor) -> None:
    if isinstance(layer, RoomyLayer):
        layer.hold(keys, values)
    else:
        layer.keys, layer.values = keys, values


def _padded(held: Tensor, columns: int) -> Tensor:
    return pad(held, (0, 0, columns - held.shape[-2], 0))


def _join_states(
    layer: LinearAttentionCacheLayerMixin, other: LinearAttentionCacheLayerMixin
) -> None:
    for states, others in (
        (layer.conv_states, other.conv_states),
        (layer.recurrent_states, other.recurrent_states),
    ):
        for index, state in states.items():
            below = others[index]
            if state is not None and below is not None:
                states[index] = torch.cat([state, below])
