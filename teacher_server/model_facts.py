"""What a loaded model tells of itself: its ModelFacts, its fingerprint among them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lectern_common.errors import Misconfigured
from lectern_common.tokenizer_map import tokenizer_sha256
from lectern_common.weights import safetensors_files, weights_sha256
from lectern_common.wire import MAX_SAMPLED_ID
from lectern_models.loading import (
    ModelFolder,
    dtype_name,
    max_positions,
    num_parameters,
    tokenizer_map,
)
from lectern_models.output_head import HeadTransform, OutputHead
from teacher_server.engine import REPRESENTATION_VERSION, HeadFacts, ModelFacts

# What a config says about who wrote it, not about the model.
_CONFIG_NOT_IN_FINGERPRINT = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")


def model_facts(
    folder: ModelFolder,
    model: PreTrainedModel,
    head: OutputHead | None,
    not_split: str | None,
    mode: str,
) -> ModelFacts:
    """Returns the facts of a loaded model.

    Args:
        head: None where body and head are not served apart.
        not_split: why not; None where they are.
        mode: see engine.MODES.

    Raises:
        Misconfigured: without its head apart, the model's own logits are rounded to 16 bits.
    """
    dtype = dtype_name(model.dtype)
    if not_split is not None and dtype != "float32":
        # Its own logits come rounded to 16 bits, which spoils the gradient of distillation.
        raise Misconfigured(
            f"{folder.name} cannot teach in {dtype} ({not_split}); load it with --dtype float32"
        )
    tokens = tokenizer_map(folder.path)
    files = safetensors_files(folder.path)
    transform = head.transform if head is not None else HeadTransform()
    text_config = model.config.get_text_config()
    logit_width = head.vocab_size if head is not None else int(text_config.vocab_size)
    return ModelFacts(
        # Of a folder its last part: where it lies on this machine is not for clients.
        model_id=folder.name if folder.revision else folder.path.name,
        revision=folder.revision,
        weights_sha256=weights_sha256(files),
        fingerprint=_fingerprint(files, folder.path, tokens, dtype),
        logit_width=logit_width,
        tokens=tokens,
        max_positions=max_positions(model),
        hidden_size=head.weight_VD.shape[1] if head is not None else int(text_config.hidden_size),
        hidden_dtype=dtype_name(head.weight_VD.dtype) if head is not None else dtype,
        dtype=dtype,
        quantization="none",
        device=_device_name(model.device),
        head=HeadFacts(
            scale=transform.scale,
            divisor=transform.divisor,
            soft_cap=transform.soft_cap,
            has_bias=head is not None and head.bias_V is not None,
        ),
        not_offered={
            "dense": None,
            "hidden": not_split,
            "top_k": None,
            "sampled": _not_sampled(logit_width),
        },
        engine="transformers",
        mode=mode,
        num_parameters=num_parameters(model),
    )


def _not_sampled(logit_width: int) -> str | None:
    if logit_width <= MAX_SAMPLED_ID + 1:
        return None
    return f"its records hold ids up to {MAX_SAMPLED_ID}, and the model has {logit_width} logits"


def _fingerprint(files: list[Path], folder: Path, tokens: dict[str, int] | None, dtype: str) -> str:
    """Returns the identity of the answers: everything that their bytes depend on but the device."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for name in _CONFIG_NOT_IN_FINGERPRINT:
        config.pop(name, None)
    stamp = {
        "weights": weights_sha256(files, exact=True),
        "config": config,
        "tokenizer": tokenizer_sha256(tokens) if tokens is not None else "",
        "dtype": dtype,
        "quantization": "none",
        "representation_version": REPRESENTATION_VERSION,
    }
    return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()


def _device_name(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    index = device.index or 0
    return f"cuda:{index} ({torch.cuda.get_device_name(index)})"
