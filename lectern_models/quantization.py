"""8- and 4-bit weights by bitsandbytes.

Only the linear layers of the body are quantised: embeddings, norms and the output head keep the
model's dtype, so hidden states and the head are sent as for any model.
"""

import importlib.util
import logging
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from lectern_common.checks.config_fields import text_parts
from lectern_common.errors import Misconfigured


def bitsandbytes_config(
    quantization: str, config: dict[str, Any], dtype: torch.dtype | None
) -> BitsAndBytesConfig:
    """Returns the config of how the body's linear layers are stored and multiplied.

    "int8" is LLM.int8() (Dettmers et al., 2022): 8-bit rows and columns, but 16 bits for columns in
    which some token of the forward reaches 6.0. Which columns those are depends on every token of
    the forward, so a position's values depend slightly on the tokens after it and on the rest of
    the batch. "int4" is NF4 (Dettmers et al., 2023), multiplied in the model's dtype; there every
    position is computed independently.

    Args:
        quantization: "int8" or "int4".
        config: the model's config.json.
        dtype: of the rest of the model; None means the config's own.

    Raises:
        Misconfigured: a package is missing or does not work on this machine.
    """
    require_packages("quantized", f"--quantization {quantization}", "accelerate", "bitsandbytes")
    _require_bitsandbytes_runs(quantization)
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    named = str(config.get("dtype", config.get("torch_dtype", "float32")))
    compute = dtype if dtype is not None else getattr(torch, named, torch.float32)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
    )


def stored_quantization(config: dict[str, Any]) -> str:
    """Returns how a model folder's weights are stored: "none", "int8" or "int4".

    Args:
        config: its config.json.

    Raises:
        Misconfigured: they are stored in an unsupported way.
    """
    # transformers looks into the text model's config too.
    parts = [config, *text_parts(config)]
    found = [part["quantization_config"] for part in parts if part.get("quantization_config")]
    if not found:
        return "none"
    stored = found[0]
    if isinstance(stored, dict) and stored.get("quant_method") == "bitsandbytes":
        return "int4" if stored.get("load_in_4bit") else "int8"
    method = stored.get("quant_method", "unknown") if isinstance(stored, dict) else "unknown"
    raise Misconfigured(
        f"the weights are stored quantised ({method}), which is not supported; use the model's "
        "unquantised weights, with --quantization int8 or int4 if memory is short"
    )


def quantization_of(model: PreTrainedModel) -> str:
    """Returns how a loaded model's body is quantised: "none", "int8" or "int4"."""
    if getattr(model, "is_loaded_in_4bit", False):
        return "int4"
    return "int8" if getattr(model, "is_loaded_in_8bit", False) else "none"


def require_packages(extra: str, what_for: str, *packages: str) -> None:
    """Raises Misconfigured, naming the extra to install, if a package is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise Misconfigured(
            f"{what_for} needs {' and '.join(missing)}: pip install 'lectern[{extra}]'"
        )


def _require_bitsandbytes_runs(quantization: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Misconfigured(
            f"--quantization {quantization}: bitsandbytes does not load on this machine: {reason}"
        ) from None
    # It warns at every multiplication that it casts to float16.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
