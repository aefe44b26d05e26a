"""T13 to T15 and T17: health under load, readiness, draining, and a broken device."""

import json
import signal
import threading
import time
from contextlib import ExitStack
from typing import Any

import grpc

from faults.models import write_model
from faults.processes import Server, start_module, wait_for
from faults.row import Tally
from faults.stage import Stage
from faults.teacher.clients.asking import Refusal, ask, connect, health, request, score, stub
from protos import teacher_pb2 as pb

_FIXTURE = ("--engine", "fixture", "--vocab-size")

T13_P99_SECONDS = 0.2


def health_under_load(stage: Stage) -> Tally:
    """T13: a real model with a full queue, health checked fifty times a second."""
    tally = Tally()
    model = write_model(stage.folder / "model", vocab_size=1000, hidden=256, layers=12)
    # A forward takes much longer than a health check may.
    queue = ("--max-queued-requests", "16", "--batch-tokens", "4096")
    with stage.server("--model", str(model), *queue, faults=("unmeasured",)) as server:
        load = start_module("faults.teacher.clients.load", "scoring", server.address, "32", "256")
        try:
            with connect(server.address) as channel:
                asked = pb.GetStatsRequest(protocol_version=1)
                full = wait_for(lambda: stub(channel).GetStats(asked).refused_requests > 20)
            tally.require(full, "the queue did not fill")
            probe = start_module("faults.teacher.clients.load", "probe", server.address)
            seconds = stage.tries(20, 8)
            for second in range(seconds):
                stage.say(f"{second} of {seconds} seconds")
                time.sleep(1)
            report = json.loads(probe.communicate()[0])
        finally:
            load.kill()
            load.communicate()
    tally.tries = report["checks"]
    tally.survived = report["checks"] - report["failed"]
    tally.require_within(report["p99"], T13_P99_SECONDS, "p99 of health")
    tally.figure = (
        f"health answers with p99 {1000 * report['p99']:.0f} ms, max {1000 * report['max']:.0f} ms"
    )
    return tally


def readiness(stage: Stage) -> Tally:
    """T14: health and calls agree from the time the port opens until it closes."""
    tally = Tally()
    answers = 0
    for number in range(stage.tries(5, 2)):
        stage.say(f"start {number + 1}")
        server = Server(
            stage.new_folder(),
            (*_FIXTURE, "97", "--max-queued-requests", "16"),
            ("slow-load=1", "slow-fixture=0.001"),
            stage.sabotage,
        )
        try:
            answers += _one_life(server, tally)
        finally:
            server.kill()
    tally.figure = f"{answers} answers of health and calls agree while loading and draining"
    return tally


def _one_life(server: Server, tally: Tally) -> int:
    """Watches one server from start to end; returns how many answers were checked."""
    wait_for(lambda: "address=" in server.log or not server.alive)
    address = server.log.split("address=")[1].split()[0]
    looked_at = 0
    wrong: set[str] = set()
    with connect(address) as channel:
        while True:  # loading
            answer = ask(channel, request([[1]]))
            said = health(channel)
            looked_at += 2
            if not isinstance(answer, Refusal):
                break
            if answer.code != "UNAVAILABLE" or "loading" not in answer.detail:
                wrong.add(f"a call while loading was answered {answer.code} {answer.detail}")
            # Health may have changed since the call.
            if said == "SERVING" and isinstance(ask(channel, request([[1]])), Refusal):
                wrong.add("health was SERVING, and calls were still refused")
            if said not in ("SERVING", "NOT_SERVING"):
                wrong.add(f"while loading health was {said}")
            time.sleep(0.005)
        if said != "SERVING":
            wrong.add(f"a call was taken while health was {said}")

        call = stub(channel).LogitsForBatch(request([[1] * 1500], run_id="last"))
        next(call)
        server.signal(signal.SIGTERM)
        wait_for(lambda: health(channel) != "SERVING", 5)
        begun = time.monotonic()
        while time.monotonic() - begun < 0.3:  # draining: the last call takes longer
            said, answer = health(channel), ask(channel, request([[1]]))
            looked_at += 2
            if said != "NOT_SERVING":
                wrong.add(f"while draining health was {said}")
            if not isinstance(answer, Refusal) or answer.code != "UNAVAILABLE":
                wrong.add("a call was taken while draining")
        rows = sum(part.piece.num_rows for part in call)
        if rows != 1500:
            wrong.add(f"the call in flight got {rows} of 1500 rows")
    status = server.wait(30)
    if status != 0:
        wrong.add(f"it ended with status {status}")
    tally.count(not wrong, "; ".join(sorted(wrong)))
    return looked_at


T15_CALLS = 8
T15_SECOND_SIGNAL_SECONDS = 1.0
_T15_GRACE_SECONDS = 10.0


def drain(stage: Stage) -> Tally:
    """T15: SIGTERM with eight calls in flight; then a second SIGTERM."""
    tally = Tally()
    slowest = second = 0.0
    for number in range(stage.tries(5, 2)):
        stage.say(f"SIGTERM {number + 1}")
        options = (*_FIXTURE, "97", "--drain-seconds", str(_T15_GRACE_SECONDS))
        with ExitStack() as stack:
            server = stack.enter_context(stage.server(*options, faults=("slow-fixture=0.001",)))
            streams = _calls_in_flight(server, stack)
            server.signal(signal.SIGTERM)
            begun = time.monotonic()
            finished = sum(_is_whole(stream) for stream in streams)
            status = server.wait(30)
            took = time.monotonic() - begun
            slowest = max(slowest, took)
            tally.count(
                finished == T15_CALLS and status == 0 and took <= _T15_GRACE_SECONDS,
                f"{finished} of {T15_CALLS} calls finished, status {status} after {took:.1f} s",
            )
        with ExitStack() as stack:
            server = stack.enter_context(stage.server(*options, faults=("slow-fixture=0.01",)))
            streams = _calls_in_flight(server, stack)  # keeps the calls from being cancelled
            server.signal(signal.SIGTERM)
            time.sleep(0.3)
            waited = server.alive and len(streams) == T15_CALLS
            begun = time.monotonic()
            server.signal(signal.SIGTERM)
            server.wait(30)
            took = time.monotonic() - begun
            second = max(second, took)
            tally.count(waited, "it did not wait for the calls in flight")
            tally.require_within(took, T15_SECOND_SIGNAL_SECONDS, "ending after a second signal")
    tally.figure = (
        f"{T15_CALLS} calls in flight finish, exit 0 after {slowest:.1f} s at most; "
        f"a second signal ends it in {1000 * second:.0f} ms at most"
    )
    return tally


def _calls_in_flight(server: Server, stack: ExitStack) -> list[Any]:
    """Returns eight calls that were admitted and take 100 tokens each."""
    channel = stack.enter_context(connect(server.address))
    streams = [
        stub(channel).LogitsForBatch(request([[number] * 100], run_id=f"run-{number}"), timeout=60)
        for number in range(T15_CALLS)
    ]
    for stream in streams:
        next(stream)
    return streams


def _is_whole(stream: Any) -> bool:
    try:
        return bool(sum(part.piece.num_rows for part in stream) == 100)
    except grpc.RpcError:
        return False


_LOST_TOKEN = 13
_GOOD = [[3, 1, 4, 1, 5, 9, 2, 6]]


def lost_device(stage: Stage) -> Tally:
    """T17: a forward breaks the device, which would return garbage from then on."""
    tally = Tally()
    model = write_model(stage.folder / "model")
    garbage = right = 0
    slowest = 0.0
    for number in range(stage.tries(5, 1)):
        stage.say(f"device {number + 1}")
        with stage.server(
            "--model",
            str(model),
            *("--threads", "1", "--cache-bytes", "0"),
            faults=("unmeasured", f"lost={_LOST_TOKEN}", "slow-model=0.01"),
        ) as server:
            expected = score(server.address, request(_GOOD, "hidden"))
            others = _Others(server.address, expected)
            time.sleep(0.2)
            begun = time.monotonic()
            answer = score(server.address, request([[_LOST_TOKEN, 1]], "hidden", run_id="breaks"))
            status = server.wait(5)
            took = time.monotonic() - begun
            others.end()
            garbage, right = garbage + others.garbage, right + others.right
            slowest = max(slowest, took)
            refused = isinstance(answer, Refusal)
            tally.count(
                refused and status not in (None, 0) and others.garbage == 0,
                f"it ended with status {status} (None: still running); {others.garbage} answers "
                "were garbage",
            )
    tally.figure = (
        f"exits non-zero at most {slowest:.1f} s after the loss; {garbage} of {right + garbage} "
        "answers around it were garbage"
    )
    return tally


class _Others:
    """Clients that repeat one request and check every answer."""

    def __init__(self, address: str, expected: Any) -> None:
        self._address, self._expected = address, expected
        self.right = self.garbage = 0
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with connect(self._address) as channel:
            while not self._ended.is_set():
                answer = ask(channel, request(_GOOD, "hidden", run_id=f"other-{number}"), 5)
                if isinstance(answer, Refusal):
                    time.sleep(0.02)
                elif answer == self._expected:
                    self.right += 1
                else:
                    self.garbage += 1
