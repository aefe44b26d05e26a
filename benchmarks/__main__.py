"""`make bench`: measures every performance figure against a named baseline in the same run.

    make bench                      all parts
    make bench ARGS='wire --json'   one part, as JSON
    make bench ARGS='on_policy --quick'

Run it on an idle machine. First it measures how much more work two cores do than one, because on a
shared machine two cores may be one. Each figure is a median over paired turns, one thread per side.
A figure with a goal is printed with the goal and whether it is met.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable

from benchmarks import machine
from benchmarks.goals import Row, as_text, judged
from benchmarks.scaling import two_core_scaling


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


def _on_policy() -> Iterable[Row]:
    from benchmarks.trainer.on_policy import memory, overlap, whole_step, writing

    yield from writing.measure()
    yield from memory.measure()
    yield from whole_step.measure()
    yield from overlap.measure()


def _on_policy_quick() -> Iterable[Row]:
    from benchmarks.trainer.on_policy import memory, overlap, steps, whole_step, writing

    one = steps.VOCABULARIES[:1]
    yield from writing.measure(pairs=1, vocabularies=one)
    yield from memory.measure(many=32)
    yield from whole_step.measure(pairs=1, steps=1, vocabularies=one)
    yield from overlap.measure(pairs=1, steps=1, vocabularies=one)


def _teacher() -> Iterable[Row]:
    from benchmarks.teacher import serving as teacher

    return teacher.measure()


def _http() -> Iterable[Row]:
    from benchmarks.teacher import http

    return http.measure()


def _gpu() -> Iterable[Row]:
    from benchmarks.teacher import gpu

    return gpu.measure()


def _gpu_student() -> Iterable[Row]:
    from benchmarks.trainer import gpu as gpu_student

    return gpu_student.measure()


def _control() -> Iterable[Row]:
    from benchmarks.control import figures

    return figures.measure()


def _data() -> Iterable[Row]:
    from benchmarks import data

    return data.measure()


def _record() -> Iterable[Row]:
    from benchmarks.record import formats, runs

    yield from formats.measure()
    yield from runs.measure()


PARTS: dict[str, tuple[str, Callable[[], Iterable[Row]]]] = {
    "service": ("A distillation step through the service, against one process", _service),
    "teacher": (
        "Teacher server: cost of gRPC, padding, sharing, a large vocabulary",
        _teacher,
    ),
    "gpu": ("A 7B teacher on one CUDA device", _gpu),
    "gpu_student": ("A 0.5B student on one CUDA device", _gpu_student),
    "wire": ("Reply stream against a raw socket and a unary reply, over loopback", _wire),
    "http": ("The HTTP face of a teacher against gRPC, the same rows from the cache", _http),
    "trainer": (
        "Whole training steps: against TRL, and how much pipelining hides",
        _trainer,
    ),
    "on_policy": (
        "On-policy: the generator against transformers' generate, whole steps against TRL",
        _on_policy,
    ),
    "record": ("Records: bytes, exactness, and how fast they are made and read", _record),
    "control": ("The control plane with 1,000 runs, one of a million lines", _control),
    "data": ("data prepare: worker processes against the tokenizers library's threads", _data),
    "objective": ("Chunked objective against plain PyTorch, TRL and Liger", _objective),
}

# Shorter, with one pair of each figure: to see that a part works; no figure to quote.
QUICK: dict[str, Callable[[], Iterable[Row]]] = {"on_policy": _on_policy_quick}


def main() -> None:
    """Prints the figures of the named parts; by default, of all but the GPU parts."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all but gpu*")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"one pair of each figure, to try a part: {', '.join(QUICK)}",
    )
    options = parser.parse_args()
    slow = [name for name in options.parts if name not in QUICK]
    if options.quick and (slow or not options.parts):
        parser.error(f"--quick is for {', '.join(QUICK)} only")
    about, results = machine.about_this_machine(), dict[str, list[Row]]()
    about["two_core_scaling"] = two_core_scaling()
    if not options.json:
        print(machine.as_text(about))
    # The GPU parts take minutes on a card, so they run only if named.
    for name in options.parts or [name for name in PARTS if not name.startswith("gpu")]:
        title, measure = PARTS[name]
        if options.quick:
            measure = QUICK[name]
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
