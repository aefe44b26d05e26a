"""A step of 32 rows with uneven masks, its student and teacher: the same in every process."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from lectern_common.wire.formats import Representation
from student_trainer.batch import Batch
from student_trainer.evaluation.evaluation import EvaluationSums, ValidationTeacher, evaluation_sums
from student_trainer.evaluation.samples import Line, Prompts, Samples
from student_trainer.generating.generator import written
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.sampling import Sampling
from student_trainer.objective.loss import Objective
from student_trainer.ranks.sharding import whole_weights
from student_trainer.ranks.world import Ranks
from student_trainer.stop import Stop
from student_trainer.student.student import CausalStudent, Student
from student_trainer.targets import IGNORE_INDEX
from student_trainer.teacher.local import FixtureTeacher

VOCAB_SIZE, ROWS, SEQ_LEN = 61, 32, 7
OBJECTIVE = Objective(alpha=0.3, temperature=2.0)


def student(tied: bool) -> CausalStudent:
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CausalStudent(Qwen2ForCausalLM(config))


def rows(empty_half: bool = False) -> Batch:
    """Returns rows with uneven masks: row i keeps i / ROWS of its labels; half may have none."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(0, VOCAB_SIZE, (ROWS, SEQ_LEN + 1))
    labels = tokens[:, 1:].copy()
    labels[draw.random((ROWS, SEQ_LEN)) > np.arange(ROWS)[:, None] / ROWS] = IGNORE_INDEX
    if empty_half:
        labels[: ROWS // 2] = IGNORE_INDEX
    return Batch(tokens[:, :-1], labels)


def targets() -> Tensor:
    """The teacher's logits [ROWS, SEQ_LEN, VOCAB_SIZE]."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, SEQ_LEN, VOCAB_SIZE, generator=draw)


def evaluated(learner: Student, ranks: Ranks) -> dict[str, float]:
    """Returns metrics over rows half of which have no label: those may be all that one rank has."""
    cpu, share = torch.device("cpu"), ROWS // ranks.size
    own = rows(empty_half=True).micro_batches(share)[ranks.rank].micro_batches(8)
    teacher = ValidationTeacher(FixtureTeacher(VOCAB_SIZE), Representation("dense"))
    sums = evaluation_sums(learner, own, cpu, Stop(), teacher, together=ranks.together)
    return EvaluationSums(*ranks.totals(*sums)).metrics()


def sampled(learner: Any, ranks: Ranks) -> list[Line]:
    """Returns the learner's samples for prompts of different lengths; none on another rank."""
    prompts = Prompts(["a", "b"], [[1, 2], [3]], 5, frozenset([0]), lambda ids: str(list(ids)))
    samples = Samples(prompts, None, None, Stop(), ranks=ranks)
    return samples.lines(learner, is_last=True)


def texts(learner: Student, ranks: Ranks, writer: int | None = None) -> list[list[int]]:
    """Returns what a rank writes while all weights are whole: other prompts, other lengths.

    With `writer`, only that rank writes.
    """
    assert isinstance(learner, CausalStudent)
    count = 1 + 3 * ranks.rank if writer in (None, ranks.rank) else 0
    prompts = [Prompt([one, one + 1]) for one in range(count)]
    with whole_weights(learner):
        found = written(
            learner.model,
            prompts,
            Sampling(max_new_tokens=3 + 4 * ranks.rank),
            ends=(),
            stop=Stop(),
        )
        return [one.ids for one in sorted(found, key=lambda one: one.index)]
