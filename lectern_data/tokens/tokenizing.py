"""Pieces, tokenised by several processes.

Processes rather than threads: the tokenizers library lets threads run side by side, but reading,
hashing and the way from its results to arrays do not, 4 % of the work for texts, and neither does
the rendering of chats. `make bench ARGS=data` has the figures.

A process that ends is started again and its piece tried anew; the same piece fails the whole after
a few times. Nothing waits for a process without noticing its end: what it would say comes through a
pipe that its end closes. One that lives and says nothing (it is stopped, or its disk is) is waited
for, and named every minute.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from lectern_common.errors import LecternError, error_of
from lectern_data.tokens.encoder import Encoder, EncoderFiles
from lectern_data.tokens.piece_worker import greeting, order
from lectern_data.tokens.pieces import Piece, is_done, write_piece

_TRIES = 3
_SILENCE_SECONDS = 60.0

Said = Piece | str | LecternError


def default_workers() -> int:
    """Returns the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenize(
    pieces: list[Piece],
    files: EncoderFiles,
    folder: Path,
    workers: int,
    on_done: Callable[[Piece], None] = lambda piece: None,
    on_event: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes the file of every piece into `folder`; those that are there stay.

    Args:
        pieces: in any order; equal names are done once.
        files: what turns documents into ids.
        folder: exists.
        workers: processes; 1 works in this one.
        on_done: told of each piece, in the order of their ends; what it raises ends the work.
        on_event: told in a sentence of each process that ended, and of those waited for when
            nothing came for a minute.

    Raises:
        LecternError: a document changed, or the same piece ended a process three times.
        OSError: no room in the folder.
    """
    todo = dict[str, Piece]()
    for piece in pieces:
        if is_done(folder, piece):
            on_done(piece)
        else:
            todo[piece.name] = piece
    sizes = [sum(entry.text_bytes for entry in piece.documents) for piece in todo.values()]
    # Starting a process costs more than it brings where there is less than a piece for each.
    workers = min(workers, sum(sizes) // max([*sizes, 1]))
    if workers > 1:
        _in_processes(list(todo.values()), files, folder, workers, on_done, on_event)
    elif todo:
        encoder = Encoder(files)
        for piece in todo.values():
            write_piece(folder, piece.name, encoder.encode(piece.documents))
            on_done(piece)


def _in_processes(
    todo: list[Piece],
    files: EncoderFiles,
    folder: Path,
    workers: int,
    on_done: Callable[[Piece], None],
    on_event: Callable[[str], None],
) -> None:
    waiting: queue.SimpleQueue[Piece] = queue.SimpleQueue()
    said: queue.SimpleQueue[Said] = queue.SimpleQueue()
    for piece in todo:
        waiting.put(piece)
    hands: list[_Worker] = []
    left, silent_seconds = len(todo), 0.0
    try:
        for _ in range(workers):
            hands.append(_Worker(greeting(files, folder), waiting, said))
        while left:
            try:
                news = said.get(timeout=_SILENCE_SECONDS)
            except queue.Empty:
                silent_seconds += _SILENCE_SECONDS
                awaited = "; ".join(hand.described() for hand in hands if hand.is_at_work)
                on_event(f"nothing came back for {silent_seconds:.0f} s from {awaited}")
                continue
            silent_seconds = 0.0
            if isinstance(news, LecternError):
                raise news
            if isinstance(news, str):
                on_event(news)
            else:
                left -= 1
                on_done(news)
    finally:
        for hand in hands:
            hand.end()


class _Worker:
    """A process, and the thread that gives it pieces and hears what comes of them."""

    def __init__(
        self, greeting: str, waiting: "queue.SimpleQueue[Piece]", said: "queue.SimpleQueue[Said]"
    ) -> None:
        self._greeting = greeting
        self._waiting = waiting
        self._said = said
        self._ended = False
        self._lock = threading.Lock()
        self._process = self._started()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tokenizing")
        self._thread.start()

    @property
    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def described(self) -> str:
        """Returns which process it is, how it is, and what to do where it was stopped."""
        pid = self._process.pid
        try:
            is_stopped = psutil.Process(pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:  # ended this moment; its end is on the way
            is_stopped = False
        if not is_stopped:
            return f"process {pid}"
        return (
            f"process {pid}, which was stopped (kill -CONT {pid} lets it go on; after kill -KILL "
            f"{pid} another takes its place)"
        )

    def end(self) -> None:
        """Ends the process at once; what it was writing is hidden and never read."""
        with self._lock:
            self._ended = True
            self._process.kill()
        self._thread.join()
        self._close()

    def _run(self) -> None:
        try:
            while not self._ended:
                piece = self._waiting.get_nowait()
                self._make(piece)
                self._said.put(piece)
        except queue.Empty:
            return
        except LecternError as error:
            self._said.put(error)
        except Exception as error:  # whatever it is, whoever waits must hear of it
            self._said.put(LecternError(f"{type(error).__name__}: {error}"))

    def _make(self, piece: Piece) -> None:
        for _ in range(_TRIES):
            answer = self._asked(order(piece))
            if answer:
                said = json.loads(answer)
                if "reason" in said:
                    raise error_of(said["reason"], said["message"])
                return
            with self._lock:
                if self._ended:
                    return
                how = _how_it_ended(self._process)
                self._close()
                self._process = self._started()
            self._said.put(f"a process that was tokenising ended ({how}); started again")
        first, last = piece.documents[0].name, piece.documents[-1].name
        raise LecternError(
            f"a process that tokenises {first} to {last} ended {_TRIES} times ({how}). Out of "
            "memory? Lower --workers; what is done is kept, so the same command goes on from here"
        )

    def _asked(self, line: str) -> str:
        """Returns the answer, "" where the process ended."""
        process = self._process
        if process.stdin is None or process.stdout is None:
            return ""
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except (BrokenPipeError, OSError):
            return ""
        answer = process.stdout.readline()
        return answer if answer.endswith("\n") else ""

    def _started(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lectern_data.tokens.piece_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            # One core each: there are as many processes as are wanted.
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        if process.stdin is not None:
            with suppress(OSError):  # it has ended already, which whoever asks it notices
                process.stdin.write(self._greeting)
                process.stdin.flush()
        return process

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was still to be said to a process that is gone
                    pipe.close()
        self._process.wait()


def _how_it_ended(process: "subprocess.Popen[str]") -> str:
    status = process.wait()
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
