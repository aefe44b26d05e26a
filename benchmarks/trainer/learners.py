"""Three ways to distil the same student from the same teacher, each in its own process.

    lectern  the trainer's loop, which asks a teacher server over gRPC
    trl      TRL's GKDTrainer with lmbda 0, beta 0: forward KL on given text, one process
    plain    a plain PyTorch loop, all logits at once, one process

Every turn starts from the same weights and takes the same steps with the same AdamW, learning rate,
weight decay (matrices only) and clipping, in float32 and without dropout, at alpha 0 and T = 1.

GKDTrainer computes sum(KL(teacher || student)) over the positions whose shifted label counts,
divided by their number in the step: the same loss. Its `temperature` affects only generation; its
loss is always at T = 1. It shifts the labels itself, so it gets rows of S + 1 tokens; the others
get S inputs and S labels. Activation checkpointing and bfloat16, on by default, are switched off;
the attention mask, all ones, is part of its interface.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Warm-up steps of a turn, not timed.
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class Task:
    """What a learner does in each turn; `address` is the teacher server's."""

    teacher: str
    student: str
    vocab_size: int
    sequences: int
    seq_len: int
    steps: int
    threads: int
    address: str = ""

    @property
    def tokens(self) -> int:
        """Tokens of the timed steps."""
        return self.steps * self.sequences * self.seq_len


@dataclass(frozen=True)
class Turn:
    """Seconds of the timed steps, every loss, and the peak memory above the loaded models.

    The memory counts only in a process's first turn: later turns reuse what it kept.
    """

    seconds: float
    losses: list[float]
    growth_bytes: int


class Learner:
    """A learner process, which loads its libraries once and runs one turn per request."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def turn(self) -> Turn:
        """Runs one turn. Raises RuntimeError if the process exited."""
        if self._process.stdin is None or self._process.stdout is None:
            raise ValueError("a learner's standard input and output must be pipes")
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a learner exited: {self._process.args!r}")
        return Turn(**json.loads(answer))


@contextmanager
def learning(
    way: str, task: Task, module: str = "benchmarks.trainer.learners"
) -> Iterator[Learner]:
    """Runs the learner process of one of a module's WAYS; yields its handle."""
    argv = [sys.executable, "-m", module, way, json.dumps(asdict(task))]
    threads = {"OMP_NUM_THREADS": str(task.threads), "MKL_NUM_THREADS": str(task.threads)}
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads, **quiet, "HF_HUB_OFFLINE": "1"},
    ) as process:
        try:
            yield Learner(process)
        finally:
            process.kill()


def _lectern(task: Task, scratch: Path) -> Turn:
    import torch

    from benchmarks.memory import MemoryGrowth
    from benchmarks.servers import connected
    from benchmarks.trainer.loops import RandomBatches, train_noted
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
        notes = train_noted(
            student,
            RandomBatches(task.vocab_size, task.sequences, task.seq_len),
            Teaching(
                remote,
                Representation("hidden"),
                prefetch_steps=4,
                take_received=remote.take_received,
                cancel=remote.cancel,
            ),
            WARM_UP_STEPS + task.steps,
            recorder=recorder,
        )
    return Turn(notes.seconds_after(WARM_UP_STEPS), notes.losses, growth.peak_bytes())


def _trl(task: Task, scratch: Path) -> Turn:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from benchmarks.memory import MemoryGrowth
    from benchmarks.trainer.loops import BETAS, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY

    ends: list[float] = []
    losses: list[float] = []

    class Notes(TrainerCallback):
        def on_log(self, *_: Any, **given: Any) -> None:
            logs = given["logs"]
            if "loss" in logs:
                losses.append(float(logs["loss"]))
                ends.append(time.perf_counter())

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids_BS = torch.tensor([row["input_ids"] for row in rows])
        return {
            "input_ids": ids_BS,
            "attention_mask": torch.ones_like(ids_BS),
            "labels": ids_BS.clone(),
        }

    teacher, student = _models(task)
    steps = WARM_UP_STEPS + task.steps
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(
            output_dir=str(scratch / "trl"),
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            max_steps=steps,
            per_device_train_batch_size=task.sequences,
            train_sampling_strategy="sequential",
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
        data_collator=collate,
        train_dataset=Dataset.from_dict({"input_ids": _rows(task, steps)}),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=no_tokenizer(2),
            eos_token="0",  # noqa: S106
            pad_token="1",  # noqa: S106
        ),
        callbacks=[Notes()],
    )
    trainer.remove_callback(PrinterCallback)
    growth = MemoryGrowth()
    trainer.train()
    return Turn(ends[-1] - ends[WARM_UP_STEPS - 1], losses[:steps], growth.peak_bytes())


def _plain(task: Task, _scratch: Path) -> Turn:
    import torch
    from torch.nn import functional

    from benchmarks.memory import MemoryGrowth
    from benchmarks.trainer.loops import LEARNING_RATE, MAX_GRAD_NORM, RandomBatches

    teacher, student = _models(task)
    batches = RandomBatches(task.vocab_size, task.sequences, task.seq_len)
    optimizer = _adamw(student)
    growth = MemoryGrowth()
    ends: list[float] = []
    losses: list[float] = []
    for step in range(WARM_UP_STEPS + task.steps):
        ids_BS = torch.from_numpy(batches.batch_at(step).inputs_BS)
        with torch.no_grad():
            teacher_BSV = teacher(input_ids=ids_BS, use_cache=False).logits
        student_BSV = student(input_ids=ids_BS, use_cache=False).logits
        loss = functional.kl_div(
            functional.log_softmax(student_BSV.flatten(0, 1), -1),
            functional.log_softmax(teacher_BSV.flatten(0, 1), -1),
            log_target=True,
            reduction="batchmean",
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE
        optimizer.step()
        losses.append(loss.item())
        ends.append(time.perf_counter())
    return Turn(ends[-1] - ends[WARM_UP_STEPS - 1], losses, growth.peak_bytes())


def _adamw(student: Any) -> Any:
    from benchmarks.trainer.loops import BETAS, WEIGHT_DECAY
    from student_trainer.run.optim import build_adamw

    return build_adamw(student, BETAS, WEIGHT_DECAY)


def _models(task: Task) -> tuple[Any, Any]:
    """Returns (teacher, student) as transformers loads them, in float32."""
    from transformers import AutoModelForCausalLM

    return (
        AutoModelForCausalLM.from_pretrained(task.teacher).eval(),
        AutoModelForCausalLM.from_pretrained(task.student).train(),
    )


def _rows(task: Task, steps: int) -> list[list[int]]:
    """Returns the rows of all steps, in order, each of S + 1 tokens."""
    from student_trainer.data.stream import synthetic_row

    count = steps * task.sequences
    return [synthetic_row(0, i, task.seq_len, task.vocab_size).tolist() for i in range(count)]


def no_tokenizer(vocab_size: int) -> Any:
    """Returns a tokenizer whose words are the ids in digits: TRL requires one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {str(index): index for index in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="0"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


Way = Callable[[Task, Path], Turn]

WAYS: dict[str, Way] = {"lectern": _lectern, "trl": _trl, "plain": _plain}


def serve(ways: dict[str, Way]) -> None:
    """Runs one turn of the way that the command line names per line of standard input."""
    way, task = ways[sys.argv[1]], Task(**json.loads(sys.argv[2]))
    import torch
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from lectern_common.logs import configure_logs

    torch.set_num_threads(task.threads)
    configure_logs("warning")
    disable_progress_bar()
    set_verbosity_error()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps what libraries print out of the answers
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory() as scratch:
            turn = way(task, Path(scratch))
        print(json.dumps(asdict(turn)), file=answers, flush=True)


if __name__ == "__main__":
    serve(WAYS)
