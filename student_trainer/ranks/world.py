"""The ranks of a run, one process per device, and what they exchange; usually only one.

Ranks exchange sums and short texts here; FSDP exchanges parameters and gradients (sharding.py).
Texts travel as JSON of a fixed size, never pickled.

Every rank has to take part in every exchange: if one left, because of a stop or an error of its
own, the others would wait forever. So whatever may end a rank happens within `together()`: at its
end all ranks learn of it, and all leave at the same place.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lectern_common.errors import Incompatible, LecternError, Misconfigured, error_of
from lectern_common.ranks import RENDEZVOUS
from lectern_models.ranks import join_process_group
from student_trainer.stop import StopRequested

# Longer than any wait for a teacher (its outage budget is added). A lost rank is noticed long
# before, through its closed connection or by its supervisor.
_PATIENCE_SECONDS = 900.0
_WORDS_BYTES = 2048


class Ranks:
    """One rank's view of all ranks. `Ranks()` is a run in one process; it exchanges nothing.

    Attributes:
        rank: 0 <= rank < size; rank 0 writes the run's folder.
        size: number of ranks.
        mesh: of all devices; None in one process.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh
        self.rank = 0 if mesh is None else dist.get_rank()
        self.size = 1 if mesh is None else dist.get_world_size()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def totals(self, *values: float) -> list[float]:
        """Returns the sum of each value over all ranks, in float64; the same on every rank."""
        if self.mesh is None:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def sums_of(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the sum of equally long arrays over all ranks; the same on every rank."""
        if self.mesh is None:
            return values
        sums = torch.from_numpy(values.copy())
        dist.all_reduce(sums)
        return np.asarray(sums.numpy())

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends all ranks if the body ends one: errors before stops, the lowest rank's error first.

        The body must not exchange anything. Every rank raises an error of the same reason and
        message as the first, or StopRequested.
        """
        if self.mesh is None:
            yield
            return
        problem: LecternError | StopRequested | None = None
        try:
            yield
        except (LecternError, StopRequested) as raised:
            problem = raised
        said = [json.loads(words) for words in self._gathered(_words(problem, self.rank))]
        error = next((words for words in said if words.get("reason")), None)
        if error is not None:
            if isinstance(problem, LecternError) and error["rank"] == self.rank:
                raise problem
            raise error_of(error["reason"], f"{error['message']} (rank {error['rank']})")
        if any(words.get("stop") for words in said):
            raise StopRequested

    def require_same(self, **facts: str | None) -> None:
        """Raises unless every rank gives the same facts (a hash, a name).

        Raises:
            Incompatible: on all ranks; names the first fact that differs, and two ranks.
        """
        if self.mesh is None:
            return
        given = [json.loads(words) for words in self._gathered(json.dumps(facts))]
        for name in facts:
            for rank, theirs in enumerate(given):
                if theirs[name] != given[0][name]:
                    raise Incompatible(
                        f"rank {rank} has {name} {theirs[name]}, but rank 0 has {given[0][name]}; "
                        "every rank needs the same"
                    )

    def from_first(self, values: Sequence[int]) -> list[int]:
        """Returns rank 0's values, each below 2 ** 53, on every rank; all pass equally many."""
        own = values if self.is_first else [0] * len(values)
        return [round(value) for value in self.totals(*own)]

    def _gathered(self, words: str) -> list[str]:
        """Returns the text of every rank, in order of ranks."""
        data = words.encode()
        if len(data) > _WORDS_BYTES:
            raise ValueError(f"{len(data)} bytes exceed the {_WORDS_BYTES} that ranks exchange")
        own = torch.tensor(list(data.ljust(_WORDS_BYTES)), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        return [bytes(one.tolist()).decode() for one in every]


def join_ranks(device: torch.device, count: int, patience_seconds: float) -> Ranks:
    """Joins the ranks that the environment names, and returns this process's view of them.

    Args:
        device: of this rank.
        count: number of ranks in the spec.
        patience_seconds: how long a rank may wait for its teacher.

    Raises:
        Misconfigured: more or fewer ranks were started.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or size is None:
        return Ranks()
    if int(size) != count:
        raise Misconfigured(
            f"device.count is {count}, but {size} ranks were started; set device.count {size}, or "
            f"start {count}"
        )
    file = os.environ.get(RENDEZVOUS)
    join_process_group(
        device.type, int(rank), int(size), file, patience_seconds + _PATIENCE_SECONDS
    )
    return Ranks(init_device_mesh(device.type, (int(size),)))


def leave_ranks(ranks: Ranks) -> None:
    """Closes the process group that `join_ranks` opened."""
    if ranks.mesh is not None:
        dist.destroy_process_group()


def local_rank() -> int:
    """Returns the index of this process's device on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_ranks() -> int:
    """Returns how many ranks this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _words(problem: LecternError | StopRequested | None, rank: int) -> str:
    if problem is None:
        return "{}"
    if isinstance(problem, StopRequested):
        return json.dumps({"stop": True})
    message = str(problem)
    while True:
        words = json.dumps({"rank": rank, "reason": problem.reason, "message": message})
        if len(words.encode()) <= _WORDS_BYTES:
            return words
        message = message[: len(message) // 2] + " ..."
