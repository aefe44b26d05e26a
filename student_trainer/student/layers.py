"""Makes a shallower student from a deeper model by keeping every n-th layer.

The result is a model of the same architecture and width with fewer layers and a config that says
so: it can be saved and loaded like any other. A test forward checks that it computes what the kept
layers compute; there is no list of architectures.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lectern_common.checks.rules import require_layers_to_leave_out
from lectern_common.errors import InvalidSpec
from lectern_common.logs import get_logger
from lectern_models.body_and_head import split
from lectern_models.layers import layer_lists

_log = get_logger()

_FIELD = "student.keep_every_nth_layer"
_PROBE_SHAPE = (2, 9)
# Settings that may differ in a rebuilt module.
_OTHERWISE = {"training"}


def keep_every_nth_layer(model: PreTrainedModel, n: int) -> list[int]:
    """Removes all layers but 0, n, 2n, ... from the model, in place; returns the kept ones.

    Args:
        model: on the CPU, in eval mode. The remaining tensors are the same objects as before.
        n: 2 or more.

    Raises:
        InvalidSpec: the model has no single list of its layers, or after the cut it differs from a
            model built from its new config.
    """
    name, layers = _layers_of(model)
    require_layers_to_leave_out(len(layers))
    kept = list(range(0, len(layers), n))
    expected = _logits_with_only(model, [layers[index] for index in kept], layers)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(layers[index] for index in kept))
    for index, source in enumerate(kept):
        _renumber(layers[source], index)
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    _shorten(config, len(layers), kept)
    if gone := kinds - set(getattr(config, "layer_types", None) or ()):
        _log.warning("layer_kind_gone", kinds=sorted(gone), kept=kept)
    _require_as_built_from_config(model)
    if not torch.equal(_logits(model), expected):
        raise _refused(
            f"the layers of {type(model).__name__} compute something else when others are missing"
        )
    return kept


def _layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Returns the single list of all layers in the model's body, with its name."""
    body, count = split(model).body, model.config.get_text_config().num_hidden_layers
    inside = set(body.modules())
    outermost = {name: layers for name, layers in layer_lists(model).items() if layers in inside}
    lists = [(name, layers) for name, layers in outermost.items() if len(layers) == count]
    if len(lists) != 1:
        raise _refused(
            f"{type(model).__name__} has {len(lists)} lists of its {count} layers "
            f"({', '.join(outermost) or 'no lists at all'}); expected exactly 1"
        )
    return lists[0]


def _renumber(layer: nn.Module, index: int) -> None:
    for module in layer.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = index  # type: ignore[assignment]


def _shorten(config: Any, count: int, kept: Sequence[int]) -> None:
    """Sets the number of layers, and shortens the settings with one entry per layer."""
    for key, value in config.to_dict().items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def _require_as_built_from_config(model: PreTrainedModel) -> None:
    """Raises InvalidSpec unless its config builds the same tensor shapes and plain settings.

    The model to compare with is built on the meta device, without memory for its tensors.
    """
    try:
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            built: nn.Module = build(model.config, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise _refused(
            f"{type(model).__name__} cannot be built with fewer layers: {error}"
        ) from error
    modules = {name: None for one in (model, built) for name, _ in one.named_modules()}
    for name in modules:
        own, other = dict(_settings_of(model, name)), dict(_settings_of(built, name))
        for key in own | other:
            is_now, would_be = own.get(key, "nothing"), other.get(key, "nothing")
            if is_now != would_be:
                raise _refused(
                    f"{type(model).__name__}: {name}.{key} is {is_now}, but would be {would_be} in "
                    "a model built with only the kept layers"
                )


def _settings_of(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """Yields a module's class, plain attributes and tensor shapes; nothing if it is missing."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return
    yield "class", type(module).__name__
    for key, value in vars(module).items():
        plain = isinstance(value, bool | int | float | str) and not key.startswith("_")
        if plain and key not in _OTHERWISE:
            yield key, value
    for key, tensor in (*module._parameters.items(), *module._buffers.items()):
        yield key, None if tensor is None else list(tensor.shape)


@torch.no_grad()
def _logits(model: PreTrainedModel) -> Tensor:
    vocab_size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(vocab_size, _PROBE_SHAPE, generator=generator)
    logits: Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits


def _logits_with_only(
    model: PreTrainedModel, kept: Sequence[nn.Module], layers: nn.ModuleList
) -> Tensor:
    """Returns the whole model's logits with all other layers passing on their input."""
    with ExitStack() as stack:
        for layer in layers:
            if layer not in kept:
                stack.enter_context(_handing_on(layer))
        return _logits(model)


@contextmanager
def _handing_on(layer: nn.Module) -> Iterator[None]:
    def hand_on(_layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = layer.register_forward_hook(hand_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _refused(why: str) -> InvalidSpec:
    return InvalidSpec([(_FIELD, f"{why}; leave it out, or choose another student.init")])
