"""Times a distillation step through the service, against the same step in one process.

Uses the demo's models (2.2 M and 0.24 M parameters, random weights) and its batch of 16 x 128
tokens, one thread per model. In one process the teacher computes, then the student; through the
service the teacher runs in another process, asked a few steps ahead. The training loop is the same.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from benchmarks.servers import connected, served
from benchmarks.trainer.loops import RandomBatches, train_noted
from lectern.demo.specs import MODEL_CONFIGS, SEQ_LEN, SEQUENCES_PER_STEP, VOCAB_SIZE
from lectern_common.logs import configure_logs
from lectern_common.wire.formats import Representation
from lectern_models.loading import build_causal_lm
from student_trainer.run.parts import Teaching
from student_trainer.student.student import CausalStudent
from student_trainer.teacher.local import InProcessTeacher

STEPS = 20
PREFETCH_STEPS = 4
TOP_K = 64


def measure(pairs: int = 5) -> Iterator[dict[str, Any]]:
    """Yields one row per representation."""
    torch.set_num_threads(1)
    configure_logs("warning")
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, config in MODEL_CONFIGS.items():
            (folder / name).mkdir()
            (folder / name / "config.json").write_text(json.dumps(config))
        teacher_folder = folder / "teacher"
        build_causal_lm(folder / "teacher-config", seed=1).save_pretrained(teacher_folder)
        local = InProcessTeacher(AutoModelForCausalLM.from_pretrained(teacher_folder))
        # Each pair scores the same tokens: a cache would make all but the first free.
        with served(teacher_folder, folder, "--cache-bytes", "0") as server:
            for representation in (Representation("hidden"), Representation("top_k", TOP_K)):
                yield _measure_one(folder, server.address, local, representation, pairs)


def _measure_one(
    folder: Path,
    address: str,
    local: InProcessTeacher,
    representation: Representation,
    pairs: int,
) -> dict[str, Any]:
    in_process = Teaching(local, representation)
    times: list[tuple[float, float]] = []
    for _ in range(pairs + 1):
        with connected(address, VOCAB_SIZE, folder / "cache") as remote:
            through_service = Teaching(remote, representation, PREFETCH_STEPS)
            times.append(
                (_step_seconds(folder, through_service), _step_seconds(folder, in_process))
            )
    counted = times[1:]
    return {
        "representation": representation.kind,
        "service_step_seconds": statistics.median(one for one, _ in counted),
        "one_process_step_seconds": statistics.median(other for _, other in counted),
        "time_ratio": statistics.median(one / other for one, other in counted),
        "pairs": pairs,
    }


def _step_seconds(folder: Path, teaching: Teaching) -> float:
    """Returns the mean wall time of a step, after one step of warm-up in the same loop."""
    student = CausalStudent.from_config(folder / "student-config", 0, torch.device("cpu"))
    batches = RandomBatches(VOCAB_SIZE, SEQUENCES_PER_STEP, SEQ_LEN)
    return train_noted(student, batches, teaching, 1 + STEPS).seconds_after(1) / STEPS
