"""A shallower student out of a deeper model: every n-th layer is kept, at its width.

What is left is a model of the same kind with a new number of layers, whose config says so: it can
be saved and loaded like any other. That it computes what the kept layers compute is tried, not
taken from a list of architectures.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import structlog
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lectern_common.checks.rules import require_layers_to_leave_out
from lectern_common.errors import InvalidSpec
from lectern_models.body_and_head import split
from lectern_models.layers import layer_lists

_log = structlog.get_logger()

_FIELD = "student.keep_every_nth_layer"
_PROBE_SHAPE = (2, 9)
# The settings of a module that a rebuilt one may have otherwise.
_OTHERWISE = {"training"}


def keep_every_nth_layer(model: PreTrainedModel, n: int) -> list[int]:
    """Cuts all layers but 0, n, 2n, ... out of the model, in place; returns those kept.

    Args:
        model: on the CPU, in eval mode. Its kept tensors are those that it had.
        n: 2 or more.

    Raises:
        InvalidSpec: the model has no list of layers, or is not, without the others, what a model
            built from its new config would be.
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
            f"{type(model).__name__} computes something else in its layers when others are missing"
        )
    return kept


def _layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Returns the name of the one list of all layers in the model's body, and it."""
    body, count = split(model).body, model.config.get_text_config().num_hidden_layers
    inside = set(body.modules())
    outermost = {name: layers for name, layers in layer_lists(model).items() if layers in inside}
    lists = [(name, layers) for name, layers in outermost.items() if len(layers) == count]
    if len(lists) != 1:
        raise _refused(
            f"{type(model).__name__} has {len(lists)} lists of its {count} layers "
            f"({', '.join(outermost) or 'no lists at all'}), so which to cut is not known"
        )
    return lists[0]


def _renumber(layer: nn.Module, index: int) -> None:
    for module in layer.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = index  # type: ignore[assignment]


def _shorten(config: Any, count: int, kept: Sequence[int]) -> None:
    """Sets the number of layers, and cuts the settings that have one entry for each layer."""
    for key, value in config.to_dict().items():
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(config, key, [value[index] for index in kept])
    config.num_hidden_layers = len(kept)


def _require_as_built_from_config(model: PreTrainedModel) -> None:
    """Raises InvalidSpec where its config would build another model: tensors, or plain settings.

    Compared with one without memory for its tensors.
    """
    try:
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM.from_config
            built: nn.Module = build(model.config, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise _refused(f"{type(model).__name__} cannot be built without them: {error}") from error
    modules = {name: None for one in (model, built) for name, _ in one.named_modules()}
    for name in modules:
        own, other = dict(_settings_of(model, name)), dict(_settings_of(built, name))
        for key in own | other:
            is_now, would_be = own.get(key, "nothing"), other.get(key, "nothing")
            if is_now != would_be:
                raise _refused(
                    f"{type(model).__name__}: {name}.{key} is {is_now}, and would be {would_be} in "
                    "a model of the layers that are kept"
                )


def _settings_of(model: nn.Module, name: str) -> Iterator[tuple[str, Any]]:
    """Yields the class, plain attributes and shapes of tensors of a module; none of one missing."""
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
    """Returns the whole model's logits where all other layers hand on what they were given."""
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
    return InvalidSpec([(_FIELD, f"{why}; leave it out, or take another student.init")])
