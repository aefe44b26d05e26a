"""Two ranks that share a model on the CPU: this process is rank 0, and one child follows it.

`python -m tests.support.tensor_parallel TOKENS` is a follower that runs out of memory in forwards
of more than TOKENS tokens.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lectern_models.body_and_head import BodyAndHead
from lectern_models.loading import load_causal_lm
from lectern_models.model_folder import find_model
from lectern_models.ranks import join_process_group
from teacher_server.engine.transformers import TransformersEngine
from teacher_server.ranks import follower
from teacher_server.ranks.followers import Followers
from teacher_server.ranks.lead import Lead


class TwoRanks:
    """Loads models one after the other, each shared by the two ranks."""

    def __init__(self, command: tuple[str, ...] | None = None) -> None:
        self.followers = Followers(2, command=command)

    def start(self) -> None:
        rendezvous = self.followers.start()
        self._rendezvous: str | None = rendezvous

    def engine(self, folder: Path, mode: str = "independent") -> TransformersEngine:
        """Returns the engine of a model folder, of which this process has half."""
        settings = {"dtype": "auto", "attention": "auto", "device_type": "cpu"}
        self.followers.load({**settings, "folder": str(folder), "threads": torch.get_num_threads()})
        if self._rendezvous is not None:
            join_process_group("cpu", 0, 2, self._rendezvous, 60.0)
            self._rendezvous = None
        model = load_causal_lm(folder, tensor_parallel=2)
        found = find_model(str(folder), None, None, models=None)
        engine = TransformersEngine(found, model, mode, shared=Lead(self.followers))
        assert [answer.outcome for answer in self.followers.answers(60).values()] == ["done"]
        return engine


@contextlib.contextmanager
def two_ranks(*arguments: str) -> Iterator[TwoRanks]:
    """Yields the ranks, and ends the child; with arguments, it is this module's."""
    words = (sys.executable, "-m", "tests.support.tensor_parallel", *arguments)
    ranks = TwoRanks(words if arguments else None)
    try:
        ranks.start()
        yield ranks
    finally:
        ranks.followers.end()
        if dist.is_initialized():
            dist.destroy_process_group()


def limit_memory(tokens: int) -> None:
    """Makes each forward of this process over more tokens run out of memory."""
    hidden_states = BodyAndHead.hidden_states

    def limited(self: BodyAndHead, ids_BS: torch.Tensor, *rest: Any) -> torch.Tensor:
        if ids_BS.numel() > tokens:
            raise torch.OutOfMemoryError("no memory is left")
        return hidden_states(self, ids_BS, *rest)

    BodyAndHead.hidden_states = limited  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    limit_memory(int(sys.argv[1]))
    os._exit(follower.main())
