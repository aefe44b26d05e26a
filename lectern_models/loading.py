"""Causal language models from folders and from the model hub: safetensors only, no code of theirs.

Whatever is named, a folder with config.json and safetensors files is what gets loaded: a hub id
is brought into the local hub cache first.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lectern_common.errors import CorruptData, Misconfigured, NotFound
from lectern_common.tokenizer_map import read_tokenizer_map
from lectern_common.weights import safetensors_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# What a model is made of, and nothing that could run: no .bin, no .pt, no .py.
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "LICENSE*", "README.md"]
# Folders (original weights, other formats) and unsplit copies of the weights.
_HUB_FILES_NOT = ["*/*", "consolidated*"]


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine. `name` is what the user called it; `revision` is "" for a folder."""

    path: Path
    name: str
    revision: str = ""


def find_model(name: str, revision: str | None = None) -> ModelFolder:
    """Returns the folder of a model, downloading a hub id that is not in the local hub cache.

    Args:
        name: an existing folder, or a hub id like "Qwen/Qwen2.5-Coder-0.5B-Instruct".
        revision: hub commit, tag or branch; folders have none.

    Raises:
        NotFound: there is no such folder, nor such a model on the hub.
        Misconfigured: a revision was asked of a folder.
    """
    folder = Path(name)
    if folder.is_dir():
        if revision is not None:
            raise Misconfigured(f"{name} is a folder and has no revision {revision}; leave it out")
        return ModelFolder(folder.resolve(), name)
    try:
        snapshot = snapshot_download(
            name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_FILES_NOT
        )
    except HFValidationError:
        raise NotFound(f"no folder {name}, and it is no hub id either") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        what = f"{name} at {revision}" if revision else name
        first_line = str(error).strip().partition("\n")[0]
        raise NotFound(f"no folder {name}, and the hub did not give {what}: {first_line}") from None
    return ModelFolder(Path(snapshot), name, revision=Path(snapshot).name)


def load_causal_lm(folder: Path, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """Returns the model in a folder, in eval mode, on the device.

    Args:
        folder: holds config.json and safetensors weights.
        dtype: "float32", "bfloat16", "float16", or "auto" for the one the config names.
        device: a torch device, "cpu", "cuda", "cuda:1".

    Raises:
        NotFound: no config.json or no safetensors (a pickle beside it is named and refused).
        CorruptData: weights are truncated, or lack tensors that the config asks for.
        Misconfigured: the architecture is unknown, or needs code of its own.
    """
    files = safetensors_files(folder)
    _read_config(folder)
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(
            folder,
            dtype=DTYPES.get(dtype, dtype),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, KeyError, ImportError) as error:
        raise Misconfigured(f"cannot load {folder}: {_one_line(error)}") from error
    except (OSError, RuntimeError) as error:
        raise CorruptData(f"cannot load {folder}: {_one_line(error)}") from error
    except Exception as error:  # safetensors raises an exception class of its own, a bare Exception
        raise CorruptData(f"cannot read {files[0]}: {_one_line(error)}") from error
    if info["missing_keys"]:
        names = sorted(info["missing_keys"])
        raise CorruptData(
            f"{folder} lacks {len(names)} of the model's tensors, {names[0]} the first; they would "
            "be random numbers"
        )
    return cast(PreTrainedModel, model.to(torch.device(device)).eval())


def build_causal_lm(config_folder: Path, seed: int) -> PreTrainedModel:
    """Returns a float32 model on the CPU with weights drawn from `seed`, in eval mode.

    Equal (config.json, seed) give equal weights. The caller's random state is kept.

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
    except (ValueError, KeyError, ImportError, OSError) as error:
        raise Misconfigured(
            f"cannot build a model from {config_folder}: {_one_line(error)}"
        ) from error
    return cast(PreTrainedModel, model.eval())


def tokenizer_map(folder: Path) -> dict[str, int] | None:
    """Returns token -> id from tokenizer.json; None where the folder has none.

    Raises:
        CorruptData: the file cannot be read.
    """
    path = folder / "tokenizer.json"
    return read_tokenizer_map(path) if path.exists() else None


def num_parameters(model: torch.nn.Module) -> int:
    """Returns the number of parameters, trainable and frozen, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def max_positions(model: PreTrainedModel) -> int | None:
    """Returns the longest sequence of the position encoding; None where it has no end (Mamba)."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) else None


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32", "bfloat16", ..."""
    return str(dtype).removeprefix("torch.")


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise NotFound(f"no config.json in {folder}: it is no model folder") from None
    except (OSError, ValueError) as error:
        raise CorruptData(f"cannot read {folder / 'config.json'}: {error}") from None
    if not isinstance(config, dict):
        raise CorruptData(f"{folder / 'config.json'} is not a JSON object")
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
