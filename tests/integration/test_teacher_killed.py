"""A teacher that is killed while three runs train, and a network that cuts its replies.

The runs wait, then continue where they were; their losses equal those of undisturbed runs.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from lectern.client import Client, RunStatus
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import RunSpec
from tests.support.models import write_tiny_model
from tests.support.proxy import CuttingProxy, cutting_proxy
from tests.support.servers import TeacherProcess, teacher_process, wait_for
from tests.support.stack import (
    PATIENCE_SECONDS,
    control_plane,
    folder_of,
    made_steps,
    random_source,
)
from tests.support.training.runs import Home, compared, lines_of, trained

STEPS = 40
VOCAB_SIZE = 1024
TEACHER_HIDDEN = 64
SEQ_LEN, SEQUENCES = 40, 16
TOP_K = 64
# Payload of the reply to one step's request.
REPLY_BYTES = {
    "dense": SEQUENCES * SEQ_LEN * VOCAB_SIZE * 4,
    "hidden": SEQUENCES * SEQ_LEN * TEACHER_HIDDEN * 4,
    "top_k": SEQUENCES * SEQ_LEN * (8 * TOP_K + 8),
}
# More than a teacher sends in reply to GetModel, so that no cut falls into that reply.
MODEL_BYTES = 8192


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"), seq_len=SEQ_LEN)
    home.model("wide", vocab_size=VOCAB_SIZE, weights=False)
    teacher: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden": TEACHER_HIDDEN, "seed": 1}
    write_tiny_model(home.path / "teacher", **teacher)
    return home


def options_of(home: Home) -> tuple[str, ...]:
    return ("--model", str(home.path / "teacher"), "--threads", "1")


@pytest.fixture(scope="module")
def teacher(home: Home) -> Iterator[TeacherProcess]:
    """A teacher that is never disturbed."""
    with teacher_process(home.path, *options_of(home)) as teacher:
        yield teacher


@pytest.fixture(scope="module")
def undisturbed(home: Home, teacher: TeacherProcess) -> dict[str, RunFolder]:
    """One uninterrupted run for each representation."""
    folders = {}
    for kind in REPLY_BYTES:
        spec = spec_of(home, kind, teacher.address)
        folders[kind] = RunFolder.create(home.roots.runs, f"undisturbed-{spec.name}", spec)
        assert trained(home, folders[kind]) == 0
    return folders


def spec_of(home: Home, kind: str, address: str) -> RunSpec:
    return home.spec(
        kind.replace("_", "-"),
        student={"config": "wide"},
        teacher={
            "address": address,
            "representation": kind,
            "top_k": TOP_K if kind == "top_k" else None,
        },
        objective={"alpha": 0.25},
        schedule={"steps": STEPS, "warmup_steps": 5},
        batch={"sequences_per_step": SEQUENCES},
        evaluation={"every_steps": 10},
        checkpoint={"every_steps": 1000},
    )


@pytest.mark.long
def test_three_runs_survive_their_teacher(home: Home, undisturbed: dict[str, RunFolder]) -> None:
    """T1: kill -9 of the teacher that three runs share; the same one comes back."""
    step = random_source().randint(1, STEPS // 2)
    with ExitStack() as stack:
        first = stack.enter_context(teacher_process(home.path, *options_of(home)))
        plane = stack.enter_context(control_plane(home, "--max-running-runs", "3"))
        ids = [plane.create_run(spec_of(home, kind, first.address)).id for kind in REPLY_BYTES]
        gather([folder_of(home, run_id) for run_id in ids], step)
        first.kill()
        wait_for(lambda: all(is_waiting(plane, run_id) for run_id in ids))
        same_port = ("--bind", first.address)
        stack.enter_context(teacher_process(home.path, *options_of(home), *same_port))
        ended = plane.wait(ids, timeout_seconds=PATIENCE_SECONDS)
    for kind, run in zip(REPLY_BYTES, ended, strict=True):
        require_same_as(undisturbed[kind], folder_of(home, run.id), run)


def is_waiting(plane: Client, run_id: str) -> bool:
    run = plane.get_run(run_id)
    assert not run.rests, run.message
    return run.state is RunState.WAITING_FOR_TEACHER


def gather(folders: list[RunFolder], step: int) -> None:
    """Waits until every run has made `step` steps and none is done; early runs are paused."""
    held: dict[str, int] = {}

    def all_there() -> bool:
        for folder in folders:
            status = folder.read_status()
            if status is None or made_steps(folder) < step:
                continue
            if folder.run_id not in held:
                os.kill(status.pid, signal.SIGSTOP)
                held[folder.run_id] = status.pid
        return len(held) == len(folders)

    try:
        wait_for(all_there, PATIENCE_SECONDS)
        before = [made_steps(folder) for folder in folders]
    finally:
        for pid in held.values():
            os.kill(pid, signal.SIGCONT)
    print(f"at steps {before}")
    assert max(before) < STEPS
    # The teacher is busy again when it is killed.
    wait_for(lambda: [made_steps(folder) for folder in folders] != before)


def require_same_as(undisturbed: RunFolder, folder: RunFolder, run: RunStatus) -> None:
    """Requires that the run waited without a restart, lost and repeated no step, and changed no
    bit.
    """
    assert run.state is RunState.SUCCEEDED, run.message
    assert run.json["attempt"] == 1
    states = [line.get("state") for line in read_json_lines(folder.events_path)]
    assert "waiting_for_teacher" in states
    assert [line["step"] for line in lines_of(folder)] == list(range(STEPS + 1))
    assert compared(folder) == compared(undisturbed)


@pytest.mark.long
def test_replies_cut_in_the_middle_change_no_loss(
    home: Home, teacher: TeacherProcess, undisturbed: dict[str, RunFolder]
) -> None:
    """T1: every run's connection is cut five times, after random numbers of bytes."""
    draw = random_source()
    with ExitStack() as stack:
        proxies: dict[str, CuttingProxy] = {}
        for kind, size in REPLY_BYTES.items():
            cuts = [MODEL_BYTES + draw.randrange(2 * size) for _ in range(5)]
            proxies[kind] = stack.enter_context(cutting_proxy(teacher.address, cuts))
        with control_plane(home, "--max-running-runs", "3") as plane:
            specs = [spec_of(home, kind, proxy.address) for kind, proxy in proxies.items()]
            ids = [plane.create_run(spec).id for spec in specs]
            ended = plane.wait(ids, timeout_seconds=PATIENCE_SECONDS)
        assert [proxy.cuts_left for proxy in proxies.values()] == [0, 0, 0]
    for kind, run in zip(proxies, ended, strict=True):
        require_same_as(undisturbed[kind], folder_of(home, run.id), run)
