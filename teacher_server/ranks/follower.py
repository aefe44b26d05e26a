"""`python -m teacher_server.ranks.follower`: one of the ranks above 0 of a tensor-parallel teacher.

It does what rank 0 tells it (followers.py), in the same order as rank 0 does it, and serves nobody.
Exit status: RANK_LOST if it cannot go on, after it has said why.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import transformers
from torch import Tensor

from lectern_common.errors import LecternError
from lectern_common.logs import configure_logs
from lectern_common.ranks import RANK_LOST, RENDEZVOUS, STDIN
from lectern_models.body_and_head import BodyAndHead, split_or_why
from lectern_models.loading import load_causal_lm
from lectern_models.ranks import join_process_group
from lectern_models.tensor_parallel import rehearsing
from teacher_server.engine.transformers import ran_out_of_memory
from teacher_server.ranks.followers import HEADER, LOAD, PATIENCE_SECONDS, TRY, Answer


@dataclass(frozen=True)
class Settings:
    """How a rank loads its part of a model.

    Attributes:
        folder: the model folder, as rank 0 found it.
        dtype, attention: see EngineSettings.
        device_type: "cpu" or "cuda".
        threads: of rank 0, so that all have as many.
    """

    folder: str
    dtype: str
    attention: str
    device_type: str
    threads: int


class Rank:
    """This process's part: its slices of a model, once loaded, and what it does with them."""

    def __init__(self) -> None:
        self._rank, self._count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._joined = False
        self._parts: BodyAndHead | None = None
        self._device_type = "cpu"

    def load(self, settings: Settings) -> None:
        """Loads its slices, and takes part in what TransformersEngine does with them at first."""
        self._device_type = settings.device_type
        torch.set_num_threads(settings.threads)
        if settings.device_type == "cuda":
            torch.cuda.set_device(self._rank)
        if not self._joined:
            join_process_group(
                settings.device_type,
                self._rank,
                self._count,
                os.environ[RENDEZVOUS],
                PATIENCE_SECONDS,
            )
            self._joined = True
        model = load_causal_lm(
            Path(settings.folder),
            settings.dtype,
            settings.device_type,
            attention=settings.attention,
            tensor_parallel=self._count,
        ).requires_grad_(False)
        self._parts, not_split = split_or_why(model)
        if self._parts is None:
            raise RuntimeError(not_split)
        self._parts.whole_head()

    def rehearse(self, ids_BS: Tensor) -> None:
        """Computes a forward alone. Raises whatever tells that it ran out of memory."""
        with rehearsing():
            self.forward(ids_BS)

    def forward(self, ids_BS: Tensor) -> None:
        """Computes a forward with the others, and drops what comes out; rank 0 has the same."""
        if self._parts is None:
            raise RuntimeError("no model is loaded")
        device = "cpu" if self._device_type == "cpu" else f"cuda:{self._rank}"
        with torch.inference_mode():
            self._parts.hidden_states(ids_BS.to(device))


def follow(rank: Rank, told: Callable[[], tuple[bytes, Any]], say: Callable[[Answer], None]) -> int:
    """Does what it is told until something fails; returns the exit status."""
    while True:
        kind, what = told()
        works: dict[bytes, Callable[[Any], None]] = {LOAD: rank.load, TRY: rank.rehearse}
        work = works.get(kind, rank.forward)
        answer = _answer_to(work, what, is_trial=kind == TRY)
        say(answer)
        if answer.outcome == "failed":
            return RANK_LOST
        if answer.outcome == "memory" and torch.cuda.is_available():
            torch.cuda.empty_cache()


def _answer_to(work: Callable[[Any], None], what: Any, *, is_trial: bool) -> Answer:
    try:
        work(what)
    except LecternError as error:
        return Answer("failed", str(error))
    except Exception as error:  # whatever the model or the device makes of it
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        if not is_trial or isinstance(error, torch.AcceleratorError):
            return Answer("failed", text)
        return Answer("memory") if ran_out_of_memory(error) else Answer("error", text)
    return Answer("done")


def _hearing(pipe: BinaryIO) -> Callable[[], tuple[bytes, Any]]:
    """Returns what waits for the next thing told. Ends the process when the pipe closes.

    It is read in a thread, so that rank 0's end is noticed in the middle of an exchange too.
    """
    heard: queue.Queue[tuple[bytes, Any]] = queue.Queue()

    def listen() -> None:
        while len(header := pipe.read(HEADER.size)) == HEADER.size:
            kind, rows, columns = HEADER.unpack(header)
            if kind == LOAD:
                heard.put((kind, Settings(**json.loads(pipe.read(rows)))))
                continue
            ids = np.frombuffer(bytearray(pipe.read(8 * rows * columns)), "<i8")
            heard.put((kind, torch.from_numpy(ids.reshape(rows, columns))))
        os._exit(RANK_LOST)

    threading.Thread(target=listen, daemon=True, name="rank-0").start()
    return heard.get


def main() -> int:
    """Follows rank 0 until it ends; returns the exit status."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what any library prints is no answer
    configure_logs("warning")
    transformers.utils.logging.disable_progress_bar()

    def say(answer: Answer) -> None:
        answers.write(json.dumps(asdict(answer)) + "\n")
        answers.flush()

    return follow(Rank(), _hearing(os.fdopen(STDIN, "rb", closefd=False)), say)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Not sys.exit: an exchange that is under way would keep the process.
    os._exit(status)
