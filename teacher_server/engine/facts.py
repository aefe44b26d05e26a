"""The facts about a loaded model that clients see, such as its size and fingerprint."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from lectern_common.checks.config_fields import HIDDEN_SIZE, VOCAB_SIZE, number
from lectern_common.errors import Misconfigured
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_common.wire.formats import FORMATS, MAX_SAMPLED_ID
from lectern_models.gguf_file import loaded_weights_sha256
from lectern_models.loading import dtype_name, max_positions, num_parameters, tokenizer_map
from lectern_models.logits.output_head import HeadTransform, OutputHead
from lectern_models.model_folder import ModelFolder
from lectern_models.model_tokenizer import tokens_before_text
from lectern_models.placement import device_names
from lectern_models.quantization import quantization_of
from teacher_server.engine.seam import REPRESENTATION_VERSION, HeadFacts, ModelFacts

# Config entries that say how the file was written, not what the model is.
_CONFIG_NOT_IN_FINGERPRINT = (
    "_model_name_or_path",
    "_name_or_path",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
)


def model_facts(
    folder: ModelFolder,
    model: PreTrainedModel,
    head: OutputHead | None,
    not_split: str | None,
    mode: str,
    compiled: bool = False,
    tensor_parallel: int = 1,
) -> ModelFacts:
    """Returns the facts of a loaded model.

    Args:
        head: the output head; None if body and head cannot be separated.
        not_split: why they cannot; None if they can.
        mode: see lectern_common.teacher.options.MODES.
        compiled: torch.compile was applied to the body.
        tensor_parallel: ranks that share the model, each on its own device.

    Raises:
        Misconfigured: the head cannot be separated, and the model's own logits have 16 bits.
    """
    dtype = dtype_name(model.dtype)
    if not_split is not None and dtype != "float32":
        # The model's own logits are rounded to 16 bits, which spoils the distillation gradient.
        raise Misconfigured(
            f"{folder.name} cannot teach in {dtype} ({not_split}); load it with --dtype float32"
        )
    stored = _stored(folder, model)
    quantization = "gguf" if folder.gguf_file else quantization_of(model)
    transform = head.transform if head is not None else HeadTransform()
    config = model.config.to_dict()
    logit_width = head.vocab_size if head is not None else number(config, VOCAB_SIZE)
    if logit_width is None:
        raise Misconfigured(
            f"{folder.name} cannot teach: its config names no vocab_size, and {not_split}"
        )
    return ModelFacts(
        model_id=folder.public_name,
        revision=folder.revision,
        weights_sha256=stored.weights_sha256,
        fingerprint=_fingerprint(model, stored, quantization, compiled),
        logit_width=logit_width,
        tokens=stored.tokens,
        tokens_before_text=stored.tokens_before_text,
        max_positions=max_positions(model),
        # Without a head no hidden states are served.
        hidden_size=head.weight_VD.shape[1] if head else number(config, HIDDEN_SIZE) or 0,
        hidden_dtype=dtype_name(head.weight_VD.dtype) if head is not None else dtype,
        dtype=dtype,
        quantization=quantization,
        device=device_names(model, tensor_parallel),
        head=HeadFacts(
            scale=transform.scale,
            divisor=transform.divisor,
            soft_cap=transform.soft_cap,
            has_bias=head is not None and head.bias_V is not None,
        ),
        not_offered={
            **{name: not_split if form.needs_head else None for name, form in FORMATS.items()},
            "sampled": _not_sampled(logit_width),
        },
        engine="transformers",
        mode=mode,
        num_parameters=num_parameters(model),
        arithmetic=_arithmetic(model, tensor_parallel),
        tensor_parallel=tensor_parallel,
    )


def _arithmetic(model: PreTrainedModel, tensor_parallel: int) -> str:
    """Returns what decides how sums round: versions, threads on the CPU, ranks if several."""
    names = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    if model.device.type == "cpu":
        names.append(f"{torch.get_num_threads()} threads")
    if tensor_parallel > 1:
        names.append(f"tensor parallel over {tensor_parallel}")
    return ", ".join(names)


def _not_sampled(logit_width: int) -> str | None:
    if logit_width <= MAX_SAMPLED_ID + 1:
        return None
    return f"its records hold ids up to {MAX_SAMPLED_ID}, but the model has {logit_width} logits"


@dataclass(frozen=True)
class _Stored:
    """A model as stored on disk. `exact_sha256` changes with every stored bit."""

    weights_sha256: str
    exact_sha256: str
    config: dict[str, Any]
    tokens: dict[str, int] | None
    tokens_before_text: tuple[int, ...] | None


def _stored(folder: ModelFolder, model: PreTrainedModel) -> _Stored:
    gguf = folder.gguf
    if gguf is not None:
        config = json.loads(model.config.get_text_config().to_json_string())
        return _Stored(
            weights_sha256=loaded_weights_sha256(model),
            exact_sha256=gguf.tensors_sha256,
            config=config,
            tokens=gguf.tokens,
            tokens_before_text=gguf.tokens_before_text,
        )
    files = safetensors_files(folder.path)
    return _Stored(
        weights_sha256=weights_sha256(files),
        exact_sha256=weights_sha256(files, exact=True),
        config=json.loads((folder.path / "config.json").read_text()),
        tokens=tokenizer_map(folder.path),
        tokens_before_text=tokens_before_text(folder.path),
    )


def _fingerprint(model: PreTrainedModel, stored: _Stored, quantization: str, compiled: bool) -> str:
    """Returns a hash over everything that an answer's bytes depend on, except where it is computed.

    That is the device, and how many share the work: any of them serves a run in mode "throughput".
    """
    stamp = {
        "weights": stored.exact_sha256,
        "config": {
            name: value
            for name, value in stored.config.items()
            if name not in _CONFIG_NOT_IN_FINGERPRINT
        },
        "tokenizer": tokenizer_sha256(stored.tokens) if stored.tokens is not None else "",
        "dtype": dtype_name(model.dtype),
        "quantization": quantization,
        "attention": model.config._attn_implementation,
        "compiled": compiled,
        "representation_version": REPRESENTATION_VERSION,
    }
    return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()
