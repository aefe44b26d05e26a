"""How fast a record is made, read, and learnt from.

    make   precompute's tokens per second, through a teacher server, against the same teacher's
           forward, head and selection in this process, with nothing kept
    read   a recorded teacher's answers, against reading the same bytes from the same file
    run    the trainer's loop with a record, against cross entropy only, same student and tokens

Each way has one thread; the server runs on a core of its own. Random weights. The student of `run`
and the teacher have the shapes of `make bench ARGS=trainer`. Rows that are read are in the page
cache, as they are while a record fits in memory.
"""

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.pairs import paired
from benchmarks.servers import served, write_model
from benchmarks.trainer.loops import train_noted
from benchmarks.trainer.whole_run import model_config, write_teacher
from lectern_common.logs import configure_logs
from lectern_common.roots import Roots
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.stages.precompute import PrecomputeRequest, RecordOptions
from student_trainer.batch import Batch
from student_trainer.data.rows import in_order
from student_trainer.data.select import open_data
from student_trainer.objective.loss import Objective
from student_trainer.record.stage import precompute
from student_trainer.run.parts import Teaching
from student_trainer.stop import Stop
from student_trainer.student.forward import ask
from student_trainer.student.student import CausalStudent
from student_trainer.targets import of_epoch
from student_trainer.teacher.local import InProcessTeacher
from student_trainer.teacher.recorded import RecordedTeacher

PREFETCH_STEPS = 4
_DATASET = "tokens"


@dataclass(frozen=True)
class Sizes:
    """What is measured; small sizes try the code out.

    A shape is (width, layers, heads, intermediate size).
    """

    vocab_size: int
    teacher: tuple[int, int, int, int]
    student: tuple[int, int, int, int]
    sequences: int
    seq_len: int
    steps: int
    pairs: int


WHOLE = Sizes(
    vocab_size=32_768,
    teacher=(256, 6, 4, 704),
    student=(128, 3, 4, 352),
    sequences=8,
    seq_len=128,
    steps=6,
    pairs=5,
)


@dataclass(frozen=True)
class _Way:
    """A representation and how it is recorded; its goals."""

    teacher: dict[str, Any]
    options: RecordOptions
    goals: dict[str, str]


WAYS = {
    "top_k 64": _Way(
        {"representation": "top_k", "top_k": 64}, RecordOptions(), {"speed_ratio": ">= 0.95"}
    ),
    "sampled 50": _Way(
        {"representation": "sampled", "num_draws": 50}, RecordOptions(), {"speed_ratio": ">= 0.95"}
    ),
    "hidden": _Way({"representation": "hidden"}, RecordOptions(), {}),
    "hidden_fp8": _Way({"representation": "hidden"}, RecordOptions(eight_bit_hidden=True), {}),
}


def measure(sizes: Sizes = WHOLE) -> Iterator[dict[str, Any]]:
    """Yields the rows of each format: how it is made, read and learnt from."""
    torch.set_num_threads(1)
    configure_logs("error")
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        home = Path(scratch)
        roots = Roots.of_home(home)
        model = write_teacher(home / "teacher", model_config(sizes.vocab_size, *sizes.teacher))
        config = model_config(sizes.vocab_size, *sizes.student)
        write_model(roots.models / "student", config, 2)
        _write_dataset(roots.data / _DATASET, sizes)
        server = stack.enter_context(served(model, home, "--cache-bytes", "0"))
        local = InProcessTeacher(AutoModelForCausalLM.from_pretrained(model))
        for name, way in WAYS.items():
            spec = _spec(sizes, {"address": server.address, **way.teacher})
            yield _made(sizes, roots, spec, name, way, local)
            teacher = RecordedTeacher(
                _folder(roots, name, 0),
                vocab_size=sizes.vocab_size,
                device=torch.device("cpu"),
            )
            yield _read(sizes, roots, spec, name, teacher)
            yield _learnt(sizes, roots, spec, name, way, teacher)


def _spec(sizes: Sizes, teacher: dict[str, Any]) -> RunSpec:
    return parse_spec(
        {
            "name": "record",
            "student": {"init": "student"},
            "data": {
                "path": _DATASET,
                "seq_len": sizes.seq_len,
                "validation_fraction": 0.01,
                "attention_across_documents": True,
            },
            "objective": {"alpha": 0, "temperature": 1},
            "batch": {"sequences_per_step": sizes.sequences},
            "evaluation": {"max_sequences": 1},
            "schedule": {"steps": sizes.steps, "warmup_steps": 0},
            "device": {"kind": "cpu", "threads": 1},
            "teacher": teacher,
        }
    )


def _folder(roots: Roots, name: str, turn: int) -> Path:
    return roots.data / f"{name.replace(' ', '-')}-{turn}"


def _batches(sizes: Sizes, roots: Roots, spec: RunSpec) -> list[Batch]:
    """Returns the training rows, a step at a time."""
    data = open_data(spec, roots, sizes.vocab_size, None)
    return [
        batch
        for batch in in_order(data.training, sizes.sequences)
        if len(batch.inputs_BS) == sizes.sequences
    ]


def _made(
    sizes: Sizes, roots: Roots, spec: RunSpec, name: str, way: _Way, local: InProcessTeacher
) -> dict[str, Any]:
    """Precomputes and computes in turns."""
    batches, ratios, rates = _batches(sizes, roots, spec), [], []
    asked = spec.teacher.asks_for if spec.teacher is not None else None
    if asked is None:
        raise ValueError("the spec has no teacher")
    num_tokens = sum(batch.num_valid for batch in batches)
    for turn in range(sizes.pairs):
        request = PrecomputeRequest(
            spec=spec, output=_folder(roots, name, turn).name, options=way.options
        )
        recorded = _tokens_per_second(request, roots)
        began = time.perf_counter()
        for batch in batches:
            ask(local, batch, of_epoch(asked, 0), 1.0)
        bare = num_tokens / (time.perf_counter() - began)
        rates.append(recorded)
        ratios.append(recorded / bare)
    return {
        "figure": f"make, {name}",
        "tokens_per_second": statistics.median(rates),
        "against_bare_forward": statistics.median(ratios),
        "goals": {"against_bare_forward": ">= 0.85"},
        "pairs": sizes.pairs,
    }


def _tokens_per_second(request: PrecomputeRequest, roots: Roots) -> float:
    """Makes a record; returns the speed from its first batch to its last."""
    seen: list[tuple[float, int]] = []

    def report(_what: str, done: int, of: int) -> None:
        if of:
            seen.append((time.perf_counter(), done))

    with tempfile.TemporaryDirectory() as work:
        result = precompute(request, roots, Path(work), stop=Stop(), report=report)
    part = result["manifest"]["parts"][0]
    of_part = [(at, done) for at, done in seen if done <= part["sequences"]]
    (began, first), (ended, last) = of_part[0], of_part[-1]
    rows = part["rows"] / part["sequences"] * request.spec.batch.sequences_per_step
    return (last - first) * rows / (ended - began) if ended > began else 0.0


def _read(
    sizes: Sizes, roots: Roots, spec: RunSpec, name: str, teacher: RecordedTeacher
) -> dict[str, Any]:
    batches = _batches(sizes, roots, spec)
    asked = of_epoch(spec.teacher.asks_for, 0) if spec.teacher is not None else None
    if asked is None:
        raise ValueError("the spec has no teacher")
    files = sorted(teacher.record.folder.glob("training*/rows.bin"))

    def answers() -> None:
        for batch in batches:
            ask(teacher, batch, asked, 1.0)

    def plain() -> None:
        for path in files:
            path.read_bytes()

    measured = paired(answers, plain, sizes.pairs)
    num_tokens = sum(batch.num_valid for batch in batches)
    return {
        "figure": f"read, {name}",
        "tokens_per_second": num_tokens / measured.ours_seconds,
        "mb_per_second": sum(path.stat().st_size for path in files) / measured.ours_seconds / 1e6,
        "time_against_plain_read": measured.ratio,
        "pairs": sizes.pairs,
    }


@dataclass(frozen=True)
class _Listed:
    batches: Sequence[Batch]
    sequences: int

    def batch_at(self, step: int) -> Batch:
        return self.batches[step % len(self.batches)]


def _learnt(
    sizes: Sizes, roots: Roots, spec: RunSpec, name: str, way: _Way, teacher: RecordedTeacher
) -> dict[str, Any]:
    batches = _Listed(_batches(sizes, roots, spec), sizes.sequences)
    if spec.teacher is None:
        raise ValueError("the spec has no teacher")
    teaching = Teaching(teacher, spec.teacher.asks_for, PREFETCH_STEPS, is_recorded=True)
    turns = [
        (
            _step_seconds(sizes, roots, batches, teaching, Objective(0.0, 1.0)),
            _step_seconds(sizes, roots, batches, None, Objective(1.0, 1.0)),
        )
        for _ in range(sizes.pairs + 1)
    ][1:]
    return {
        "figure": f"run, {name}",
        "step_seconds": statistics.median(ours for ours, _ in turns),
        "cross_entropy_step_seconds": statistics.median(theirs for _, theirs in turns),
        "speed_ratio": statistics.median(theirs / ours for ours, theirs in turns),
        "goals": way.goals,
        "pairs": sizes.pairs,
    }


def _step_seconds(
    sizes: Sizes,
    roots: Roots,
    batches: _Listed,
    teaching: Teaching | None,
    objective: Objective,
) -> float:
    student = CausalStudent.from_pretrained(roots.models / "student", torch.device("cpu"))
    notes = train_noted(student, batches, teaching, 1 + sizes.steps, objective=objective)
    return notes.seconds_after(1) / sizes.steps


def _write_dataset(folder: Path, sizes: Sizes) -> None:
    """Writes token shards of random tokens for about two turns of the steps."""
    count = sizes.sequences * sizes.seq_len * (2 * sizes.steps + 4)
    tokens = np.random.default_rng(0).integers(0, sizes.vocab_size, count).astype("<u4")
    folder.mkdir(parents=True)
    (folder / "shard-00000.bin").write_bytes(tokens.tobytes())
    manifest = {
        "schema": "pretokenize-bin-v1",
        "tokenizer_sha256": "0" * 64,
        "corpus_sha256": hashlib.sha256(tokens.tobytes()).hexdigest(),
        "shard_count": 1,
        "total_tokens": count,
        "vocab_size": sizes.vocab_size,
        "eos_policy": "none",
        "eos_token_id": None,
        "seq_length_hint": None,
        "producer_version": "benchmarks",
        "producer_sha256": "",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
