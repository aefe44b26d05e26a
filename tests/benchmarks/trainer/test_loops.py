"""What the benchmarks compare learns the same thing: rows, loss and optimizer."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.memory import MemoryGrowth
from benchmarks.trainer.learners import Task, Turn, _plain, _rows
from benchmarks.trainer.loops import RandomBatches, StepNotes, train_noted
from benchmarks.trainer.pipelined import HIDDEN, ReadyTeacher, _key
from benchmarks.trainer.whole_run import loss_difference, model_config
from lectern_models.loading import build_causal_lm
from student_trainer.run.parts import Teaching
from student_trainer.student.forward import ask
from student_trainer.student.student import CausalStudent
from student_trainer.teacher.local import InProcessTeacher

VOCAB_SIZE, SEQUENCES, SEQ_LEN, STEPS = 80, 2, 12, 3


@pytest.fixture
def task(tmp_path):
    folders = {}
    for name, hidden_size, seed in (("teacher", 32, 1), ("student", 16, 2)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        config = model_config(VOCAB_SIZE, hidden_size, 1, 2, 24)
        (folders[name] / "config.json").write_text(json.dumps(config))
        model = build_causal_lm(folders[name], seed)
        with torch.no_grad():
            model.model.norm.weight.fill_(8)
        model.save_pretrained(folders[name])
    sizes = (VOCAB_SIZE, SEQUENCES, SEQ_LEN, STEPS - 1)
    return Task(str(folders["teacher"]), str(folders["student"]), *sizes, threads=1)


def test_the_trainer_and_the_plain_loop_have_the_same_losses(task, tmp_path):
    batches = RandomBatches(VOCAB_SIZE, SEQUENCES, SEQ_LEN)
    teacher = InProcessTeacher(AutoModelForCausalLM.from_pretrained(task.teacher))
    student = CausalStudent.from_pretrained(tmp_path / "student", torch.device("cpu"))
    ours = train_noted(student, batches, Teaching(teacher, HIDDEN), STEPS).losses
    plain = _plain(task, tmp_path).losses
    assert len(ours) == len(plain) == STEPS
    assert ours == pytest.approx(plain, abs=1e-5)
    assert len(set(plain)) == STEPS


def test_answers_that_are_ready_train_as_the_teacher_does(task, tmp_path):
    batches = RandomBatches(VOCAB_SIZE, SEQUENCES, SEQ_LEN)
    teacher = InProcessTeacher(AutoModelForCausalLM.from_pretrained(task.teacher))
    asked = map(batches.batch_at, range(STEPS))
    ready = ReadyTeacher({_key(batch): ask(teacher, batch, HIDDEN, 1.0) for batch in asked})
    losses = [
        train_noted(
            CausalStudent.from_pretrained(tmp_path / "student", torch.device("cpu")),
            batches,
            Teaching(provider, HIDDEN),
            STEPS,
        ).losses
        for provider in (teacher, ready)
    ]
    assert losses[0] == losses[1]


def test_everyone_has_the_same_rows(task):
    batches = RandomBatches(VOCAB_SIZE, SEQUENCES, SEQ_LEN)
    rows = np.array(_rows(task, STEPS)).reshape(STEPS, SEQUENCES, SEQ_LEN + 1)
    for step in range(STEPS):
        batch = batches.batch_at(step)
        assert (batch.inputs_BS == rows[step, :, :-1]).all()
        assert (batch.labels_BS == rows[step, :, 1:]).all()


def test_the_loss_difference_is_the_largest_of_a_step_between_any_two():
    turns = {
        "a": Turn(1.0, [3.0, 2.0, 1.0, 0.5, 9.0], 0),
        "b": Turn(1.0, [3.0, 2.1, 1.0, 0.5, 7.0], 0),
        "c": Turn(1.0, [3.0, 1.9, 1.0, 0.5, 8.0], 0),
    }
    assert loss_difference(turns) == pytest.approx(0.2)  # the fifth step is not compared


def test_the_warm_up_is_not_timed():
    assert StepNotes(ends=[10.0, 12.0, 13.0, 15.0]).seconds_after(2) == 3.0


def test_memory_growth_is_the_peak_and_not_what_is_left():
    growth = MemoryGrowth()
    np.ones(8 << 20)  # 64 MiB, and gone
    assert 60 << 20 < growth.peak_bytes() < 90 << 20
