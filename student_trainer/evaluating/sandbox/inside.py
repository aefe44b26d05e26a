"""The first program inside a sandbox: takes one Python program, limits itself, and runs it.

It is passed to an interpreter as text, imports only the standard library, and reads a JSON object
from standard input: {"program", "word", "limits": {name of resource: value}}. It writes lines to
standard output: `WORD started`, then `WORD passed` or `WORD failed REASON`. `word` is random, and
only a program that ran to its end without an exception has passed: one that exits, even with status
0, has not.
"""

import contextlib
import json
import os
import resource
import sys
import types

_MAX_REASON = 300


def _nothing_to_read_or_print() -> int:
    """Returns a descriptor of the real standard output; 0, 1 and 2 lead nowhere from now on."""
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    return answers


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(number, (value, value))


def _die_first_of_all() -> None:
    """If the machine runs out of memory, this process is killed before any other."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    program, word = asked["program"], asked["word"]
    answers = _nothing_to_read_or_print()
    _die_first_of_all()
    _limit(asked["limits"])
    module = types.ModuleType("program")
    sys.modules["program"] = module
    sys.argv = ["program"]
    del asked
    os.write(answers, f"{word} started\n".encode())
    try:
        exec(compile(program, "program", "exec"), module.__dict__)  # noqa: S102
    except BaseException as error:
        try:
            text = " ".join(f"{type(error).__name__}: {error}".split())[:_MAX_REASON]
        except BaseException:
            text = "an exception that cannot be printed"
        os.write(answers, f"{word} failed {text}\n".encode(errors="replace"))
        os._exit(1)
    os.write(answers, f"{word} passed\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
