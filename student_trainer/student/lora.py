"""Low-rank adapters (LoRA; Hu et al., 2021) by peft: only few parameters are trained.

Legend: R rank of an adapter, I and O the widths of its layer.

    y_O = W_OI x_I + alpha / R * B_OR (A_RI dropout(x_I))

At first A is random and B is 0, so a new adapter changes nothing; W and all other weights are
frozen.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lectern_common.errors import CorruptData, InvalidSpec
from lectern_common.logs import get_logger
from lectern_common.spec.sections import LoraSpec
from lectern_models.body_and_head import split
from lectern_models.quantization import require_packages

_log = get_logger()

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_FIELD = "student.lora.targets"
# Name of the only adapter; peft uses it in the names of live tensors, but not in files.
_NAME = "default"
# Prefix of tensor names that peft expects in an adapter file.
_FILE_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapters:
    """The adapters in a model. `tuner` is peft's LoraModel; `targets` names the adapted layers."""

    tuner: Any
    targets: list[str]

    def facts(self) -> dict[str, Any]:
        """Returns the settings, the adapted layers and the number of trained parameters."""
        config = self.tuner.peft_config[_NAME]
        return {
            "rank": config.r,
            "alpha": config.lora_alpha,
            "dropout": config.lora_dropout,
            "targets": self.targets,
            "parameters": sum(tensor.numel() for tensor in self.tensors().values()),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Returns A and B of every adapted layer by their names in an adapter file; no copies."""
        return {
            _FILE_PREFIX + name.replace(f".{_NAME}.", "."): parameter.detach()
            for name, parameter in self.tuner.model.named_parameters()
            if f".{_NAME}." in name
        }

    def merged(self) -> PreTrainedModel:
        """Returns a copy of the model on the CPU with W + alpha / R * B A for each W."""
        model: PreTrainedModel = _on_cpu(self.tuner).merge_and_unload()
        return model

    def save(self, folder: Path) -> None:
        """Writes a folder that peft loads onto the weights that the adapters were trained on.

        Raises:
            CorruptData: the file differs from the trained adapters.
        """
        folder.mkdir()
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        safetensors.torch.save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
        written = safetensors.torch.load_file(folder / WEIGHTS_NAME)
        for name, tensor in tensors.items():
            if not torch.equal(written[name], tensor):
                raise CorruptData(f"{name} in the adapter file differs from the trained tensor")
        config = copy.copy(self.tuner.peft_config[_NAME])
        config.inference_mode = True  # loads frozen by default
        config.save_pretrained(str(folder))
        path = folder / CONFIG_NAME
        # peft stores a set, whose order differs between processes.
        settings = {**json.loads(path.read_text()), "target_modules": self.targets}
        path.write_text(json.dumps(settings, indent=2, sort_keys=True))


def add_adapters(
    model: PreTrainedModel,
    lora: LoraSpec,
    *,
    seed: int,
    base: str | None,
    revision: str | None,
) -> Adapters:
    """Puts adapters into the model and freezes everything else, both in place.

    Args:
        model: on the CPU, so that equal seeds give equal adapters on any device.
        lora: rank R, alpha, dropout, and names of linear layers, whole or their last parts
            ("q_proj", "mlp.up_proj").
        seed: A is drawn from it; the caller's random state is left unchanged.
        base: the base model's name in the adapter's folder; None if no stored model is the base.
        revision: the revision of `base`.

    Raises:
        InvalidSpec: a target names no layer, or a layer that takes no adapter.
        Misconfigured: peft is not installed.
    """
    require_packages("lora", "student.lora", "peft")
    from peft import LoraConfig, LoraModel

    linear = _linear_layers(model)
    every = {_last_part(name) for name in linear}
    chosen = sorted(every if lora.targets is None else set(lora.targets))
    for target in chosen:
        _require_linear(model, linear, target)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=chosen,
        # GPT-2's layers store their weight transposed.
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
        base_model_name_or_path=base,
        revision=revision,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tuner = LoraModel(model, {_NAME: config}, _NAME)
    except ValueError as error:
        why = f"{' '.join(str(error).split())}; there are: {_names(linear)}"
        raise InvalidSpec([(_FIELD, why)]) from error
    _warn_of_unadapted_matrices(model)
    return Adapters(tuner, chosen)


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Returns the linear layers of the body by name; the output head is not among them."""
    body = set(split(model).body.modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module in body
    }


def _require_linear(model: PreTrainedModel, linear: dict[str, nn.Module], target: str) -> None:
    """Raises InvalidSpec unless all modules that peft finds by this name take an adapter."""
    found = [
        name for name, _ in model.named_modules() if name == target or name.endswith(f".{target}")
    ]
    if not found:
        why = f"{type(model).__name__} has no layer {target}; there are: {_names(linear)}"
        raise InvalidSpec([(_FIELD, why)])
    for name in found:
        module = model.get_submodule(name)
        if module is model.get_output_embeddings():
            why = f"{name} is the output head, which takes no adapter"
        elif module is model.get_input_embeddings():
            why = f"{name} is the embedding, which takes no adapter"
        elif name not in linear:
            why = f"{name} is not a linear layer ({type(module).__name__})"
        else:
            continue
        raise InvalidSpec([(_FIELD, f"{why}; there are: {_names(linear)}")])


def _warn_of_unadapted_matrices(model: PreTrainedModel) -> None:
    """Warns of matrices in the layers that are not linear layers (mixture of experts).

    They stay frozen, and may be nearly all weights of a model.
    """
    left = {
        ".".join(name.split(".")[-2:])
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 3 and not parameter.requires_grad
    }
    if left:
        _log.warning("lora_leaves_out", weights=sorted(left), why="they are not linear layers")


def _on_cpu(tuner: Any) -> Any:
    """Returns a deep copy with its tensors on the CPU, without another copy on the device."""
    memo: dict[int, Any] = {}
    for parameter in tuner.parameters():
        values = parameter.detach().to("cpu", copy=True)
        memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
    for buffer in tuner.buffers():
        memo[id(buffer)] = buffer.detach().to("cpu", copy=True)
    return copy.deepcopy(tuner, memo)


def _names(linear: dict[str, nn.Module]) -> str:
    return ", ".join(sorted({_last_part(name) for name in linear}))


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]
