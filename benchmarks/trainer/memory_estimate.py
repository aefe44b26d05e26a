"""Compares the estimated memory of training steps with what they take.

    python -m benchmarks.trainer.memory_estimate

prints a line per case: the estimate of lectern_common/checks/memory.py for three training steps on
the CPU; the growth of a fresh process's peak memory if freed tensors are given back at once, and
the ratio; and the growth with glibc's defaults, which keep freed memory. Nothing here is a speed.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

SEQ_LEN = 256


@dataclass(frozen=True)
class Case:
    """A student of `architecture`, and its teacher's hidden size; 0 means no teacher."""

    name: str
    architecture: str = "qwen2"
    vocab_size: int = 8192
    hidden: int = 512
    layers: int = 8
    mlp: int = 1536
    sequences: int = 4
    checkpointing: bool = False
    dtype: str = "float32"
    teacher: int = 0


CASES = [
    Case("4 rows"),
    Case("4 rows, hidden", teacher=1024),
    Case("4 rows, checkpointing", checkpointing=True),
    Case("16 rows", sequences=16),
    Case("16 rows, checkpointing", sequences=16, checkpointing=True),
    Case("16 rows, bfloat16", sequences=16, dtype="bfloat16"),
    Case("wide vocabulary", vocab_size=65_536, hidden=256, layers=4, mlp=768, teacher=512),
    Case("gpt2", architecture="gpt2", layers=6, mlp=2048, sequences=8),
]


# Has glibc map each tensor separately, and unmap it once freed.
GIVEN_BACK = {"MALLOC_TRIM_THRESHOLD_": "0"}


def main() -> None:
    """Measures each case in two fresh processes, and prints the table."""
    for index, case in enumerate(CASES):
        tensors, kept = _in_a_process(index, GIVEN_BACK), _in_a_process(index, {})
        estimated, taken = tensors["estimate"] / 1e6, tensors["peak"] / 1e6
        print(
            f"{case.name:<24} {estimated:6.0f} MB estimated "
            f"({tensors['certain'] / 1e6:.0f} certain)  {taken:6.0f} MB taken  "
            f"ratio {estimated / taken:.2f}  with glibc's defaults {kept['peak'] / 1e6:6.0f} MB",
            flush=True,
        )


def _in_a_process(index: int, settings: dict[str, str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainer.memory_estimate", str(index)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **settings},
        capture_output=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(case: Case) -> dict[str, float]:
    """Returns the estimate and the peak of three steps in bytes, after a tiny warm-up."""
    import torch

    from benchmarks.memory import MemoryGrowth
    from lectern_common.checks.needs.memory import Computation, estimate_memory
    from lectern_models.logits.output_head import OutputHead
    from student_trainer.objective.loss import auto_chunk_tokens
    from student_trainer.student.shape import shape_of

    torch.set_num_threads(1)
    _train(_student(Case("", case.architecture, 64, 32, 1, 64, 2)), None, 64, 2)
    growth = MemoryGrowth()
    student = _student(case)
    head = OutputHead(torch.randn(case.vocab_size, case.teacher)) if case.teacher else None
    _train(student, head, case.vocab_size, case.sequences)
    peak = growth.peak_bytes()
    computed = Computation(
        case.sequences,
        SEQ_LEN,
        compute_bytes=4 if case.dtype == "float32" else 2,
        checkpointing=case.checkpointing,
        chunk_tokens=auto_chunk_tokens(case.vocab_size, torch.device("cpu")),
        head_bytes=4 * case.vocab_size * case.teacher,
    )
    estimate = estimate_memory(shape_of(student.model), computed)
    return {"peak": peak, "estimate": estimate.total, "certain": estimate.certain}


def _student(case: Case) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lectern_models.loading import DTYPES
    from student_trainer.student.student import CausalStudent

    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "n_inner": case.mlp}
    config = AutoConfig.for_model(
        case.architecture,
        vocab_size=case.vocab_size,
        hidden_size=case.hidden,
        num_hidden_layers=case.layers,
        num_attention_heads=8,
        intermediate_size=case.mlp,
        max_position_embeddings=2 * SEQ_LEN,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **(dropout if case.architecture == "gpt2" else {"num_key_value_heads": 2}),
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    student = CausalStudent(model, DTYPES[case.dtype])
    if case.checkpointing:
        student.checkpoint_activations()
    return student.train()


def _train(student: Any, head: Any, vocab_size: int, sequences: int) -> None:
    """Takes three steps as the loop does, with random hidden states as the teacher."""
    import numpy as np
    import torch

    from student_trainer.batch import Batch
    from student_trainer.objective.loss import Objective, StepLoss, distillation_loss
    from student_trainer.run.optim import build_adamw
    from student_trainer.student.forward import at_valid_positions
    from student_trainer.targets import HiddenTargets

    ids = np.random.default_rng(0).integers(0, vocab_size, (sequences, SEQ_LEN))
    objective = Objective(alpha=1.0 if head is None else 0.5, temperature=2.0)

    def compute(hidden_ND: Any, own: Any, labels_N: Any) -> StepLoss:
        targets = None
        if head is not None:
            targets = HiddenTargets(torch.randn(len(labels_N), head.weight_VD.shape[1]), head)
        return distillation_loss(hidden_ND, own, labels_N, targets, objective, ids.size)

    optimizer = build_adamw(student, (0.9, 0.95), 0.1)
    for _ in range(3):
        loss = at_valid_positions(student, Batch(ids, ids), torch.device("cpu"), compute)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(CASES[int(sys.argv[1])])))
    else:
        main()
