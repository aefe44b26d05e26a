"""Tokenises pieces in several processes, and restarts the ones that die.

Processes rather than threads: the tokenizers library runs in parallel threads, but reading, hashing
and converting its results to arrays do not (4 % of the work for texts), and neither does rendering
chats. `make bench ARGS=data` has the figures.

If a process dies, it is restarted and its piece retried; after a few tries of the same piece the
whole call fails. The death of a process is always noticed, because it closes the pipe that its
answers come through. A process that is alive but silent (its documents are large, it is stopped, or
its disk is) is waited for; every minute a sentence says what it works on.
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
from lectern_common.words import duration
from lectern_data.tokens.encoder import Encoder, EncoderFiles
from lectern_data.tokens.piece_worker import greeting, order
from lectern_data.tokens.pieces import Piece, is_done, write_piece

_TRIES = 3
_SILENCE_SECONDS = 60.0

Said = Piece | str | LecternError


def default_workers() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tokenize(
    pieces: list[Piece],
    files: EncoderFiles,
    folder: Path,
    workers: int,
    on_done: Callable[[Piece], None] = lambda piece: None,
    on_event: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Writes the file of every piece into `folder`, unless it exists.

    Args:
        pieces: in any order; equal names are done once.
        files: what the encoder is built from.
        folder: exists.
        workers: number of processes; 1 uses this one.
        on_done: called with each finished piece; if it raises, the work ends.
        on_event: called with one sentence about each process that died, and, after each minute in
            which no piece was finished, about the documents that are being tokenised.

    Raises:
        LecternError: a document changed, or the same piece killed its process three times.
        OSError: no space in the folder.
    """
    todo = dict[str, Piece]()
    for piece in pieces:
        if is_done(folder, piece):
            on_done(piece)
        else:
            todo[piece.name] = piece
    sizes = [sum(entry.text_bytes for entry in piece.documents) for piece in todo.values()]
    # With less than a piece for each, starting a process costs more than it saves.
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
    processes: list[_Worker] = []
    left, silent_seconds = len(todo), 0.0
    try:
        for _ in range(workers):
            processes.append(_Worker(greeting(files, folder), waiting, said))
        while left:
            try:
                news = said.get(timeout=_SILENCE_SECONDS)
            except queue.Empty:
                silent_seconds += _SILENCE_SECONDS
                awaited = "; ".join(
                    process.described() for process in processes if process.is_at_work
                )
                on_event(f"still tokenising, {duration(silent_seconds / 3600)} so far: {awaited}")
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
        for process in processes:
            process.end()


class _Worker:
    """A process, and the thread that sends it pieces and receives its answers."""

    def __init__(
        self, greeting: str, waiting: "queue.SimpleQueue[Piece]", said: "queue.SimpleQueue[Said]"
    ) -> None:
        self._greeting = greeting
        self._waiting = waiting
        self._said = said
        self._ended = False
        self._piece: Piece | None = None
        self._lock = threading.Lock()
        self._process = self._started()
        self._thread = threading.Thread(target=self._run, daemon=True, name="tokenizing")
        self._thread.start()

    @property
    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def described(self) -> str:
        """Returns what it works on and, if the process is stopped, what to do about it."""
        pid, piece = self._process.pid, self._piece
        work = "the next documents" if piece is None else _named(piece)
        try:
            is_stopped = psutil.Process(pid).status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:  # just ended; its thread will notice
            is_stopped = False
        if not is_stopped:
            return work
        return (
            f"{work}, by process {pid}, which is stopped (kill -CONT {pid} continues it; kill "
            f"-KILL {pid} makes another take its place)"
        )

    def end(self) -> None:
        """Kills the process; a half-written file is hidden and never read."""
        with self._lock:
            self._ended = True
            self._process.kill()
        self._thread.join()
        self._close()

    def _run(self) -> None:
        try:
            while not self._ended:
                self._piece = piece = self._waiting.get_nowait()
                self._make(piece)
                self._said.put(piece)
        except queue.Empty:
            return
        except LecternError as error:
            self._said.put(error)
        except Exception as error:  # the waiting thread must learn of any failure
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
            self._said.put(f"a tokenising process died ({how}) and was restarted")
        raise LecternError(
            f"the process that tokenises {_named(piece)} died {_TRIES} times ({how}). If memory "
            "ran out, lower --workers; finished pieces are kept, so run the same command again to "
            "continue from here"
        )

    def _asked(self, line: str) -> str:
        """Returns the answer, "" if the process ended."""
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
            # One core each: the number of processes is the parallelism.
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        if process.stdin is not None:
            with suppress(OSError):  # it has already ended; the first request notices that
                process.stdin.write(self._greeting)
                process.stdin.flush()
        return process

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # unsent requests to a process that has ended
                    pipe.close()
        self._process.wait()


def _named(piece: Piece) -> str:
    first, last = piece.documents[0].name, piece.documents[-1].name
    return first if first == last else f"{first} to {last}"


def _how_it_ended(process: "subprocess.Popen[str]") -> str:
    status = process.wait()
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
