"""Steps of a student that writes its rows, on random prompts: what the parts here have in common.

8 prompts of 64 tokens, and 128 tokens after each: no token ends a text. Reverse KL at T = 1 on the
student's own text, drawn at temperature 1.
"""

from pathlib import Path

from benchmarks.servers import write_model
from benchmarks.trainer.loops import StepNotes, train_noted
from benchmarks.trainer.whole_run import model_config, write_teacher
from student_trainer.data.prompt_set import prompts_of_rows
from student_trainer.data.rows import SyntheticRows
from student_trainer.generating.rollouts.plan import Plan
from student_trainer.generating.rollouts.rows import NoBatches
from student_trainer.generating.rollouts.writing import Writer
from student_trainer.generating.sampling import Sampling
from student_trainer.objective.loss import Objective
from student_trainer.run.parts import StepRecorder, Teaching
from student_trainer.student.student import CausalStudent

VOCABULARIES = (8_192, 32_768)
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 64, 128
# Of 8 rows: learning begins while the teacher still scores the others.
MICRO_BATCH = 2
REVERSE_KL = Objective(alpha=0.0, temperature=1.0, divergence="reverse_kl")


def write_models(folder: Path, vocab_size: int) -> tuple[Path, Path]:
    """Writes a teacher and a student, 6.8 M and 1.6 M parameters at V = 8,192; returns both."""
    return (
        write_teacher(folder / "teacher", model_config(vocab_size, 256, 6, 4, 704)),
        write_model(folder / "student", model_config(vocab_size, 128, 3, 4, 352), 2),
    )


def writer_of(vocab_size: int, stale_steps: int = 0, new_tokens: int = NEW_TOKENS) -> Writer:
    """Returns how the student writes: texts of exactly `new_tokens` tokens."""
    prompts = prompts_of_rows(SyntheticRows(0, PROMPT_TOKENS, vocab_size), PROMPT_TOKENS)
    plan = Plan(
        seed=0,
        fraction=1.0,
        sequences_per_step=PROMPTS,
        samples_per_prompt=1,
        num_prompts=len(prompts),
        micro_batch=MICRO_BATCH,
    )
    sampling = Sampling(1.0, max_new_tokens=new_tokens)
    nothing: frozenset[int] = frozenset()
    return Writer(prompts, plan, sampling, nothing, nothing, PROMPTS, 0, stale_steps)


class NoRows(NoBatches):
    """No rows of data: the student writes all."""

    sequences = MICRO_BATCH


def train_writing(
    student: CausalStudent,
    writer: Writer,
    teaching: Teaching,
    steps: int,
    recorder: StepRecorder | None = None,
) -> StepNotes:
    """Trains the student on what it writes, for `steps` steps of the trainer's loop."""
    return train_noted(
        student,
        NoRows(),
        teaching,
        steps,
        objective=REVERSE_KL,
        recorder=recorder,
        writer=writer,
    )
