"""Trains a student with TRL's ServerDistillationTrainer, as released, and computes its loss again.

    python trl_student.py STUDENT TEACHER RUNS

RUNS is JSON: a list of {"url", "temperature", "steps", "top_k", "beta"}. Prints one JSON line a
run: for each step the trainer's loss, and the loss that the same student's logits give beside a
forward of the teacher in this process, in float64.

Legend: B sequences, T tokens of the padded completions, V vocabulary, K top-k.
"""

import json
import math
import sys
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl.experimental.server_distillation import (
    ServerDistillationConfig,
    ServerDistillationTrainer,
)

PROMPTS = ["def add(first,", "class Lectern:", "for student in", "import os", "the quick brown fox"]


def main(student: str, teacher: str, runs: list[dict[str, Any]]) -> None:
    local: Any = AutoModelForCausalLM.from_pretrained(teacher).eval()
    for run in runs:
        print(json.dumps(trained(student, local, run)), flush=True)


def trained(student: str, local: Any, run: dict[str, Any]) -> list[tuple[float, float]]:
    """Returns (the trainer's loss, ours) of each step."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(student)
    tokenizer.pad_token = tokenizer.eos_token
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any = ServerDistillationTrainer(
            model=AutoModelForCausalLM.from_pretrained(student),
            args=ServerDistillationConfig(
                output_dir=folder,
                teacher_model_server_url=run["url"],
                temperature=run["temperature"],
                loss_top_k=run["top_k"],
                beta=run["beta"],
                max_steps=run["steps"],
                max_completion_length=12,
                per_device_train_batch_size=4,
                learning_rate=1e-3,
                use_cpu=True,
                bf16=False,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=1,
            ),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
            processing_class=tokenizer,
        )
        seen: list[tuple[float, float]] = []
        own = trainer.compute_loss

        def watched(model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
            loss, outputs = own(model, inputs, return_outputs=True, **more)
            seen.append((float(loss), again(local, inputs, outputs.logits.detach(), run)))
            return (loss, outputs) if return_outputs else loss

        trainer.compute_loss = watched
        trainer.train()
    return seen


def again(local: Any, inputs: Any, logits_BSV: torch.Tensor, run: dict[str, Any]) -> float:
    """Returns the loss of a batch: the mean over the tokens of the completions."""
    width, temperature = inputs["prompt_ids"].shape[1], run["temperature"]
    total, count = 0.0, 0
    for row in range(len(logits_BSV)):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        ids = torch.cat([prompt, completion])
        with torch.no_grad():
            own_SV = local(ids[None]).logits[0].double()
        teacher_TV = (own_SV[len(prompt) - 1 : -1] / temperature).log_softmax(-1)
        student_TV = logits_BSV[row, width - 1 : width - 1 + len(completion)].double()
        student_TV = (student_TV / temperature).log_softmax(-1)
        for teacher_V, student_V, token in zip(teacher_TV, student_TV, completion, strict=True):
            total += divergence(teacher_V, student_V, int(token), run)
            count += 1
    return total / count


def divergence(
    teacher_V: torch.Tensor, student_V: torch.Tensor, token: int, run: dict[str, Any]
) -> float:
    """Returns the forward KL over the teacher's top K and the rest, or, at beta 1, the reverse KL
    over the token that was written and the rest."""
    if run["beta"] == 0:
        kept = teacher_V.topk(run["top_k"]).indices
        return kl(outcomes(teacher_V[kept]), outcomes(student_V[kept]))
    return kl(outcomes(student_V[token : token + 1]), outcomes(teacher_V[token : token + 1]))


def outcomes(log_probs_K: torch.Tensor) -> torch.Tensor:
    rest = -math.expm1(min(float(log_probs_K.logsumexp(0)), -1e-7))
    return torch.cat([log_probs_K, torch.tensor([math.log(rest)], dtype=torch.float64)])


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.exp() * (one - other)).sum())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
