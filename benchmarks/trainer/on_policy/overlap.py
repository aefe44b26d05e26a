"""How much of an on-policy step overlaps: student and server, each on its own core.

    writing   the generator, without a teacher
    scoring   the server's answers about the same texts, each asked by itself as soon as possible
    learning  the trainer's loop with answers at once, less its writing
    step      the trainer's loop with the server; stale: with stale_steps 1

With stale_steps 0 the teacher scores while the student learns, so the best possible step takes
writing + max(scoring, learning); with 1, while it writes too, max(writing + learning, scoring).
That is on two cores that do not slow each other down; the figures with a goal are against the least
that these two allow (scaling.py).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.pairs import seconds
from benchmarks.scaling import allowed_seconds, two_core_scaling
from benchmarks.servers import connected, on_cpus, served
from benchmarks.trainer.loops import StepNotes
from benchmarks.trainer.on_policy.steps import (
    VOCABULARIES,
    train_writing,
    write_models,
    writer_of,
)
from lectern_common.logs import configure_logs
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.generating.rollouts.rows import Rollout, batch_of_rollouts
from student_trainer.run.parts import Teaching
from student_trainer.stop import Stop
from student_trainer.student.forward import ask
from student_trainer.student.student import CausalStudent
from student_trainer.targets import HiddenTargets, for_new_texts
from student_trainer.teacher.prefetch import MAX_THREADS, Asking
from student_trainer.teacher.remote import RemoteTeacher

WARM_UP_STEPS, STEPS = 2, 6
HIDDEN = Representation("hidden")
_MODULE = "benchmarks.trainer.on_policy.overlap"


def measure(
    pairs: int = 5, steps: int = STEPS, vocabularies: Sequence[int] = VOCABULARIES
) -> Iterator[dict[str, Any]]:
    """Yields one row per vocabulary, measured in a process bound to one core.

    Raises:
        RuntimeError: that process failed, or ended without a row of each.
    """
    scaling = two_core_scaling()
    if scaling is None:
        yield {"figure": "overlap", "left_out": "it needs two cores"}
        return
    argv = [sys.executable, "-m", _MODULE, json.dumps([pairs, steps, vocabularies, scaling])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    rows = 0
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            yield json.loads(line)
            rows += 1
    if process.returncode or rows != len(vocabularies):
        raise RuntimeError(
            f"the measuring process ended with status {process.returncode} after {rows} rows"
        )


@dataclass(frozen=True)
class ReadyTeacher:
    """A teacher that answers at once: equal rows, whatever is asked."""

    head: OutputHead

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> HiddenTargets:
        """See TargetsProvider."""
        rows = sum(int(asked.sum()) for asked in positions)
        return HiddenTargets(torch.ones(rows, self.head.weight_VD.shape[1]), self.head)


def _measure_all(
    pairs: int, steps: int, vocabularies: Sequence[int], scaling: float
) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    configure_logs("warning")
    disable_progress_bar()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    for vocab_size in vocabularies:
        with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
            folder = Path(scratch)
            teacher, student = write_models(folder, vocab_size)
            with on_cpus(cores[1:2]):
                server = stack.enter_context(served(teacher, folder))
            remote = stack.enter_context(connected(server.address, vocab_size, folder / "cache"))
            ways = _ways(student, vocab_size, remote, steps)
            turns = [{way: work() for way, work in ways.items()} for _ in range(pairs + 1)]
            yield {
                "figure": "overlap",
                "vocab_size": vocab_size,
                **figures(turns[1:], scaling),
                "pairs": pairs,
            }


Turn = dict[str, float]


def _ways(
    student: Path, vocab_size: int, remote: RemoteTeacher, steps: int
) -> dict[str, Callable[[], float]]:
    """Returns what measures the seconds of a step, and of its parts; the first turn warms up."""
    loaded = CausalStudent.from_pretrained(student, torch.device("cpu"))
    texts = [_texts(loaded, vocab_size, step) for step in range(steps)]
    served = Teaching(remote, HIDDEN, take_received=remote.take_received)

    def trained_on(teaching: Teaching, stale_steps: int) -> StepNotes:
        trained = CausalStudent.from_pretrained(student, torch.device("cpu"))
        writer = writer_of(vocab_size, stale_steps)
        return train_writing(trained, writer, teaching, WARM_UP_STEPS + steps)

    def learning() -> float:
        notes = trained_on(Teaching(ReadyTeacher(remote.output_head()), HIDDEN), 0)
        wrote: float = sum(line["rollout/seconds"] for line in notes.metrics[WARM_UP_STEPS:])
        return (notes.seconds_after(WARM_UP_STEPS) - wrote) / steps

    def both(stale_steps: int) -> float:
        return trained_on(served, stale_steps).seconds_after(WARM_UP_STEPS) / steps

    return {
        "writing": lambda: _mean_seconds(partial(_texts, loaded, vocab_size), range(steps)),
        "scoring": lambda: _mean_seconds(partial(_scored, remote), texts),
        "learning": learning,
        "step": partial(both, 0),
        "stale": partial(both, 1),
    }


def _mean_seconds(work: Callable[[Any], object], each: Sequence[Any]) -> float:
    return statistics.fmean(seconds(partial(work, one)) for one in each)


def _texts(student: CausalStudent, vocab_size: int, step: int) -> list[Rollout]:
    writer = writer_of(vocab_size)
    return list(writer.write(student, writer.plan.slots(step), Stop()))


def _scored(remote: RemoteTeacher, texts: Sequence[Rollout]) -> None:
    """Waits for the answers about a step's texts, each asked by itself as a run does."""
    provider, asking = for_new_texts(remote), Asking("scoring", MAX_THREADS, Stop())

    def about(text: Rollout) -> HiddenTargets:
        answer = ask(provider, batch_of_rollouts([text]), HIDDEN, 1.0)
        if not isinstance(answer, HiddenTargets):
            raise TypeError("the teacher sent no hidden states")
        return answer

    for answer in [asking.answer_of(partial(about, text)) for text in texts]:
        answer()
    asking.close()


def figures(turns: Sequence[Turn], scaling: float) -> dict[str, Any]:
    """Returns the figures of the turns, medians of each."""

    def median(figure: Callable[[Turn], float]) -> float:
        return statistics.median(figure(turn) for turn in turns)

    def best(turn: Turn) -> float:
        return turn["writing"] + max(turn["scoring"], turn["learning"])

    def best_stale(turn: Turn) -> float:
        return max(turn["writing"] + turn["learning"], turn["scoring"])

    def allowed(turn: Turn) -> float:
        return turn["writing"] + allowed_seconds(turn["scoring"], turn["learning"], scaling)

    def allowed_stale(turn: Turn) -> float:
        return allowed_seconds(turn["writing"] + turn["learning"], turn["scoring"], scaling)

    return {
        **{f"{way}_seconds": median(itemgetter(way)) for way in turns[0]},
        "against_best": median(lambda turn: turn["step"] / best(turn)),
        "stale_against_best": median(lambda turn: turn["stale"] / best_stale(turn)),
        "against_allowed": median(lambda turn: turn["step"] / allowed(turn)),
        "stale_against_allowed": median(lambda turn: turn["stale"] / allowed_stale(turn)),
        "goals": {"against_allowed": "<= 1.10", "stale_against_allowed": "<= 1.10"},
    }


if __name__ == "__main__":
    for row in _measure_all(*json.loads(sys.argv[1])):
        print(json.dumps(row), flush=True)
