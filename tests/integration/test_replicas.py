"""Two teacher servers behind one address: one killed, one stopped, both gone and back."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from lectern_common.teacher.replicas import TeacherReplicas
from lectern_common.wire.formats import Representation
from student_trainer.stop import Stop
from student_trainer.targets import DenseTargets
from student_trainer.teacher.calls import TeacherCalls
from student_trainer.teacher.remote import RemoteTeacher
from tests.support.servers import TeacherProcess, teacher_process, wait_for

CALLS = 200
FIXTURE = ("--engine", "fixture", "--vocab-size", "31")
TOKENS = [np.array([3, 7, 5], np.uint32)]
EVERY = [np.ones(3, bool)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[TeacherProcess]]:
    with ExitStack() as stack:
        teachers = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            teachers.append(stack.enter_context(teacher_process(tmp_path / name, *FIXTURE)))
        yield teachers


@contextmanager
def asking(
    pair: list[TeacherProcess], folder: Path, told: list[str | None], deadline: float = 60.0
) -> Iterator[RemoteTeacher]:
    calls = TeacherCalls(
        TeacherReplicas(",".join(teacher.address for teacher in pair)),
        deadline_seconds=deadline,
        outage_budget_seconds=60.0,
        stop=Stop(),
        on_outage=told.append,
    )
    with RemoteTeacher(
        calls, run_id="run-1", vocab_size=31, device=torch.device("cpu"), cache_root=folder
    ) as teacher:
        teacher.connect()
        yield teacher


def answer(teacher: RemoteTeacher) -> list[int]:
    """Returns the most likely token after each position; the fixture repeats the token itself."""
    targets = teacher.score(TOKENS, EVERY, Representation("dense"), 1.0)
    assert isinstance(targets, DenseTargets)
    return [int(token) for token in targets.logits_NV.argmax(-1)]


def test_killing_one_of_two_replicas_causes_no_error_in_200_calls(
    pair: list[TeacherProcess], tmp_path: Path
) -> None:
    told: list[str | None] = []
    with asking(pair, tmp_path, told) as teacher:
        for call in range(CALLS):
            if call == CALLS // 4:
                pair[0].kill()
            assert answer(teacher) == [3, 7, 5]
    assert told == []


def test_a_hung_replica_causes_no_error(pair: list[TeacherProcess], tmp_path: Path) -> None:
    told: list[str | None] = []
    with asking(pair, tmp_path, told, deadline=2.0) as teacher:
        assert answer(teacher) == answer(teacher) == [3, 7, 5]
        os.kill(pair[0].process.pid, signal.SIGSTOP)
        try:
            for _ in range(10):
                assert answer(teacher) == [3, 7, 5]
        finally:
            os.kill(pair[0].process.pid, signal.SIGCONT)
    assert told == []


def test_with_both_replicas_gone_there_is_an_outage_until_one_is_back(
    pair: list[TeacherProcess], tmp_path: Path
) -> None:
    told: list[str | None] = []
    with (
        ExitStack() as stack,
        asking(pair, tmp_path, told) as teacher,
        ThreadPoolExecutor(1) as thread,
    ):
        assert answer(teacher) == [3, 7, 5]
        for gone in pair:
            gone.kill()
        asked = thread.submit(answer, teacher)
        wait_for(lambda: told)
        assert told[0] is not None and all(gone.address in told[0] for gone in pair)
        bind = ("--bind", pair[1].address)
        stack.enter_context(teacher_process(tmp_path, *FIXTURE, *bind))
        assert asked.result(60) == [3, 7, 5]
    assert told[1:] == [None]
