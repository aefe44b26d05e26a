"""A distillation in one process: a teacher in memory, a student, token shards, the loss per epoch.

    python examples/distil.py --home ./home

The loop and the objective are those of `lectern train`; no server runs and nothing is resumed.
What to expect is in examples/README.md. For real models, give the folders of both, a smaller
learning rate (1e-4), and `--seq-len 1024`.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from lectern import CausalStudent, InProcessTeacher, Pipeline, ShardBatchSource


def main() -> None:
    """Trains, and prints the loss before the first epoch and after each."""
    options = _options()
    models = options.home / "models"
    teacher = AutoModelForCausalLM.from_pretrained(models / "teacher", local_files_only=True)
    student = CausalStudent.from_config(
        models / "student-shape", seed=options.seed, device=torch.device("cpu")
    )
    pipeline = Pipeline(
        epochs=options.epochs,
        batches_per_epoch=options.batches,
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        learning_rate=4e-3,
        alpha=0.3,
        temperature=2.0,
        output_path=options.output,
    )
    pipeline.with_teacher(InProcessTeacher(teacher), "hidden").with_student(student)
    pipeline.with_batch_source(ShardBatchSource.open(options.home / "data" / "stdlib"))
    result = pipeline.execute()

    print("epoch  loss    ce      kd")
    columns = [result.metrics[name] for name in ("loss", "loss/ce", "loss/kd")]
    for epoch, losses in enumerate(zip(*columns, strict=True)):
        print(f"{epoch:5}  " + "  ".join(f"{loss:.4f}" for loss in losses))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Distils a student in this process.")
    parser.add_argument("--home", type=Path, default=Path("home"), help="with data/ and models/")
    parser.add_argument("--output", type=Path, help="where the student is written [nowhere]")
    parser.add_argument("--seed", type=int, default=0, help="of the student's first weights")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=25, help="per epoch, the same in each")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
