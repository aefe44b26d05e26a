"""Loads causal language models from folders: only data, never a model's own code.

Loads config.json with safetensors, or one GGUF file.
"""

import json
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lectern_common.checks.config_fields import POSITIONS, number
from lectern_common.errors import CorruptData, Misconfigured, NotFound
from lectern_common.tokens.other_weights import require_no_other_weights
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_common.tokens.tokenizer_files import vocabulary_files
from lectern_common.tokens.tokenizer_map import read_tokenizer_map
from lectern_common.tokens.weights import safetensors_files
from lectern_models.gguf_file import GgufFile
from lectern_models.model_tokenizer import converted_map
from lectern_models.placement import BALANCED, require_all_on_gpus, require_attention
from lectern_models.quantization import (
    bitsandbytes_config,
    require_packages,
    stored_quantization,
)
from lectern_models.tensor_parallel import sharding_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_causal_lm(
    folder: Path,
    dtype: str = "auto",
    device: str = "cpu",
    *,
    quantization: str = "none",
    attention: str = "auto",
    gguf_file: str = "",
    tensor_parallel: int = 1,
) -> PreTrainedModel:
    """Returns the model in a folder, in eval mode, on the device.

    Args:
        folder: holds config.json and safetensors weights, or `gguf_file`.
        dtype: "float32", "bfloat16", "float16", or "auto" for the config's own (for a GGUF file see
            GgufFile.dtype).
        device: a torch device, "cpu", "cuda", "cuda:1", or BALANCED.
        quantization: "none", "int8" or "int4": see bitsandbytes_config.
        attention: one of placement.ATTENTION.
        gguf_file: load this file of the folder instead. Its blocks are converted to `dtype`, so
            the model takes as much memory as an unquantised one.
        tensor_parallel: number of ranks that share the model; all of them call this, in a process
            group (see ranks.py), and each gets its slices, on its own device of the kind. Not for
            a GGUF file, nor quantised.

    Raises:
        NotFound: no config.json or no safetensors (the message names a pickle, if there is one).
        CorruptData: weights are truncated, or lack tensors that the config needs.
        Misconfigured: the architecture is unknown or needs code of its own; a package or a device
            is missing; the model does not fit into memory; the folder holds other weights beside
            the model's, such as an adapter.
    """
    require_attention(attention, dtype, device)
    require_no_other_weights(folder, {} if gguf_file else _read_config(folder))
    gguf = GgufFile(folder / gguf_file) if gguf_file else None
    options: dict[str, Any] = {}
    if attention != "auto":
        options["attn_implementation"] = attention
    if device == BALANCED:
        require_packages("gpu", "--device balanced", "accelerate")
        options["device_map"] = BALANCED
    elif quantization != "none":
        options["device_map"] = {"": device}
    if tensor_parallel > 1:
        options["distributed_config"] = sharding_of(tensor_parallel)
    if gguf is None:
        options |= _safetensors_options(folder, quantization, dtype)
    elif quantization == "none":
        options |= {"dtype": DTYPES[gguf.dtype if dtype == "auto" else dtype], **gguf.options()}
    else:
        raise Misconfigured(f"--quantization {quantization} is not for a GGUF file; leave it out")

    model, info = _loaded(folder, device, options)
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise CorruptData(
            f"{folder} lacks {len(names)} of the model's tensors, {names[0]} first; they would be "
            "random numbers"
        )
    if gguf is not None:
        gguf.require_tensors_read(model)
    require_all_on_gpus(getattr(model, "hf_device_map", {}))
    return cast(PreTrainedModel, model.train(False))


def _safetensors_options(folder: Path, quantization: str, dtype: str) -> dict[str, Any]:
    safetensors_files(folder)  # raises if there are none
    config = _read_config(folder)
    options: dict[str, Any] = {"dtype": DTYPES.get(dtype, dtype), "use_safetensors": True}
    stored = stored_quantization(config)
    if stored not in ("none", quantization):
        raise Misconfigured(
            f"{folder} is stored in {stored}; a teacher loads it with --quantization {stored}"
        )
    if quantization != "none":
        settings = bitsandbytes_config(quantization, config, DTYPES.get(dtype))
        if stored == "none":
            options["quantization_config"] = settings
    return options


def _loaded(
    folder: Path, device: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Returns (the model on its device, transformers' report of missing tensors)."""
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(
            folder,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        if not options.keys() & {"device_map", "distributed_config"}:
            model = model.to(torch.device(device))
    except torch.OutOfMemoryError as error:
        raise Misconfigured(
            f"{folder} does not fit into the memory of {device}; set --device balanced or a "
            "larger --tensor-parallel to spread it over more GPUs, or --quantization int8 or int4: "
            f"{_one_line(error)}"
        ) from error
    except (ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise Misconfigured(f"cannot load {folder}: {_one_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise CorruptData(f"cannot load {folder}: {_one_line(error)}") from error
    except Exception as error:  # safetensors' own class derives from Exception
        raise CorruptData(f"cannot read the weights in {folder}: {_one_line(error)}") from error
    return cast(PreTrainedModel, model), info


def build_causal_lm(config_folder: Path, seed: int) -> PreTrainedModel:
    """Returns a float32 model on the CPU with weights drawn from `seed`, in eval mode.

    Equal (config.json, seed) give equal weights. The caller's random state is left unchanged.

    Raises:
        NotFound: no config.json.
        Misconfigured: the architecture is unknown, or needs code of its own.
    """
    _read_config(config_folder)
    build: Any = AutoModelForCausalLM.from_config
    try:
        config = AutoConfig.from_pretrained(
            config_folder, trust_remote_code=False, local_files_only=True
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build(config, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # whatever an architecture makes of settings that it cannot use
        raise Misconfigured(
            f"cannot build a model from {config_folder}: {_one_line(error)}"
        ) from error
    return cast(PreTrainedModel, model.eval())


def tokenizer_map(folder: Path) -> dict[str, int] | None:
    """Returns token -> id of a model's tokenizer; None if the folder has none of any kind.

    Without a tokenizer.json, transformers converts the vocabulary that is there.

    Raises:
        CorruptData: a file cannot be read.
        Misconfigured: transformers cannot convert the vocabulary.
    """
    path = folder / TOKENIZER_NAME
    if path.exists():
        return read_tokenizer_map(path)
    return converted_map(folder) if vocabulary_files(folder) else None


def num_parameters(model: torch.nn.Module) -> int:
    """Returns the number of parameters, trainable and frozen; tied ones count once."""
    total = 0
    for parameter in model.parameters():
        # A 4-bit parameter packs two numbers into a byte; quant_state has the real shape.
        packed = getattr(parameter, "quant_state", None)
        total += int((parameter if packed is None else packed).shape.numel())
    return total


def max_positions(model: PreTrainedModel) -> int | None:
    """Returns the longest sequence that the config names; None if it names none (Mamba, Bloom)."""
    return number(model.config.to_dict(), POSITIONS)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32", "bfloat16", ..."""
    return str(dtype).removeprefix("torch.")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise NotFound(f"no config.json in {folder}: it is not a model folder") from None
    except (OSError, ValueError) as error:
        raise CorruptData(f"cannot read {folder / 'config.json'}: {error}") from None
    if not isinstance(config, dict):
        raise CorruptData(f"{folder / 'config.json'} is not a JSON object")
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
