"""T12: floods of connections, pings and cancelled calls, and clients that never read."""

import contextlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen
from typing import Any

from faults.processes import Peak, Server, start_module
from faults.row import Tally
from faults.stage import Stage
from faults.teacher.clients.asking import Refusal, request, score, shown, stats

T12_HEALTH_SECONDS = 1.0
T12_CONNECTIONS = 1000
T12_READERS = 8
# What may be held for a client that does not read: 16 MiB (requests.py), a sequence's rows, and a
# piece in transit. Each client requests 125 MiB.
T12_BYTES_OF_A_READER = 24 << 20
_VOCAB_SIZE = 4096


def floods(stage: Stage) -> Tally:
    """T12: four floods, one after another, with health checked all the time."""
    tally = Tally()
    seconds = str(stage.tries(10, 3))
    slowest: dict[str, float] = {}
    counts: dict[str, int] = {}
    options = ("--engine", "fixture", "--vocab-size", str(_VOCAB_SIZE), "--cache-bytes", "0")
    with stage.server(*options) as server:
        attacks = {
            "connections": ("idle", str(stage.tries(T12_CONNECTIONS, 200))),
            "pings": ("ping", seconds),
            "calls taken back": ("reset", seconds),
        }
        for name, (how, amount) in attacks.items():
            stage.say(name)
            with _watched(server, name, tally, slowest):
                attacker = start_module(
                    "faults.teacher.clients.attackers", how, server.address, amount
                )
                counts[name] = _counted(attacker, lasting=how == "idle")
        wanted = stage.tries(T12_CONNECTIONS, 200)
        tally.require(
            counts["connections"] == wanted, f"{counts['connections']} of {wanted} connected"
        )
        stage.say("slow readers")
        with Peak(server.process.pid) as peak, _watched(server, "readers", tally, slowest):
            held = _slow_readers(server, stage.folder, tally)
            _wait_until_steady(server)
            held.kill()
            held.communicate()
    limit = T12_READERS * T12_BYTES_OF_A_READER
    tally.require(
        peak.grown_bytes <= limit,
        f"{T12_READERS} slow readers cost {peak.grown_bytes >> 20} MiB; the limit is {limit >> 20}",
    )
    tally.figure = (
        f"{counts['connections']} connections, {counts['pings']:,} pings, "
        f"{counts['calls taken back']:,} calls cancelled: health in "
        f"{1000 * max(slowest.values()):.0f} ms at most; {T12_READERS} slow readers cost "
        f"{peak.grown_bytes / T12_READERS / (1 << 20):.0f} MiB each"
    )
    return tally


@contextlib.contextmanager
def _watched(server: Server, name: str, tally: Tally, slowest: dict[str, float]) -> Iterator[None]:
    """Checks health all the time; afterwards judges it, and that calls are answered."""
    probe = start_module("faults.teacher.clients.load", "probe", server.address)
    time.sleep(0.5)
    try:
        yield
    finally:
        report: dict[str, Any] = json.loads(probe.communicate()[0])
    slowest[name] = report["max"]
    answer = _asked_again(server.address)
    tally.count(
        server.alive and not isinstance(answer, Refusal), f"{name}: afterwards {shown(answer)}"
    )
    tally.require_within(report["max"], T12_HEALTH_SECONDS, f"{name}: health")


def _asked_again(address: str) -> list[bytes] | Refusal:
    """Retries as a trainer does: gRPC refuses calls while it clears thousands of dead ones."""
    message = request([[1, 2]], vocab_size=_VOCAB_SIZE, run_id="other")
    for _ in range(20):
        answer = score(address, message)
        if not isinstance(answer, Refusal) or answer.code not in ("CANCELLED", "UNAVAILABLE"):
            break
        time.sleep(0.1)
    return answer


def _counted(attacker: "Popen[bytes]", *, lasting: bool) -> int:
    """Returns the count that an attacker prints; a lasting one is ended after 3 seconds."""
    if attacker.stdout is None:
        return 0
    number = int(attacker.stdout.readline() or b"0")
    if lasting:
        time.sleep(3)
    attacker.communicate()
    return number


def _wait_until_steady(server: Server) -> None:
    """Waits until no forward has run for a second, at most half a minute."""
    before = -1
    for _ in range(30):
        forwards = stats(server.address).forwards
        if forwards == before:
            return
        before = forwards
        time.sleep(1)


def _slow_readers(server: Server, folder: Path, tally: Tally) -> "Popen[bytes]":
    """Returns a process that asks for eight large replies and does not read them."""
    draw = random.Random(0)  # noqa: S311 - test data, not a secret
    paths = []
    for number in range(T12_READERS):
        ids = [[draw.randrange(_VOCAB_SIZE) for _ in range(128)] for _ in range(64)]
        message = request(ids, "top_k", vocab_size=_VOCAB_SIZE, top_k=2000, run_id=f"slow-{number}")
        paths.append(folder / f"request-{number}")
        paths[-1].write_bytes(message.SerializeToString())
    for _ in range(20):  # as in _asked_again
        readers = start_module(
            "faults.teacher.clients.attackers", "read", server.address, *map(str, paths)
        )
        if readers.stdout is not None and readers.stdout.readline() == b"reading\n":
            break
        readers.communicate()
        time.sleep(0.1)
    else:
        tally.require(False, "the slow readers received nothing")
    return readers
