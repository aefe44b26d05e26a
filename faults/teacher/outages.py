"""T1 to T4 and T22: a teacher that dies, hangs or changes, and a bad network."""

import random
import signal
import time
from contextlib import ExitStack

from faults.models import write_model
from faults.processes import Server
from faults.row import Tally
from faults.stage import Stage
from faults.teacher.clients.proxy import BadNetwork
from faults.trainer.runs.run import STEPS, TEACHER_HIDDEN, VOCAB_SIZE, Ended, Home, Trainer
from lectern_common.json_lines import read_json_lines
from lectern_common.run.status import RunState

# So that a call is in flight nearly all the time.
_SLOW = ("unmeasured", "slow-model=0.02")

T1_GOES_ON_SECONDS = 2.0
# After this step the run may have all its answers.
_LAST_KILL = STEPS - 25


def killed(stage: Stage) -> Tally:
    """T1: kill -9 of the teacher during calls; it is back within seconds."""
    tally = Tally()
    kills = stage.tries(20, 3)
    draw = random.Random(0)  # noqa: S311 - when to strike
    home = Home(stage)
    undisturbed = home.undisturbed()
    slowest = 0.0
    with ExitStack() as stack:
        server = _teacher(stage, stack, home, _SLOW)
        address = server.address
        trainer = Trainer(stage, home, home.create(address))
        stack.callback(trainer.kill)
        for number in range(kills):
            stage.say(f"kill {number + 1} of {kills}")
            if trainer.wait_for_step(1 + number * _LAST_KILL // kills, 60) is None:
                break
            time.sleep(draw.random() * 0.2)
            server.kill()
            server = _teacher(stage, stack, home, _SLOW, address)
            before = trainer.steps()
            seconds = trainer.wait_for_step(before + 1, 20)
            if not tally.count(
                seconds is not None, f"the run did not continue after kill {number + 1}"
            ):
                break
            slowest = max(slowest, seconds or 0.0)
        problem = trainer.end()
        tally.require(not problem, problem)
        difference = undisturbed.difference(Ended.of(trainer.folder))
        tally.require(not difference, difference)
    tally.require(tally.tries == kills, f"{tally.tries} of {kills} kills were tried")
    tally.require_within(slowest, T1_GOES_ON_SECONDS, "continuing after the teacher was ready")
    tally.figure = (
        f"continues at most {slowest:.1f} s after the teacher is ready; {STEPS} steps' losses and "
        "the weights are bit-equal to the undisturbed run's"
    )
    return tally


_BUDGET_SECONDS = 3.0


def gone(stage: Stage) -> Tally:
    """T2: the teacher is gone for longer than the outage budget, then back."""
    tally = Tally()
    home = Home(stage)
    undisturbed = home.undisturbed()
    for number in range(stage.tries(3, 1)):
        stage.say(f"outage {number + 1}")
        with ExitStack() as stack:
            server = _teacher(stage, stack, home, _SLOW)
            address = server.address
            folder = home.create(address, outage_budget_seconds=_BUDGET_SECONDS)
            trainer = Trainer(stage, home, folder)
            stack.callback(trainer.kill)
            trainer.wait_for_step(10 + 20 * number, 60)
            server.kill()
            exit_status, status = trainer.wait(60), trainer.status
            step = trainer.steps()
            said = None if status is None else (status.state, status.reason, status.checkpoint_step)
            ended_well = tally.count(
                exit_status == 75
                and said == (RunState.INTERRUPTED, "teacher_unavailable", step)
                and 0 < step < STEPS,
                f"at step {step} it exited with status {exit_status} and state {said}",
            )
            if not ended_well:
                continue
            _teacher(stage, stack, home, _SLOW, address)
            resumed = Trainer(stage, home, folder, ("--resume",))
            stack.callback(resumed.kill)
            problem = resumed.end() or undisturbed.difference(Ended.of(folder))
            tally.count(not problem, f"resumed: {problem}")
    tally.figure = (
        f"ends after {_BUDGET_SECONDS:.0f} s as interrupted (teacher_unavailable), checkpointed at "
        "its last step; bit-equal once resumed"
    )
    return tally


T3_DEADLINE_SECONDS = 2.0
# For the other replica to answer, and the student to take a step.
_T3_ANSWER_SECONDS = 1.0


def hanging(stage: Stage) -> Tally:
    """T3: two replicas are stopped in turn by SIGSTOP: each accepts calls, and hangs."""
    tally = Tally()
    home = Home(stage)
    undisturbed = home.undisturbed()
    slowest = 0.0
    with ExitStack() as stack:
        servers = [_teacher(stage, stack, home, _SLOW) for _ in range(2)]
        address = ",".join(server.address for server in servers)
        folder = home.create(address, deadline_seconds=T3_DEADLINE_SECONDS)
        trainer = Trainer(stage, home, folder)
        stack.callback(trainer.kill)
        stops = stage.tries(6, 2)
        for number in range(stops):
            stage.say(f"stop {number + 1} of {stops}")
            if trainer.wait_for_step(1 + number * STEPS // (stops + 2), 60) is None:
                break
            server = servers[number % 2]
            server.signal(signal.SIGSTOP)
            longest = _longest_standstill(trainer, 12)
            server.signal(signal.SIGCONT)
            slowest = max(slowest, longest)
            tally.count(trainer.alive, "the run ended")
        problem = trainer.end() or undisturbed.difference(Ended.of(folder))
        tally.require(not problem, problem)
    tally.require_within(slowest, T3_DEADLINE_SECONDS + _T3_ANSWER_SECONDS, "a step")
    tally.figure = (
        f"no pause over {slowest:.1f} s (deadline {T3_DEADLINE_SECONDS:.0f} s): the other "
        "replica answers; losses bit-equal"
    )
    return tally


def _longest_standstill(trainer: Trainer, steps: int) -> float:
    """Returns the longest pause before any of the next steps, at most ten seconds."""
    longest = 0.0
    for _ in range(steps):
        step = trainer.steps()
        if step >= STEPS:
            break
        seconds = trainer.wait_for_step(step + 1, 10)
        longest = max(longest, 10.0 if seconds is None else seconds)
        if seconds is None:
            break
    return longest


def another_model(stage: Stage) -> Tally:
    """T4: a different model at the run's address: while training, at a resume, as a replica."""
    tally = Tally()
    home = Home(stage)
    other = write_model(stage.folder / "other", vocab_size=VOCAB_SIZE, hidden=TEACHER_HIDDEN)
    options = ("--model", str(other), "--threads", "1")
    for number in range(stage.tries(3, 1)):
        stage.say(f"another model, {number + 1}")
        with ExitStack() as stack:
            right = _teacher(stage, stack, home, _SLOW)
            address = right.address
            trainer = Trainer(stage, home, home.create(address))
            stack.callback(trainer.kill)
            trainer.wait_for_step(5 + 10 * number, 60)
            right.kill()
            step = trainer.steps()
            _started(stage, stack, options, address)
            _require_refused(tally, trainer, step + _ANSWERED_AHEAD, "while training")
            resumed = Trainer(stage, home, trainer.folder, ("--resume",))
            stack.callback(resumed.kill)
            _require_refused(tally, resumed, trainer.steps(), "at the resume")
        with ExitStack() as stack:
            servers = [_teacher(stage, stack, home, _SLOW), _started(stage, stack, options)]
            folder = home.create(",".join(server.address for server in servers))
            trainer = Trainer(stage, home, folder)
            stack.callback(trainer.kill)
            _require_refused(tally, trainer, 0, "as a replica")
    tally.figure = (
        "refused as wrong_model before any step from it: in the run, at a resume, as a replica"
    )
    return tally


# Steps already answered by the right teacher (prefetch_steps, and the current one).
_ANSWERED_AHEAD = 5


def _require_refused(tally: Tally, trainer: Trainer, last_step: int, when: str) -> None:
    """Counts whether a run ends as wrong_model without a step after `last_step`."""
    trainer.wait(30)
    status, steps = trainer.status, trainer.steps()
    said = None if status is None else (str(status.state), status.reason)
    tally.count(
        said is not None and said[1] == "wrong_model" and steps <= last_step,
        f"{when}: {steps} steps, at most {last_step} allowed; its state is {said}",
    )


T22_LATENCY_SECONDS = 0.2
T22_BYTES_PER_SECOND = 1_000_000
_RESETS, _STALLS, _STALL_SECONDS = 5, 3, 3.0


def bad_network(stage: Stage) -> Tally:
    """T22: a slow, distant network between trainer and teacher that resets and stalls."""
    tally = Tally()
    home = Home(stage)
    undisturbed = home.undisturbed()
    events = ["reset"] * stage.tries(_RESETS, 2) + ["stall"] * stage.tries(_STALLS, 1)
    random.Random(0).shuffle(events)  # noqa: S311 - when to strike
    stalled = shortest = 0.0
    with ExitStack() as stack:
        server = _teacher(stage, stack, home, ("unmeasured",))
        network = stack.enter_context(
            BadNetwork(server.address, T22_LATENCY_SECONDS, T22_BYTES_PER_SECOND)
        )
        trainer = Trainer(stage, home, home.create(network.address, prefetch_steps=2))
        stack.callback(trainer.kill)
        shortest = float("inf")
        for number, event in enumerate(events):
            stage.say(f"{event}, {number + 1} of {len(events)}")
            at = 1 + number * STEPS // (len(events) + 1)
            if trainer.wait_for_step(at, 60) is None:
                break
            if event == "reset":
                network.reset()
                tally.count(True, "")
            else:
                before = trainer.steps()
                network.stall(_STALL_SECONDS)
                trainer.wait_for_step(before + 4, 30)
                waited = _most_waited(trainer, before)
                shortest = min(shortest, waited)
                stalled += _STALL_SECONDS
                tally.count(
                    waited >= _STALL_SECONDS - 1,
                    f"a stall of {_STALL_SECONDS:.0f} s shows as {waited:.1f} s of waiting",
                )
        problem = trainer.end() or undisturbed.difference(Ended.of(trainer.folder))
        tally.require(not problem, problem)
        events_said = [line.get("state") for line in read_json_lines(trainer.folder.events_path)]
    tally.require(tally.tries == len(events), f"{tally.tries} of {len(events)} events were tried")
    tally.require("waiting_for_teacher" in events_said, "no reset was noticed")
    tally.figure = (
        f"{T22_LATENCY_SECONDS * 1000:.0f} ms, 1 MB/s: {events.count('reset')} resets and "
        f"{events.count('stall')} stalls leave losses and weights bit-equal; each stall of "
        f"{_STALL_SECONDS:.0f} s shows as {shortest:.1f} s of waiting at least"
    )
    return tally


def _most_waited(trainer: Trainer, after_step: int) -> float:
    """Returns the longest wait for the teacher in any step after `after_step`."""
    lines = read_json_lines(trainer.folder.metrics_path)
    waits = [
        line["time/teacher_wait_seconds"]
        for line in lines
        if line["step"] > after_step and "time/teacher_wait_seconds" in line
    ]
    return max(waits, default=0.0)


def _teacher(
    stage: Stage,
    stack: ExitStack,
    home: Home,
    faults: tuple[str, ...],
    address: str | None = None,
) -> Server:
    """Starts the right teacher, on `address` if given; ended with `stack`."""
    return _started(stage, stack, home.teacher_options, address, faults)


def _started(
    stage: Stage,
    stack: ExitStack,
    options: tuple[str, ...],
    address: str | None = None,
    faults: tuple[str, ...] = _SLOW,
) -> Server:
    bind = () if address is None else ("--bind", address)
    server = Server(stage.new_folder(), (*bind, *options), faults, stage.sabotage)
    stack.callback(server.kill)
    return server.ready()
