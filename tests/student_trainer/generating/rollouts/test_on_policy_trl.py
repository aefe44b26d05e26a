"""For fixed rollouts at T = 1, loss and gradients are those of TRL's DistillationTrainer.

Needs TRL, which `make peers` installs.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from student_trainer.objective.loss import Objective
from student_trainer.ranks.world import Ranks
from student_trainer.run.metrics import loss_metrics
from tests.student_trainer.generating.rollouts.test_on_policy_loss import ROLLOUTS, learnt_by
from tests.support.training.parts import tiny_student, tiny_teacher

LIMIT = 1e-4
# Of TRL: 0 is the forward KL, 1 the reverse KL, and what is between them the JSD.
BETAS = [("forward_kl", None, 0.0), ("reverse_kl", None, 1.0), ("jsd", 0.5, 0.5), ("jsd", 0.1, 0.1)]


@pytest.mark.long
@pytest.mark.parametrize(("divergence", "beta", "trl_beta"), BETAS)
def test_loss_and_gradients_are_those_of_trl(
    tmp_path: Path, divergence: str, beta: float | None, trl_beta: float
) -> None:
    pytest.importorskip("trl", reason="TRL is not installed; `make peers` installs it")
    student, teacher = tiny_student(tmp_path / "student"), tiny_teacher(tmp_path / "teacher")
    theirs = copy.deepcopy(student.model)
    loss, gradients = trls(theirs, copy.deepcopy(teacher._model), trl_beta, tmp_path)

    objective = Objective(0.0, 1.0, divergence, beta)
    learnt, positions = learnt_by(student, teacher, objective, "hidden", with_data=False)

    assert positions == sum(len(one.completion) for one in ROLLOUTS)
    total = loss_metrics(learnt, objective, positions, Ranks())["loss/total"]
    assert total == pytest.approx(loss, rel=LIMIT)
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert largest > 0
    for name, parameter in student.model.named_parameters():
        assert parameter.grad is not None
        difference = (parameter.grad - gradients[name]).abs().max()
        assert difference <= LIMIT * largest, name


def trls(
    student: Any, teacher: Any, beta: float, folder: Path
) -> tuple[float, dict[str, torch.Tensor]]:
    """Returns TRL's loss and gradients on the same ids, as one batch that TRL generated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trl_trainer(student, teacher, beta, folder)
        loss = trainer.compute_loss(student.train(), trl_batch())
        loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in student.named_parameters()}


def trl_trainer(student: Any, teacher: Any, beta: float, folder: Path) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    words = models.WordLevel({"0": 0, "1": 1}, unk_token="0")
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(
            output_dir=str(folder / "trl"),
            beta=beta,
            temperature=1.0,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["0"]}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(words),
            eos_token="0",
            pad_token="1",
        ),
    )


def trl_batch() -> dict[str, torch.Tensor]:
    """Returns the rollouts as TRL lays them out: prompts padded before, completions after."""
    from trl.trainer.utils import pad

    prompts = [torch.tensor(one.prompt_ids.astype("int64")) for one in ROLLOUTS]
    completions = [torch.tensor(one.completion) for one in ROLLOUTS]
    ones = [torch.ones_like(one) for one in prompts], [torch.ones_like(one) for one in completions]
    return {
        "prompt_ids": pad(prompts, padding_value=1, padding_side="left"),
        "prompt_mask": pad(ones[0], padding_value=0, padding_side="left"),
        "completion_ids": pad(completions, padding_value=1, padding_side="right"),
        "completion_mask": pad(ones[1], padding_value=0, padding_side="right"),
        "num_items_in_batch": torch.tensor(float(sum(map(len, completions)))),
    }
