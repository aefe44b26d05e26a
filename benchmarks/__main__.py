"""`make bench`: every performance figure, as a ratio against a named baseline in the same run.

    make bench                      all parts
    make bench ARGS='wire --json'   one part, as JSON

Needs an idle machine; medians of paired turns, one thread a side. Where a figure has a goal, it is
printed behind it, and whether it is held.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable

from benchmarks import machine
from benchmarks.goals import Row, as_text, judged


def _objective() -> Iterable[Row]:
    from benchmarks.trainer import objective, objective_peers

    yield from objective.measure()
    yield from objective_peers.measure()


def _wire() -> Iterable[Row]:
    from benchmarks.teacher import wire

    return wire.measure()


def _service() -> Iterable[Row]:
    from benchmarks.teacher import service

    return service.measure()


def _trainer() -> Iterable[Row]:
    from benchmarks.trainer import pipelined, whole_run

    yield from whole_run.measure()
    yield from pipelined.measure()


def _teacher() -> Iterable[Row]:
    from benchmarks.teacher import serving as teacher

    return teacher.measure()


def _gpu() -> Iterable[Row]:
    from benchmarks.teacher import gpu

    return gpu.measure()


def _gpu_student() -> Iterable[Row]:
    from benchmarks.trainer import gpu as gpu_student

    return gpu_student.measure()


def _data() -> Iterable[Row]:
    from benchmarks import data

    return data.measure()


PARTS: dict[str, tuple[str, Callable[[], Iterable[Row]]]] = {
    "service": ("A KD step through the service / the same step in one process", _service),
    "teacher": ("The teacher server: gRPC, padding, sharing, a large vocabulary", _teacher),
    "gpu": ("A 7B teacher on one CUDA device", _gpu),
    "gpu_student": ("A student of 0.5B on one CUDA device", _gpu_student),
    "wire": ("Reply stream against a raw socket and a unary reply, over loopback", _wire),
    "trainer": (
        "Whole steps with a teacher server: against TRL, and what pipelining hides",
        _trainer,
    ),
    "data": ("data prepare: processes / the tokenizers library's own threads", _data),
    "objective": ("Chunked objective against plain PyTorch, TRL and Liger", _objective),
}


def main() -> None:
    """Prints the figures of the named parts, or of all."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but gpu*")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    about, results = machine.about_this_machine(), dict[str, list[Row]]()
    if not options.json:
        print(machine.as_text(about))
    # Those of a GPU are minutes of work on a card, and asked for by name.
    for name in options.parts or [name for name in PARTS if not name.startswith("gpu")]:
        title, measure = PARTS[name]
        if not options.json:
            print(f"\n{name}: {title}", flush=True)
        results[name] = []
        for row in measure():
            results[name].append(judged(row))
            if not options.json:
                print("  " + as_text(results[name][-1]), flush=True)
    if options.json:
        json.dump({"about": about, **results}, sys.stdout, indent=2)
        print()


if __name__ == "__main__":
    main()
