"""A pipelined step against the slower of student and teacher, each on its own core.

    student  the trainer's loop with the answers in memory
    teacher  the server's answers to the same requests, as far ahead, without training
    both     the trainer's loop asking the server, four steps ahead
    far      the same through a proxy that adds 50 ms per round trip

If the teacher is fully hidden, both / max(student, teacher) is 1, on two cores that do not slow
each other down. On a shared machine they do, so the figures with a goal are against the least that
these two allow (see scaling.py). One thread each; the server is bound to one core, the trainer to
another. Random weights, `hidden`, alpha 0, T = 1.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.scaling import against_allowed, two_core_scaling
from benchmarks.servers import connected, far_away, on_cpus, served, write_model
from benchmarks.trainer.loops import RandomBatches, train_noted
from benchmarks.trainer.whole_run import model_config, write_teacher
from lectern_common.logs import configure_logs
from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch
from student_trainer.run.parts import Teaching
from student_trainer.stop import Stop
from student_trainer.student.forward import ask
from student_trainer.student.student import CausalStudent
from student_trainer.targets import TeacherTargets
from student_trainer.teacher.prefetch import Prefetch
from student_trainer.teacher.remote import RemoteTeacher

VOCAB_SIZE, SEQUENCES, SEQ_LEN = 4_096, 8, 128
PREFETCH_STEPS, LATENCY_SECONDS = 4, 0.05
WARM_UP_STEPS, STEPS = 3, 10
HIDDEN = Representation("hidden")
# (hidden size, layers, heads, intermediate size) of teacher and student.
PAIRS = {
    "about equal": ((256, 8, 4, 704), (128, 3, 4, 352)),
    "the student is larger": ((128, 3, 4, 352), (192, 4, 4, 512)),
}


def measure(pairs: int = 5) -> Iterator[dict[str, Any]]:
    """Yields one row per pair of models, measured in a process bound to one core."""
    scaling = two_core_scaling()
    if scaling is None:
        yield {"figure": "none", "reason": "it needs two cores"}
        return
    argv = [sys.executable, "-m", "benchmarks.trainer.pipelined", str(pairs), str(scaling)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            yield json.loads(line)
    if process.returncode:
        raise RuntimeError("the measuring process failed")


@dataclass(frozen=True)
class ReadyTeacher:
    """Returns answers scored in advance, looked up by their tokens."""

    answers: dict[bytes, TeacherTargets]

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """See TargetsProvider."""
        return self.answers[np.concatenate(sequences).tobytes()]


def _measure_all(pairs: int, scaling: float) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    configure_logs("warning")
    disable_progress_bar()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    for name, (teacher_shape, student_shape) in PAIRS.items():
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            folder = Path(scratch)
            teacher = write_teacher(folder / "teacher", model_config(VOCAB_SIZE, *teacher_shape))
            student = write_model(folder / "student", model_config(VOCAB_SIZE, *student_shape), 2)
            with on_cpus(cores[1:2]):  # Each turn scores the same tokens: no cache.
                server = stack.enter_context(served(teacher, folder, "--cache-bytes", "0"))
            with on_cpus(cores):
                proxy = stack.enter_context(far_away(server.address, LATENCY_SECONDS))
            near = stack.enter_context(connected(server.address, VOCAB_SIZE, folder / "cache"))
            far = stack.enter_context(connected(proxy, VOCAB_SIZE, folder / "cache"))
            turns = _turns(student, near, far, pairs)
            yield {"pair": name, **_figures(turns, scaling), "pairs": pairs}


Turn = dict[str, float]


def _turns(student: Path, near: RemoteTeacher, far: RemoteTeacher, pairs: int) -> list[Turn]:
    """Returns the seconds of a step each way, turn by turn; a first turn warms up."""
    batches = RandomBatches(VOCAB_SIZE, SEQUENCES, SEQ_LEN)
    ready = ReadyTeacher(
        {
            _key(batch): ask(near, batch, HIDDEN, 1.0)
            for batch in map(batches.batch_at, range(WARM_UP_STEPS + STEPS))
        }
    )
    ways: dict[str, Callable[[], float]] = {
        "student": lambda: _step_seconds(student, batches, Teaching(ready, HIDDEN)),
        "teacher": lambda: _answer_seconds(batches, near),
        "both": lambda: _step_seconds(student, batches, Teaching(near, HIDDEN, PREFETCH_STEPS)),
        "far": lambda: _step_seconds(student, batches, Teaching(far, HIDDEN, PREFETCH_STEPS)),
    }
    return [{way: work() for way, work in ways.items()} for _ in range(pairs + 1)][1:]


def _figures(turns: list[Turn], scaling: float) -> dict[str, Any]:
    def median(figure: Callable[[Turn], float]) -> float:
        return statistics.median(figure(turn) for turn in turns)

    def larger(turn: Turn) -> float:
        return max(turn["student"], turn["teacher"])

    def allowed(turn: Turn, way: str) -> float:
        return against_allowed(turn[way], turn["student"], turn["teacher"], scaling)

    return {
        "student_step_seconds": median(lambda turn: turn["student"]),
        "teacher_step_seconds": median(lambda turn: turn["teacher"]),
        "step_seconds": median(lambda turn: turn["both"]),
        "far_step_seconds": median(lambda turn: turn["far"]),
        "against_larger": median(lambda turn: turn["both"] / larger(turn)),
        "far_against_larger": median(lambda turn: turn["far"] / larger(turn)),
        "against_allowed": median(lambda turn: allowed(turn, "both")),
        "far_against_allowed": median(lambda turn: allowed(turn, "far")),
        "goals": {"against_allowed": "<= 1.05", "far_against_allowed": "<= 1.10"},
    }


def _step_seconds(student: Path, batches: RandomBatches, teaching: Teaching) -> float:
    trained = CausalStudent.from_pretrained(student, torch.device("cpu"))
    notes = train_noted(trained, batches, teaching, WARM_UP_STEPS + STEPS)
    return notes.seconds_after(WARM_UP_STEPS) / STEPS


def _answer_seconds(batches: RandomBatches, teacher: RemoteTeacher) -> float:
    """Returns the seconds per answer with prefetching."""
    ends = []
    with Prefetch(
        batches,
        lambda batch, _: ask(teacher, batch, HIDDEN, 1.0),
        micro_batch_sequences=SEQUENCES,
        prefetch_steps=PREFETCH_STEPS,
        end=WARM_UP_STEPS + STEPS,
        stop=Stop(),
    ) as prefetch:
        for step in range(WARM_UP_STEPS + STEPS):
            for part in prefetch.take(step):
                if part.answer is not None:
                    part.answer()
            ends.append(time.perf_counter())
    return (ends[-1] - ends[WARM_UP_STEPS - 1]) / STEPS


def _key(batch: Batch) -> bytes:
    return batch.inputs_BS.astype(np.uint32).tobytes()


if __name__ == "__main__":
    for row in _measure_all(int(sys.argv[1]), float(sys.argv[2])):
        print(json.dumps(row), flush=True)
