"""Tensor parallelism by transformers: each rank holds a slice of every large matrix of a model.

The ranks compute each layer together and add up what their slices give, so all of them make every
forward, with the same ids. Which matrix is cut along which dimension is the model's own plan.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig
from transformers.distributed.configuration_utils import DistributedConfig

from lectern_common.errors import Misconfigured

_HEADS = re.compile(r"heads?$")


class UnknownExchange(Exception):
    """A model's ranks exchange something in a way that a rehearsal does not know."""


def sharding_of(count: int) -> DistributedConfig:
    """Returns what makes transformers load one rank's slices of a model, of `count` ranks."""
    return DistributedConfig(tp_size=count, tp_plan="auto")


def require_shardable(folder: Path, count: int) -> None:
    """Raises unless `count` ranks can share the model in a folder. Reads only its config.json.

    Raises:
        Misconfigured: names what does not divide, or says that the architecture has no plan.
    """
    try:
        config: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        ).get_text_config()
    except Exception as error:  # whatever an architecture makes of settings that it cannot use
        reason = " ".join(str(error).split())[:400]
        raise Misconfigured(f"cannot load {folder}: {reason}") from error
    kind = f"a model of type {config.model_type}"
    if not config.base_model_tp_plan:
        raise Misconfigured(
            f"--tensor-parallel {count}: transformers has no plan for sharing {kind} among ranks; "
            "use --device balanced"
        )
    for name, heads in sorted(_head_counts(config.to_dict())):
        if heads % count:
            raise Misconfigured(
                f"--tensor-parallel {count} does not divide the {heads} heads of {name} in the "
                f"model's config; set a number that divides all of them: {_shares(config)}"
            )


def _shares(config: Any) -> str:
    """Returns the numbers of ranks that a model can be shared among, for a message."""
    counts = [heads for _, heads in _head_counts(config.to_dict())]
    fitting = [n for n in range(2, min(counts) + 1) if not any(heads % n for heads in counts)]
    return ", ".join(map(str, fitting)) or "there is none; use --device balanced"


def _head_counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields (name, heads) of each setting that counts heads, once for each layer if it differs."""
    for name, value in config.items():
        if _HEADS.search(name) and ("num" in name or name.startswith("n_")):
            values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
            for one in values:
                if isinstance(one, int) and not isinstance(one, bool) and one > 0:
                    yield name, one


@contextmanager
def rehearsing() -> Iterator[None]:
    """Within the block, this rank computes alone what it would compute with the others.

    Every exchange leaves this rank's own part where the sum of all would be, so results mean
    nothing, but the memory that they take is that of the real computation. A rank that runs out of
    it there leaves no other waiting in the middle of an exchange.

    Raises:
        UnknownExchange: in the block, before anything is exchanged.
    """
    alone: Any = _Alone  # torch gives its base no types
    with alone():
        yield


class _Alone(TorchDispatchMode):
    """Replaces each exchange between ranks by what one rank has."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes again for the slices
        if "c10d" not in func.namespace:
            return func(*args, **(kwargs or {}))
        name = func.name().partition("::")[2]
        if name not in _OF_ONE_RANK:
            raise UnknownExchange(func.name())
        return _OF_ONE_RANK[name](*args)


def _summed_in_place(tensors: list[Tensor], *_: object) -> tuple[list[Tensor], object]:
    from torch._C._distributed_c10d import FakeWork

    return tensors, FakeWork().boxed()


def _gathered(part: Tensor, count: int, *_: object) -> Tensor:
    return torch.cat([part] * count)


def _itself(tensor: Tensor, *_: object) -> Tensor:
    return tensor


_OF_ONE_RANK: dict[str, Any] = {
    "allreduce_": _summed_in_place,
    "all_reduce": lambda tensor, *_: tensor.clone(),
    "all_gather_into_tensor": _gathered,
    "wait_tensor": _itself,
    "_wrap_tensor_autograd": _itself,
}
