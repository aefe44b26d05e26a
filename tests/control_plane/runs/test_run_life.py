"""Users, trainers, kills and restarts in any order: what holds at every step, and at the end."""

import contextlib
import shutil
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from control_plane.runs.record import ACTIVE, NEXT, StopAt, Wanted
from lectern_common.errors import Conflict, InvalidRequest
from lectern_common.run.folder import RunFolder, checkpoint_steps
from lectern_common.run.status import RESTING, RunState
from tests.control_plane.conftest import Bench

MAX_RUNNING = 2


class Killed(BaseException):
    """The control plane dies here."""


class RunLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # noqa: S108 - where there is one: nothing has to outlive the test
        root = memory if memory.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="lectern-run-life-", dir=root))
        self.bench = Bench.of(self.folder)
        self.ids: list[str] = []

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.bench.store.close()
            shutil.rmtree(self.folder)

    def settle(self) -> None:
        """Once everything is asked to stop and every trainer obeys, no run or process is active."""
        for run_id in self.ids:
            try:
                self.bench.commands.request_stop(run_id)
            except Conflict:
                assert self.bench.runs.get(run_id).state in RESTING
        for _ in range(4):
            self.bench.tick(10)
            for process in self.bench.processes.alive():
                process.say("stopped")
                process.end(0)
        self.bench.tick(10)
        assert self.bench.processes.alive() == []
        assert all(self.bench.runs.get(run_id).state in RESTING for run_id in self.ids)

    def processes(self):
        return self.bench.processes.alive()

    # ---- users -------------------------------------------------------------------------------

    @precondition(lambda self: len(self.ids) < 4)
    @rule()
    def create(self) -> None:
        self.ids.append(self.bench.create(f"run-{len(self.ids)}").id)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def stop(self, data) -> None:
        run_id = data.draw(st.sampled_from(self.ids))
        before = self.bench.runs.get(run_id).state
        try:
            run = self.bench.commands.request_stop(run_id)
        except Conflict:
            assert before in (RunState.SUCCEEDED, RunState.FAILED)
        else:
            assert run.state in (RunState.STOPPING, RunState.STOPPED, RunState.INTERRUPTED)
            assert run.stop_at is None

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def stop_at_checkpoint(self, data) -> None:
        run_id = data.draw(st.sampled_from(self.ids))
        before = self.bench.runs.get(run_id)
        try:
            run = self.bench.commands.request_stop(run_id, StopAt.CHECKPOINT)
        except Conflict:
            assert before.state in (RunState.SUCCEEDED, RunState.FAILED)
            return
        if before.state in ACTIVE and before.wanted is Wanted.RUNNING:
            assert (run.state, run.stop_at) == (before.state, StopAt.CHECKPOINT)
        else:
            assert run.stop_at is None and run.wanted is Wanted.STOPPED

    @precondition(lambda self: self.ids and len(self.ids) < 4)
    @rule(data=st.data(), step=st.none() | st.integers(1, 3))
    def fork(self, data, step) -> None:
        source = self.bench.folder(data.draw(st.sampled_from(self.ids)))
        try:
            made = self.bench.fork(source.run_id, step)
            assert made is not None
            self.ids.append(made.id)
        except (Conflict, InvalidRequest):
            assert source.newest_step is None or step not in (
                None,
                *checkpoint_steps(source.checkpoints_path),
            )

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def resume(self, data) -> None:
        run_id = data.draw(st.sampled_from(self.ids))
        before = self.bench.runs.get(run_id)
        try:
            after = self.bench.commands.request_resume(run_id)
            assert (after.state, after.stop_at) == (RunState.QUEUED, None)
            assert before.resumable
        except Conflict:
            assert not before.resumable

    # ---- trainers ----------------------------------------------------------------------------

    @precondition(lambda self: self.processes())
    @rule(
        data=st.data(),
        state=st.sampled_from(["starting", "running", "waiting_for_teacher", "stopping"]),
        checkpoint=st.none() | st.integers(1, 3),
    )
    def say(self, data, state, checkpoint) -> None:
        process = data.draw(st.sampled_from(self.processes()))
        process.heard_of_checkpoint = process.told_of_checkpoint > 0
        process.say(state, step=1, checkpoint_step=checkpoint)

    @precondition(lambda self: self.processes())
    @rule(
        data=st.data(),
        state=st.sampled_from(["stopped", "succeeded", "failed", "interrupted"]),
        goes=st.booleans(),
    )
    def end(self, data, state, goes) -> None:
        process = data.draw(st.sampled_from(self.processes()))
        process.say(state, reason="teacher_unavailable" if state == "interrupted" else None)
        if goes:
            process.end(0)

    @precondition(lambda self: self.processes())
    @rule(data=st.data(), exit_status=st.sampled_from([-9, -15, 1]))
    def die(self, data, exit_status) -> None:
        data.draw(st.sampled_from(self.processes())).end(exit_status)

    # ---- the control plane -------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0, 1, 3, 70]))
    def tick(self, seconds) -> None:
        self.bench.tick(seconds)

    @rule()
    def kill_and_restart(self) -> None:
        self.bench.restart()

    @precondition(lambda self: self.ids)
    @rule(after_spawn=st.booleans())
    def kill_while_starting(self, after_spawn) -> None:
        """Dies right before or right after it starts a process; the next one takes over."""
        processes = self.bench.processes
        start = processes.start

        def dying_start(folder, *, resume, environment):
            if after_spawn:
                start(folder, resume=resume, environment=environment)
            raise Killed

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(processes, "start", dying_start)
            self.bench.tick(1)
        self.bench.restart()

    @rule()
    def end_and_start(self) -> None:
        """Ends with --on-exit stop; half of the trainers obey, the rest is killed."""

        def obey(_seconds: float) -> None:
            for process in self.processes()[::2]:
                process.say("stopped")
                process.end(0)

        times = iter(range(0, 100_000, 15))
        self.bench.reconciler.stop_all(sleep=obey, monotonic=lambda: next(times))
        assert self.processes() == []
        assert not self.bench.runs.in_states(ACTIVE)
        self.bench.restart()

    @precondition(lambda self: self.ids and len(self.ids) < 4)
    @rule(data=st.data(), committed=st.booleans())
    def kill_while_forking(self, data, committed) -> None:
        """Dies before the row of a fork is there, or before its folder is in place."""
        source = self.bench.folder(data.draw(st.sampled_from(self.ids)))
        if source.newest_step is None:
            return
        before = set(self.bench.roots.runs.iterdir())
        run = self.bench.fork(source.run_id, dies="placed" if committed else "row")
        self.bench.restart()
        if run is not None:
            self.ids.append(run.id)
            assert self.bench.folder(run.id).newest_step is not None
        else:
            assert set(self.bench.roots.runs.iterdir()) == before

    # ---- what always holds -------------------------------------------------------------------

    @invariant()
    def a_run_has_at_most_one_process(self) -> None:
        living = Counter(process.folder.run_id for process in self.processes())
        assert all(count == 1 for count in living.values())

    @invariant()
    def no_more_run_than_may(self) -> None:
        assert len(self.processes()) <= MAX_RUNNING
        assert len(self.bench.runs.in_states(ACTIVE)) <= MAX_RUNNING

    @invariant()
    def every_state_followed_the_one_before(self) -> None:
        for run_id in self.ids:
            states = [RunState(state) for state in self.bench.states(run_id)]
            assert states[0] is RunState.QUEUED
            assert states[-1] is self.bench.runs.get(run_id).state
            for before, after in pairwise(states):
                assert after is before or after in NEXT[before]

    @invariant()
    def a_fork_has_what_it_began_with(self) -> None:
        for run_id in self.ids:
            run = self.bench.runs.get(run_id)
            if run.forked_from is not None:
                assert self.bench.folder(run_id).read_forked_from() == run.forked_from
                assert self.bench.folder(run_id).newest_step is not None

    @invariant()
    def what_rests_has_no_process_and_no_place(self) -> None:
        for run_id in self.ids:
            run = self.bench.runs.get(run_id)
            if run.state not in ACTIVE:
                assert (run.pid, run.slots, run.active_since) == (None, None, None)
                folder = RunFolder(self.bench.roots.runs / run_id)
                assert self.bench.processes.find(folder) is None


TestRunLife = RunLife.TestCase
TestRunLife.settings = settings(
    max_examples=15,  # `make faults ARGS=C6` makes 2,000 steps
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
