"""On-policy distillation of the same student by the same teacher, each way in its own process.

    lectern  the trainer's loop: the student writes, and a teacher server scores over gRPC
    stale    the same with stale_steps 1: writing is one step ahead
    trl      TRL's DistillationTrainer at beta 1, both models in one process; transformers generates

Every turn starts from the same weights; optimizer, learning rate, weight decay and clipping are the
same, in float32 and without dropout. No token ends a text: TRL is told of none, and its texts are
checked to be as long. The texts differ by their random numbers, so losses agree only in the mean.
Activation checkpointing and bfloat16, on by default in TRL, are switched off.
"""

import time
from pathlib import Path
from typing import Any

from benchmarks.trainer.learners import WARM_UP_STEPS, Task, Turn, Way, no_tokenizer, serve

# Of TRL's tokenizer.
_END, _PADDING = "0", "1"
_NO_TOKEN = -1


def _lectern(task: Task, scratch: Path, stale_steps: int = 0) -> Turn:
    import torch

    from benchmarks.memory import MemoryGrowth
    from benchmarks.servers import connected
    from benchmarks.trainer.on_policy.steps import train_writing, writer_of
    from lectern_common.run.folder import RunFolder
    from lectern_common.wire.formats import Representation
    from student_trainer.journal.recorder import Recorder
    from student_trainer.run.parts import Teaching
    from student_trainer.stop import Stop
    from student_trainer.student.student import CausalStudent

    stop = Stop()
    student = CausalStudent.from_pretrained(Path(task.student), torch.device("cpu"))
    growth = MemoryGrowth()
    with (
        connected(task.address, task.vocab_size, scratch / "cache", stop) as remote,
        Recorder(RunFolder(scratch), stop) as recorder,
    ):
        recorder.open_metrics((), 0)
        teaching = Teaching(
            remote,
            Representation("hidden"),
            take_received=remote.take_received,
            cancel=remote.cancel,
        )
        steps = WARM_UP_STEPS + task.steps
        writer = writer_of(task.vocab_size, stale_steps, task.seq_len)
        notes = train_writing(student, writer, teaching, steps, recorder)
    return Turn(notes.seconds_after(WARM_UP_STEPS), notes.losses, growth.peak_bytes())


def _stale(task: Task, scratch: Path) -> Turn:
    return _lectern(task, scratch, stale_steps=1)


def _trl(task: Task, scratch: Path) -> Turn:
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        PreTrainedTokenizerFast,
        PrinterCallback,
        TrainerCallback,
    )
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    from benchmarks.memory import MemoryGrowth
    from benchmarks.trainer.loops import BETAS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY

    ends: list[float] = []
    losses: list[float] = []
    lengths: list[float] = []

    class Notes(TrainerCallback):
        def on_log(self, *_: Any, **given: Any) -> None:
            logs = given["logs"]
            if "loss" in logs:
                losses.append(float(logs["loss"]))
                ends.append(time.perf_counter())
                lengths.append(float(logs["completions/mean_length"]))

    steps = WARM_UP_STEPS + task.steps
    trainer = DistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(task.student),
        teacher_model=AutoModelForCausalLM.from_pretrained(task.teacher),
        args=DistillationConfig(
            output_dir=str(scratch / "trl"),
            beta=1.0,
            temperature=1.0,
            max_completion_length=task.seq_len,
            max_steps=steps,
            per_device_train_batch_size=task.sequences,
            shuffle_dataset=False,
            generation_kwargs={"eos_token_id": None},
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_GRAD_NORM,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": _prompts(task, steps)}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=no_tokenizer(task.vocab_size), eos_token=_END, pad_token=_PADDING
        ),
        callbacks=[Notes()],
    )
    trainer.eos_token_ids = [_NO_TOKEN]  # it cuts texts after its tokenizer's
    trainer.remove_callback(PrinterCallback)
    growth = MemoryGrowth()
    trainer.train()
    if set(lengths) != {float(task.seq_len)}:
        raise RuntimeError(f"TRL's texts have other lengths: {lengths}")
    return Turn(ends[-1] - ends[WARM_UP_STEPS - 1], losses[:steps], growth.peak_bytes())


def _prompts(task: Task, steps: int) -> list[str]:
    """Returns as many prompts as the steps take, as words that are the ids."""
    from benchmarks.trainer.on_policy.steps import writer_of

    prompts = writer_of(task.vocab_size).prompts
    count = steps * task.sequences
    return [" ".join(map(str, prompts.ids(index).tolist())) for index in range(count)]


WAYS: dict[str, Way] = {"lectern": _lectern, "stale": _stale, "trl": _trl}

if __name__ == "__main__":
    serve(WAYS)
