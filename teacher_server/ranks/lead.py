"""Rank 0 of a tensor-parallel teacher: loads the model together with its followers, and leads them.

A forward is tried before it is made, if it is larger than any that was made: each rank computes it
alone, exchanging nothing. So if some rank has not enough memory, all of them learn of it while none
waits in an exchange, and the request is split or refused as for any teacher. Whatever goes wrong
later, in the middle of an exchange, ends the server: ranks that differ in what they exchanged would
add up slices of different forwards.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from lectern_common.errors import Misconfigured
from lectern_common.logs import get_logger
from lectern_common.ranks import loopback_only, share_of_cores
from lectern_common.threads import threads_of_environment
from lectern_models.body_and_head import BodyAndHead
from lectern_models.loading import load_causal_lm
from lectern_models.model_folder import find_model
from lectern_models.placement import resolved_device
from lectern_models.ranks import join_process_group
from lectern_models.tensor_parallel import UnknownExchange, rehearsing, require_shardable
from teacher_server.engine.seam import DeviceLost
from teacher_server.engine.transformers import (
    EngineSettings,
    TransformersEngine,
    ran_out_of_memory,
    require_fitting,
)
from teacher_server.ranks.followers import PATIENCE_SECONDS, RUN, TRY, Followers

log = get_logger()


def load_over_ranks(
    name: str,
    settings: EngineSettings,
    followers: Followers,
    *,
    revision: str | None = None,
    threads: int | None = None,
    models: Path | None = None,
) -> TransformersEngine:
    """Returns the engine of a model that this process shares with followers, which it starts.

    Args:
        name: see find_model; `revision` and `models` too.
        settings: unquantised, not compiled, and on "auto", "cpu" or "cuda".
        followers: not started.
        threads: CPU threads of each rank; None gives each its share of the cores.

    Raises:
        NotFound, CorruptData, Misconfigured: as engine/transformers.load.
        Misconfigured: the model or this machine's devices cannot be shared by so many; or a
            follower ended, with how.
    """
    count = followers.count
    device_type = _device_type(settings.device, count)
    require_fitting(settings, device_type)
    folder = find_model(name, revision, None, models=models)
    if folder.gguf_file:
        raise Misconfigured(
            f"--tensor-parallel {count} is not for a GGUF file; serve safetensors, or leave it out"
        )
    require_shardable(folder.path, count)
    threads = threads or threads_of_environment() or share_of_cores(count)
    torch.set_num_threads(threads)
    os.environ.update(loopback_only())
    rendezvous = followers.start()
    try:
        followers.load(
            {
                "folder": str(folder.path.absolute()),
                "dtype": settings.dtype,
                "attention": settings.attention,
                "device_type": device_type,
                "threads": threads,
            }
        )
        join_process_group(device_type, 0, count, rendezvous, PATIENCE_SECONDS)
        lead = Lead(followers)
        model = load_causal_lm(
            folder.path,
            settings.dtype,
            device_type,
            attention=settings.attention,
            tensor_parallel=count,
        )
        engine = TransformersEngine(folder, model, settings.mode, shared=lead)
        followers.answers()
    except DeviceLost as error:
        raise Misconfigured(f"the model cannot be loaded: {error}") from None
    except RuntimeError as error:  # an exchange that broke
        why = followers.why_lost(" ".join(str(error).split())[:400])
        raise Misconfigured(f"the model cannot be loaded: {why}") from error
    return engine


def _device_type(device: str, count: int) -> str:
    """Returns "cpu" or "cuda". Raises Misconfigured unless each rank gets a device of the kind."""
    device_type = resolved_device(device)
    if not torch.cuda.is_available():
        return device_type
    if device_type == "cpu":
        raise Misconfigured(
            f"--tensor-parallel {count} --device cpu: transformers takes this machine's GPUs; set "
            "CUDA_VISIBLE_DEVICES to an empty text to hide them, or leave --device out"
        )
    if torch.cuda.device_count() < count:
        raise Misconfigured(
            f"--tensor-parallel {count} needs a GPU for each rank, but torch sees "
            f"{torch.cuda.device_count()}; set a smaller number"
        )
    return device_type


class Lead:
    """Makes each forward together with the followers: see SharedForwards."""

    def __init__(self, followers: Followers) -> None:
        self._followers = followers
        self._fitted = Fitted()

    @property
    def count(self) -> int:
        return self._followers.count

    def hidden_states(self, parts: BodyAndHead, ids_BS: Tensor) -> Tensor:
        """Returns the hidden states, computed by all ranks; see SharedForwards."""
        on_device = ids_BS.to(parts.projection.weight.device)
        shape = (ids_BS.shape[0], ids_BS.shape[1])
        if not self._fitted.covers(shape):
            self._rehearse(parts, ids_BS, on_device)
            self._fitted.add(shape)
        self._followers.forward(RUN, ids_BS.numpy())
        try:
            hidden_BSD = parts.hidden_states(on_device)
        except Exception as error:  # of this rank alone, or of an exchange that another broke
            reason = f"rank 0 of {self.count} failed: {type(error).__name__}: {error}"
            raise DeviceLost(self._followers.why_lost(reason[:400])) from error
        self._followers.answers()
        return hidden_BSD

    def _rehearse(self, parts: BodyAndHead, ids_BS: Tensor, on_device: Tensor) -> None:
        """Computes a forward on each rank by itself. Raises as hidden_states, or as the model."""
        self._followers.forward(TRY, ids_BS.numpy())
        problem: Exception | None = None
        lacking: list[int] = []
        try:
            with rehearsing():
                parts.hidden_states(on_device)
        except UnknownExchange as error:
            problem = Misconfigured(
                f"--tensor-parallel {self.count}: this model's ranks exchange something by "
                f"{error}, which Lectern does not know; use --device balanced"
            )
        except Exception as error:
            if ran_out_of_memory(error):
                lacking.append(0)
            else:
                problem = error  # as every rank has it
        for rank, answer in self._followers.answers().items():
            if answer.outcome == "memory":
                lacking.append(rank)
            elif answer.outcome == "error" and problem is None:
                problem = RuntimeError(f"rank {rank} of {self.count}: {answer.text}")
        if problem is not None:
            raise problem
        if lacking:
            log.warning("out of memory", ranks=lacking, sequences=len(ids_BS))
            raise torch.OutOfMemoryError(f"rank {lacking[0]} has not enough memory")


class Fitted:
    """Batch shapes that have fitted into memory."""

    def __init__(self) -> None:
        self._shapes: list[tuple[int, int]] = []

    def covers(self, shape: tuple[int, int]) -> bool:
        """Returns whether a shape takes no more memory than one that has fitted.

        Args:
            shape: sequences, and tokens of each. Memory may grow with the tokens, and with the
                square of a sequence's.
        """
        rows, length = shape
        return any(
            length <= one and rows * length <= many * one and rows * length**2 <= many * one**2
            for many, one in self._shapes
        )

    def add(self, shape: tuple[int, int]) -> None:
        """Records a shape that has fitted."""
        self._shapes = [one for one in self._shapes if not Fitted._within(one, shape)]
        self._shapes.append(shape)

    @staticmethod
    def _within(shape: tuple[int, int], larger: tuple[int, int]) -> bool:
        one = Fitted()
        one._shapes = [larger]
        return one.covers(shape)
