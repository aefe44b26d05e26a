"""The other ranks of a tensor-parallel teacher: started, told what to compute, watched, ended.

Rank 0 is the server itself; ranks 1 and up are processes that `follower.py` runs. Rank 0 tells each
the same, through its stdin:

    LOAD, settings as JSON    joins the process group and loads its slices of the model
    TRY, ids                  computes a forward without exchanging anything, to see if it fits
    RUN, ids                  computes a forward together with all ranks

and each answers once, with a line of JSON on its stdout: `Answer`. Between forwards it waits for
the pipe, which takes no processor and no device. If rank 0 dies, the pipe closes, and it ends at
once. If a follower ends for whatever reason, the teacher is lost: nobody else has its slices.

Imports no torch.
"""

import json
import os
import queue
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lectern_common.ranks import end_ranks, how_it_ended, start_rank
from teacher_server.engine.seam import DeviceLost

FOLLOWER_ARGV = (sys.executable, "-P", "-m", "teacher_server.ranks.follower")

LOAD, TRY, RUN = b"L", b"T", b"R"
# What is told, then rows and columns of int64 ids; or bytes of JSON, and 0.
HEADER = struct.Struct("<cQQ")

# Longer than reading a large model's weights from a slow disk takes one rank more than another.
PATIENCE_SECONDS = 1800.0
# From the moment when an exchange broke until the rank that broke it has ended.
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Answer:
    """What a follower says about one thing that it was told.

    `outcome` is "done"; in a TRY, after which it goes on, "memory" if it has too little of that, or
    "error", as any rank would have for these ids; else "failed", and it ends. `text` says why.
    """

    outcome: Literal["done", "memory", "error", "failed"]
    text: str = ""


class Followers:
    """Ranks 1 to count - 1. Made in the server's process; told things by its model thread.

    Args:
        count: number of ranks, rank 0 among them.
        on_lost: called once, from any thread, when the teacher is lost.
        command: starts a follower.

    Attributes:
        lost: why the teacher is lost, for people; None while it is not.
    """

    def __init__(
        self,
        count: int,
        on_lost: Callable[[], None] = lambda: None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.count = count
        self.lost: str | None = None
        self._on_lost = on_lost
        self._command = tuple(command or FOLLOWER_ARGV)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._answers: queue.Queue[tuple[int, Answer] | None] = queue.Queue()
        self._is_lost = threading.Event()
        self._ending = False
        self._lock = threading.Lock()
        self._failures: dict[int, str] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> str:
        """Starts them; returns the file through which all ranks meet."""
        self._folder = tempfile.TemporaryDirectory(prefix="lectern-ranks-")
        rendezvous = str(Path(self._folder.name) / "rendezvous")
        for rank in range(1, self.count):
            process = start_rank(
                self._command,
                os.environ,
                rank=rank,
                count=self.count,
                rendezvous=rendezvous,
                stdout=subprocess.PIPE,
            )
            self._processes.append(process)
            threading.Thread(
                target=self._listen, args=(rank, process), daemon=True, name=f"rank-{rank}"
            ).start()
        return rendezvous

    def load(self, settings: Mapping[str, Any]) -> None:
        """Tells all to load a model: see follower.Settings. Raises DeviceLost."""
        told = json.dumps(settings).encode()
        self._tell(HEADER.pack(LOAD, len(told), 0) + told)

    def forward(self, kind: bytes, ids_BS: npt.NDArray[np.int64]) -> None:
        """Tells all to TRY or RUN a forward. Raises DeviceLost."""
        rows, columns = ids_BS.shape
        self._tell(HEADER.pack(kind, rows, columns) + ids_BS.astype("<i8").tobytes())

    def answers(self, patience_seconds: float = PATIENCE_SECONDS) -> dict[int, Answer]:
        """Returns rank -> what it says of the last thing that all were told.

        Raises:
            DeviceLost: one has ended, or says nothing for `patience_seconds`.
        """
        found: dict[int, Answer] = {}
        while len(found) < len(self._processes):
            try:
                heard = self._answers.get(timeout=patience_seconds)
            except queue.Empty:
                silent = min(set(range(1, self.count)) - found.keys())
                self._lose(f"rank {silent} of {self.count} does not answer")
                heard = None
            if heard is None:
                raise DeviceLost(self.lost)
            rank, answer = heard
            found[rank] = answer
        return found

    def why_lost(self, otherwise: str) -> str:
        """Returns why an exchange with other ranks broke, once that is known.

        Args:
            otherwise: the reason if all of them still live; the teacher is then lost by it.
        """
        if not self._is_lost.wait(_GRACE_SECONDS):
            self._lose(otherwise)
        return self.lost or otherwise

    def end(self) -> None:
        """Kills those that live, and waits for them. Safe to call twice."""
        self._ending = True
        end_ranks(self._processes)
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def pids(self) -> list[int]:
        """The processes of ranks 1 and up, in order."""
        return [process.pid for process in self._processes]

    def _tell(self, told: bytes) -> None:
        if self.lost is not None:
            raise DeviceLost(self.lost)
        for process in self._processes:
            try:
                if process.stdin is not None:
                    process.stdin.write(told)
                    process.stdin.flush()
            except (BrokenPipeError, ValueError):  # it has ended; its listener says how
                raise DeviceLost(self.why_lost("a rank does not listen")) from None

    def _listen(self, rank: int, process: "subprocess.Popen[bytes]") -> None:
        """Hears what a follower answers, until it has ended. Runs in a thread of its own."""
        if process.stdout is None:
            return
        for line in process.stdout:
            answer = Answer(**json.loads(line))
            if answer.outcome == "failed":
                self._failures[rank] = answer.text
            self._answers.put((rank, answer))
        code = process.wait()
        how = how_it_ended(rank, self.count, code)
        said = self._failures.get(rank)
        self._lose(how if said is None else f"rank {rank} of {self.count} failed: {said}")

    def _lose(self, how: str) -> None:
        with self._lock:
            if self._ending or self.lost is not None:
                return
            self.lost = how
        self._on_lost()
        self._is_lost.set()
        self._answers.put(None)
