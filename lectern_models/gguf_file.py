"""Reads a GGUF file's facts, and checks that transformers used every setting and tensor.

transformers converts the blocks of a GGUF file into plain numbers when it loads it, so the file is
small on disk but as large as any model in memory. It silently ignores settings and tensors that it
does not know; such a file is refused here.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GgufConfig, PreTrainedModel

from lectern_common.errors import CorruptData, Misconfigured
from lectern_models.quantization import require_packages

_BLOCK_VALUES = 1 << 22
_INSTEAD = "take the model's safetensors weights"

# Types that store plain numbers, not blocks.
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Settings that loading checks anyway, because they are the shapes of tensors.
_SHAPES = {
    "block_count",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "feed_forward_length",
    "vocab_size",
}
# Settings that change nothing when they have these values.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (1.0,),
    "rope.scaling.finetuned": (True, False),
    "rope.scaling.type": ("none",),
}


class GgufFile:
    """One GGUF file, opened at its first use.

    Raises (everything but the constructor):
        Misconfigured: the package gguf is missing, or the file is one part of several.
        CorruptData: it is not a GGUF file, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def dtype(self) -> str:
        """The 16-bit dtype that its matrices are stored in, if any; "float32" for blocks.

        float32 represents the numbers of the common blocks exactly, a 16-bit dtype rounds them.
        """
        stored = {str(tensor.tensor_type.name) for tensor in self._reader.tensors}
        if not stored <= set(_PLAIN):
            return "float32"
        return next((_PLAIN[name] for name in ("BF16", "F16") if name in stored), "float32")

    @cached_property
    def tokens(self) -> dict[str, int] | None:
        """Token -> id, without unused padding ids; None if the file has no tokenizer."""
        from gguf import TokenType

        spelled = self._value("tokenizer.ggml.tokens")
        if spelled is None:
            return None
        types = self._value("tokenizer.ggml.token_type") or [TokenType.NORMAL] * len(spelled)
        return {
            token: index
            for index, (token, kind) in enumerate(zip(spelled, types, strict=True))
            if kind != TokenType.UNUSED
        }

    @cached_property
    def tokens_before_text(self) -> tuple[int, ...] | None:
        """The ids that its tokenizer puts before each text; None if the file does not say."""
        adds, token_id = (
            self._value(f"tokenizer.ggml.{name}") for name in ("add_bos_token", "bos_token_id")
        )
        if adds is None:
            return None
        return (int(token_id),) if adds and token_id is not None else ()

    @cached_property
    def tensors_sha256(self) -> str:
        """Hex SHA-256 over the stored tensors: name, type, shape and bytes, in name order."""
        digest = hashlib.sha256()
        for tensor in sorted(self._reader.tensors, key=lambda tensor: str(tensor.name)):
            shape = [int(size) for size in tensor.shape]
            digest.update(json.dumps([tensor.name, tensor.tensor_type.name, shape]).encode())
            digest.update(tensor.data)
        return digest.hexdigest()

    def options(self) -> dict[str, Any]:
        """Returns the arguments of transformers' from_pretrained besides the folder and the dtype.

        Raises:
            Misconfigured: the architecture is unknown, or a setting of the file is ignored.
        """
        require_packages("gguf", "a GGUF file", "accelerate")
        self._require_settings_read()
        # Otherwise it fetches kernels from the model hub if its package for them is installed.
        return {
            "gguf_file": self.path.name,
            "quantization_config": GgufConfig(dequantize=True),
        }

    def require_tensors_read(self, model: PreTrainedModel) -> None:
        """Raises Misconfigured unless the loaded model has all numbers of the file."""
        # Loading renames, permutes and fuses tensors, but keeps their number of values. Blocks past
        # the last layer only predict tokens further ahead.
        past_last = f"blk.{model.config.get_text_config().num_hidden_layers}."
        stored = {
            str(tensor.name): int(tensor.n_elements)
            for tensor in self._reader.tensors
            if not str(tensor.name).startswith(past_last)
        }
        loaded = sum(tensor.numel() for _, tensor in _own_tensors(model))
        if sum(stored.values()) != loaded:
            raise Misconfigured(
                f"{self.path.name} has {sum(stored.values())} numbers, the model loaded from it "
                f"{loaded}: tensors were ignored{_named(stored, 'rope_')}; {_INSTEAD}"
            )

    def _require_settings_read(self) -> None:
        name = self.path.name
        try:
            whole = AutoConfig.from_pretrained(
                self.path.parent, gguf_file=name, trust_remote_code=False, local_files_only=True
            )
        except (ValueError, KeyError) as error:
            raise Misconfigured(f"cannot load {name}: {error}") from None
        config = whole.get_text_config()
        prefix = f"{self._value('general.architecture')}."
        for key in self._reader.fields:
            if key.startswith(prefix):
                self._require_read(key, key.removeprefix(prefix), config)
        # Gemma's attention scale: no file has it, and transformers assumes that of one model.
        scale = getattr(config, "query_pre_attn_scalar", None)
        if scale is not None and scale != _head_dim(config):
            raise Misconfigured(
                f"{name} does not say how its attention is scaled; transformers assumes {scale} "
                f"for heads of {_head_dim(config)}; {_INSTEAD}"
            )

    def _require_read(self, key: str, setting: str, config: Any) -> None:
        value = self._value(key)
        if setting in _SHAPES or value in _NEUTRAL.get(setting, ()):
            return
        read = _READ[setting](config) if setting in _READ else None
        if not _equal(value, read):
            taken = "it has no such setting" if read is None else f"it uses {read}"
            raise Misconfigured(
                f"{self.path.name} sets {key} to {value}, which transformers does not read "
                f"({taken}); {_INSTEAD}"
            )

    @cached_property
    def _reader(self) -> Any:
        require_packages("gguf", "a GGUF file", "gguf")
        import gguf

        try:
            reader = gguf.GGUFReader(self.path)
            size = self.path.stat().st_size
        except Exception as error:  # arbitrary bytes can raise anything
            raise CorruptData(f"cannot read {self.path}: {error or type(error).__name__}") from None
        if "general.architecture" not in reader.fields:
            raise CorruptData(f"{self.path} does not name its architecture")
        ends = max((t.data_offset + t.n_bytes for t in reader.tensors), default=0)
        if ends > size:
            raise CorruptData(f"{self.path} is truncated: {size} of {ends} bytes")
        parts = reader.fields.get("split.count")
        if parts is not None and parts.contents() > 1:
            raise Misconfigured(
                f"{self.path.name} is one of {parts.contents()} parts; merge them into one file"
            )
        return reader

    def _value(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        return None if field is None else field.contents()


def loaded_weights_sha256(model: PreTrainedModel) -> str:
    """Returns weights_sha256 (see lectern_common.tokens.weights) of the tensors of a loaded model.

    For a GGUF file it equals the hash of the safetensors folder that the file was made from if both
    have the same numbers to bfloat16: always for F32 and BF16 files, for F16 files if float16 can
    represent every weight; never for blocks (q8_0, q4_K, ...), whose numbers differ, nor for
    architectures whose tensors transformers fuses or whose norms a GGUF file shifts by one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_own_tensors(model)):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        values = tensor.detach().flatten()
        for first in range(0, len(values), _BLOCK_VALUES):
            block = values[first : first + _BLOCK_VALUES].to(torch.bfloat16).cpu()
            digest.update(block.view(torch.uint16).numpy().tobytes())
    return digest.hexdigest()


def _own_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of a model's stored tensors; tied ones only by their first name."""
    seen = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr())
        if place not in seen:
            seen.add(place)
            yield name, tensor


def _first(*names: str) -> Callable[[Any], Any]:
    """Returns a function that reads the first of these settings that a config has."""

    def read(config: Any) -> Any:
        values = (getattr(config, name, None) for name in names)
        return next((value for value in values if value is not None), None)

    return read


def _head_dim(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    full: dict[str, Any] = rope.get("full_attention", rope)
    return full


def _rotated(config: Any) -> int:
    return int(_head_dim(config) * _rope(config).get("partial_rotary_factor", 1.0))


# Setting in the file -> how to read it from the loaded model's config.
_READ: dict[str, Callable[[Any], Any]] = {
    "attention.head_count": _first("num_attention_heads"),
    "attention.head_count_kv": _first("num_key_value_heads", "num_attention_heads"),
    "attention.key_length": _head_dim,
    "attention.layer_norm_epsilon": _first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attention.layer_norm_rms_epsilon": _first("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.sliding_window": _first("sliding_window"),
    "attention.value_length": _head_dim,
    "attn_logit_softcapping": _first("attn_logit_softcapping"),
    "context_length": _first("max_position_embeddings"),
    "expert_used_count": _first("num_experts_per_tok"),
    "final_logit_softcapping": _first("final_logit_softcapping"),
    "rope.dimension_count": _rotated,
    "rope.freq_base": lambda config: _rope(config).get("rope_theta"),
    "use_parallel_residual": _first("use_parallel_residual"),
}


def _equal(stored: object, read: object) -> bool:
    if isinstance(stored, float) and isinstance(read, (int, float)):
        return math.isclose(stored, read, rel_tol=1e-6)  # stored in float32
    return stored == read


def _named(names: dict[str, int], prefix: str) -> str:
    found = [name for name in names if name.startswith(prefix)]
    return f" ({', '.join(found)})" if found else ""
