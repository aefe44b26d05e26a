"""C11 and C12: a thousand runs, a million lines, two hundred open streams."""

import json
import os
import signal
import statistics
import time

import psutil

from faults.control.plane import Plane, body_of, end_trainers, new_home, plane
from faults.processes import start_module
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.run import Home
from lectern_common.run.folder import RunFolder

C11_LIST_SECONDS = 0.1
C11_PAGE_SECONDS = 0.3
C11_CHART_SECONDS = 0.15
C11_CHART_BYTES = 200 * 1024
C11_RESUME_SECONDS = 2.0
C12_CORES = 0.3
C12_STOP_SECONDS = 5.0
C12_GROWTH_BYTES = 100 * 1024 * 1024
_LINES, _MANY_LINES = 10_000, 1_000_000


def many_runs(stage: Stage) -> Tally:
    """C11: 1,000 runs of 10,000 metric lines, and one of 1 M lines, while 4 others train."""
    tally, home = Tally(), new_home(stage)
    count = stage.tries(1000, 100)
    lines = stage.tries(_MANY_LINES, 50_000)
    stage.say("writing runs")
    long_run, runs = _written(stage, home, count, lines)
    charts = [f"/runs/{run_id}/series?max_points=500" for run_id in (long_run, *runs[:8])]
    stage.say("indexing them")
    # A control plane indexes metrics as they are written; these were not written under one.
    with plane(stage, home) as service:
        indexing = sum(_timed(tally, service, path)[0] for path in charts)
    room = ("--max-running-runs", "8")
    with plane(stage, home, *room, trainers=("stand-in=0.1",)) as service:
        for _ in range(4):
            service.wait_for_state(service.create("steady"), "running")
        stage.say("reading them")
        cold = [_timed(tally, service, path) for path in charts]
        listed = [_timed(tally, service, "/runs?limit=50")[0] for _ in range(stage.tries(100, 20))]
        pages = [_timed(tally, service, f"/runs/{run_id}")[0] for run_id in (long_run, *runs[:20])]
        list_p95 = statistics.quantiles(listed, n=20)[-1]
        chart, largest = max(seconds for seconds, _ in cold), max(size for _, size in cold)
        tally.require(largest <= C11_CHART_BYTES, f"a chart has {largest} bytes")
        tally.require_within(list_p95, C11_LIST_SECONDS, "the list of 50 (p95)")
        tally.require_within(max(pages), C11_PAGE_SECONDS, "the page of a run")
        tally.require_within(chart, C11_CHART_SECONDS, "a chart after a start")
        resumed = _resumed(tally, service, long_run, lines)
        tally.require_within(resumed, C11_RESUME_SECONDS, f"a resume at {lines} lines")
    tally.figure = (
        f"list p95 {1000 * list_p95:.0f} ms, page {1000 * max(pages):.0f} ms, chart "
        f"{1000 * chart:.0f} ms and {largest // 1024} KB after a start (indexing them took "
        f"{indexing:.0f} s, once), resume at {lines:,} lines {resumed:.1f} s"
    )
    return tally


def _timed(tally: Tally, service: Plane, path: str) -> tuple[float, int]:
    """Returns the seconds and bytes of an answer, which is counted."""
    begun = time.perf_counter()
    answer = service.client.get(path)
    seconds = time.perf_counter() - begun
    tally.count(answer.status_code == 200, f"GET {path}: {answer.status_code}")
    return seconds, len(answer.content)


def _written(stage: Stage, home: Home, count: int, lines: int) -> tuple[str, list[str]]:
    """Returns a stopped run with many lines, and `count` with fewer, which are one file."""
    from control_plane.runs.commands import RunCommands
    from control_plane.runs.store import Store
    from lectern_common.logs import configure_logs
    from lectern_common.spec.load import parse_spec

    configure_logs("error")  # not a line for each run
    home.roots.runs.mkdir(exist_ok=True)
    store = Store.open(home.roots.runs / "control-plane.sqlite3")
    commands = RunCommands(store, max_queued=count + 1)
    spec = parse_spec(body_of("steady", 2 * lines))
    ids = [commands.create(spec).id for _ in range(count + 1)]
    for run_id in ids:
        commands.request_stop(run_id)
    store.close()
    shared = stage.new_folder() / "metrics.jsonl"
    shared.write_bytes(b"".join(map(_line, range(_LINES))))
    for run_id in ids:
        folder = RunFolder.create(home.roots.runs, run_id, spec)
        if run_id != ids[0]:
            os.link(shared, folder.metrics_path)
    with RunFolder(home.roots.runs / ids[0]).metrics_path.open("wb") as file:
        for first in range(0, lines + 1, _LINES):
            file.write(b"".join(map(_line, range(first, min(first + _LINES, lines + 1)))))
    checkpoint = RunFolder(home.roots.runs / ids[0]).checkpoints_path / f"step-{lines:08d}"
    checkpoint.mkdir(parents=True)
    return ids[0], ids[1:]


def _line(step: int) -> bytes:
    record = {"step": step, "loss/total": 9 / (1 + step), "loss/ce": 9 / (1 + step)}
    return json.dumps({**record, "perf/tokens_per_second": 1234.5}).encode() + b"\n"


def _resumed(tally: Tally, service: Plane, run_id: str, lines: int) -> float:
    """Returns the seconds from a trainer's start to its next step, beyond those of an empty run."""
    plain = service.create("steady")
    service.wait_for_state(plain, "running")
    service.post(f"/runs/{plain}/stop")
    service.wait_for_state(plain, "stopped")
    taken = []
    for resumed, step in ((plain, service.run(plain)["step"]), (run_id, lines)):
        begun = time.monotonic()
        service.post(f"/runs/{resumed}/resume")
        run = service.wait_for_progress(resumed, step)
        taken.append(time.monotonic() - begun)
        tally.count(run["step"] > step, f"the resumed run is {run['state']}: {run['message']}")
    return max(0.0, taken[1] - taken[0])


def many_streams(stage: Stage) -> Tally:
    """C12: 200 event streams over 4 changing runs, slow ones and lost ones among them."""
    tally, home = Tally(), new_home(stage)
    streams, seconds = stage.tries(200, 40), stage.tries(20, 5)
    service = Plane(stage, home, trainers=("stand-in=0.1",))
    try:
        service.ready()
        runs = [service.create("steady") for _ in range(4)]
        for run_id in runs:
            service.wait_for_steps(run_id, 3)
        before = service.usage().memory_bytes
        watched = ("watch", service.address, str(streams), *runs)
        head = json.dumps(service.headers).encode() + b"\n"
        clients = start_module("faults.control.watchers", *watched, stdin=head)
        try:
            if clients.stdout is None or clients.stdin is None:
                raise RuntimeError("no pipes")
            opened = json.loads(clients.stdout.readline())
            tally.require(opened["open"] == streams, f"{opened} of {streams} streams opened")
            cores = _cores(service.pid, seconds)
            grown = service.usage().memory_bytes - before
            for run_id in runs:
                service.post(f"/runs/{run_id}/stop")
            ends = {run_id: service.wait_for_state(run_id, "stopped") for run_id in runs}
            words = json.dumps({run_id: run["step"] for run_id, run in ends.items()})
            clients.stdin.write(f"{words}\n".encode())
            clients.stdin.flush()
            for problem in json.loads(clients.stdout.readline()):
                tally.count(not problem, problem)
            begun = time.monotonic()
            service.signal(signal.SIGTERM)
            ended = service.wait(60)
            stop = time.monotonic() - begun
        finally:
            clients.kill()
            clients.communicate()
    finally:
        service.kill()
        end_trainers(home)
    tally.require(ended == 0, f"it exited with status {ended}")
    tally.require(grown <= C12_GROWTH_BYTES, f"memory grew by {grown >> 20} MiB")
    if cores > C12_CORES:
        tally.late.append(f"it took {cores:.2f} of a core; it may take {C12_CORES}")
    tally.require_within(stop, C12_STOP_SECONDS, "ending with open streams")
    tally.figure = (
        f"nothing lost or doubled, over lost connections too; {cores:.2f} of a core, memory "
        f"+{grown / 2**20:.0f} MiB; SIGTERM ends it within {stop:.1f} s"
    )
    return tally


def _cores(pid: int, seconds: float) -> float:
    """Returns the share of a core that a process takes over some seconds."""
    process = psutil.Process(pid)
    begun, before = time.monotonic(), sum(process.cpu_times()[:2])
    time.sleep(seconds)
    used: float = sum(process.cpu_times()[:2]) - before
    return used / (time.monotonic() - begun)
