"""Refuses a model folder from which transformers would load more than its hashed weights.

It adds an adapter that it finds beside a model by itself, and a config may name another file of
weights. Neither is in the weights' hash, so a teacher would be another model under the same
fingerprint, and a student would start from weights that nobody chose.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lectern_common.errors import Misconfigured

ADAPTER_CONFIG = "adapter_config.json"
# transformers acts on the first name only. The others are adapters too: whether the weights beside
# them include them, nothing says.
_ADAPTERS = (
    ADAPTER_CONFIG,
    "adapter_model.*",
    "pytorch_adapter.bin",
    "adapters.safetensors",
    "adapters.npz",
    "pytorch_lora_weights.*",
)
_OTHER_FILE = "transformers_weights"


def require_no_other_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises Misconfigured, naming the file, if a folder holds weights beside its model's.

    Only the folder itself counts, not its subfolders, where an export keeps its adapter.

    Args:
        folder: the model's.
        config: its config.json; empty for a GGUF file.
    """
    found = sorted({path.name for pattern in _ADAPTERS for path in folder.glob(pattern)})
    if found:
        raise Misconfigured(
            f"{folder} has an adapter beside the model ({', '.join(found)}), which would change "
            "the weights without showing in their hash. Merge it (peft: merge_and_unload, then "
            "save_pretrained into a new folder) and use the result, or move these files away"
        )
    if config.get(_OTHER_FILE) is not None:
        raise Misconfigured(
            f"{folder / 'config.json'} names another file of weights ({_OTHER_FILE}: "
            f"{config[_OTHER_FILE]!r}); rename that to model.safetensors, and remove the setting"
        )


def adapter_alone(folder: Path) -> str | None:
    """Returns why a folder that holds only an adapter is not a model; None if it holds none."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    return (
        f"is an adapter without its model (it has {ADAPTER_CONFIG}); merge it into its base model "
        "(peft: merge_and_unload, then save_pretrained), and give that folder"
    )
