"""The control plane with 1,000 runs and one run of a million lines.

The goals are absolute, for a machine of two cores; each row has a baseline of the same run beside
it: the list while nothing happens, the chart by a plain pass over the lines, no stream at all.
"""

import asyncio
import itertools
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import quantiles

from benchmarks.control.home import make_home, spec_body, write_metrics, write_model
from benchmarks.control.service import STAND_IN, Service, reading_streams, serving
from benchmarks.goals import Row
from benchmarks.pairs import seconds
from lectern_common.json_lines import keep_lines_before, position_of, read_json_lines
from lectern_common.logs import configure_logs
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder

_CHART = "keys=loss/total,loss/ce,loss/val&max_points=500"
_PLAIN_LINES = 20_000  # read to know what a plain pass costs
_SHORT_STEPS = 20  # of runs that come and go
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    runs: int = 1000
    lines: int = 10_000
    long_lines: int = 1_000_000
    requests: int = 200
    streams: int = 200
    seconds: float = 20.0
    with_real_trainer: bool = True


QUICK = Sizes(
    runs=12, lines=200, long_lines=5000, requests=5, streams=6, seconds=1, with_real_trainer=False
)


def measure(sizes: Sizes = Sizes()) -> Iterator[Row]:
    """Yields the rows, one after the other; the whole takes some minutes."""
    configure_logs("warning")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        roots, long_id = make_home(home, sizes.runs, sizes.lines, sizes.long_lines)
        long = RunFolder(roots.runs / long_id)
        plain = _plain_seconds(home / "plain.jsonl", sizes.long_lines)
        with serving(home, STAND_IN, max_running=8) as service:
            yield _index_built(service, long, sizes, plain)
            yield _idle(service, sizes)
            yield from _lists(service, long_id, sizes)
        with serving(home, STAND_IN, max_running=8) as service:
            yield _cold_chart(service, long_id, plain)
            yield _streams(service, sizes)
        yield _resume(long, sizes, plain)
    if sizes.with_real_trainer:
        yield _first_step()


def _plain_seconds(path: Path, num_lines: int) -> float:
    """Returns what parsing so many lines costs, from a part of them."""
    write_metrics(path, min(num_lines, _PLAIN_LINES))
    return seconds(lambda: read_json_lines(path)) * max(1, num_lines / _PLAIN_LINES)


def _index_built(service: Service, long: RunFolder, sizes: Sizes, plain: float) -> Row:
    built = service.seconds(f"/runs/{long.run_id}/series?{_CHART}")
    index = long.metrics_index_path
    return {
        "what": f"index of {sizes.long_lines:,} lines, built once",
        "seconds": built,
        "plain_pass_seconds": plain,
        "index_share_of_metrics": index.stat().st_size / long.metrics_path.stat().st_size,
    }


def _idle(service: Service, sizes: Sizes) -> Row:
    return {
        "what": f"idle, {sizes.runs:,} runs",
        "cores": service.cpu_share(sizes.seconds),
        "megabytes": service.memory_bytes() / 1e6,
        "goals": {"cores": "<= 0.005", "megabytes": "<= 120"},
    }


def _lists(service: Service, long_id: str, sizes: Sizes) -> Iterator[Row]:
    page = (
        f"/runs/{long_id}",
        f"/runs/{long_id}/series?{_CHART}",
        f"/runs/{long_id}/samples",
        f"/runs/{long_id}/logs",
    )

    def list_runs() -> None:
        service.get("/runs?limit=50")

    def run_page() -> None:
        for path in page:
            service.get(path)

    quiet = (_p95(list_runs, sizes.requests), _p95(run_page, sizes.requests))
    with _coming_and_going(service, at_once=8):
        busy = (_p95(list_runs, sizes.requests), _p95(run_page, sizes.requests))
    names = (("list of 50 runs", "<= 0.1"), ("page of the long run, four requests", "<= 0.3"))
    for (what, goal), alone, together in zip(names, quiet, busy, strict=True):
        yield {
            "what": f"{what}, while 8 runs come and go",
            "p95_seconds": together,
            "quiet_p95_seconds": alone,
            "goals": {"p95_seconds": goal},
        }


def _cold_chart(service: Service, long_id: str, plain: float) -> Row:
    path = f"/runs/{long_id}/series?{_CHART}"
    service.get("/healthz")
    cold = service.seconds(path)
    answer = service.get(path, **{"Accept-Encoding": "identity"})
    packed = service.get(path, **{"Accept-Encoding": "gzip"})
    return {
        "what": "chart of three metrics of the long run, first request after a start",
        "seconds": cold,
        "plain_pass_seconds": plain,
        "kilobytes": len(answer.content) / 1e3,
        "kilobytes_sent_compressed": int(packed.headers.get("content-length", 0)) / 1e3,
        "goals": {"seconds": "<= 0.15", "kilobytes": "<= 200"},
    }


def _streams(service: Service, sizes: Sizes) -> Row:
    steps = 10_000_000
    ids = [_create(service, f"changing-{number}", steps) for number in range(4)]
    for run_id in ids:
        _wait(partial(_has_stepped, service, run_id))
    alone = service.cpu_share(sizes.seconds)
    paths = [*("/events" for _ in range(sizes.streams // 2))]
    paths += [f"/runs/{run_id}/events" for run_id in ids * sizes.streams][: sizes.streams // 2]
    events, share = asyncio.run(reading_streams(service, paths, sizes.seconds))
    return {
        "what": f"{len(paths)} streams with 4 runs of 10 steps a second",
        "cores": share,
        "cores_without_streams": alone,
        "events_per_second": events / sizes.seconds,
        "goals": {"cores": "<= 0.3"},
    }


def _resume(long: RunFolder, sizes: Sizes, plain: float) -> Row:
    path, step = long.metrics_path, sizes.long_lines * 9 // 10
    cut = seconds(lambda: keep_lines_before(path, step))
    if position_of(path, step).offset != path.stat().st_size:
        raise RuntimeError("the metrics were not cut")
    return {
        "what": f"a resume's cut of {sizes.long_lines:,} lines",
        "seconds": cut,
        "plain_pass_seconds": plain,
        "goals": {"seconds": "<= 2"},
    }


def _first_step() -> Row:
    with tempfile.TemporaryDirectory() as name:
        write_model(Roots.of_home(Path(name)).models / "tiny")
        with serving(Path(name), (), max_running=2) as service:
            times = []
            for number in range(3):
                began = time.perf_counter()
                run_id = _create(service, f"first-{number}", steps=1_000_000)
                _wait(partial(_has_stepped, service, run_id))
                times.append(time.perf_counter() - began)
                service.client.post(f"/runs/{run_id}/stop").raise_for_status()
                _wait(partial(_has_stopped, service, run_id))
    return {
        "what": "from POST /runs to the first step, real trainer",
        "seconds": sorted(times)[1],
        "first_of_all_seconds": times[0],
        "goals": {"seconds": "<= 5"},
    }


@contextmanager
def _coming_and_going(service: Service, at_once: int) -> Iterator[None]:
    """Keeps that many short runs in flight, each followed by another; at the end none is left."""
    ended = threading.Event()

    def keep(number: int) -> None:
        for again in itertools.count():
            run_id = _create(service, f"short-{number}-{again}", _SHORT_STEPS)
            while _state(service, run_id) not in ("succeeded", "failed"):
                time.sleep(0.5)
            if ended.is_set():
                return

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(at_once)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _create(service: Service, name: str, steps: int) -> str:
    response = service.client.post("/runs", json=spec_body(name, steps)).raise_for_status()
    return str(response.json()["id"])


def _state(service: Service, run_id: str) -> str:
    return str(service.get(f"/runs/{run_id}").json()["state"])


def _has_stepped(service: Service, run_id: str) -> bool:
    return bool(service.get(f"/runs/{run_id}").json()["step"] > 0)


def _has_stopped(service: Service, run_id: str) -> bool:
    return _state(service, run_id) == "stopped"


def _wait(condition: Callable[[], bool], limit_seconds: float = 300.0) -> None:
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a run did not get as far as expected")
        time.sleep(_POLL_SECONDS)


def _p95(work: Callable[[], object], count: int) -> float:
    times = [seconds(work) for _ in range(count)]
    return quantiles(times, n=20)[-1] if len(times) > 1 else times[0]
