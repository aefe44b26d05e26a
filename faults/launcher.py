"""python -m faults.launcher teacher|trainer [--fault NAME] [--sabotage ROW] -- OPTIONS

Runs a teacher server or a trainer as `python -m` does, after changing what is named: faults that
happen to it (injections.py), and the one protection that `--sabotage` takes away (sabotage.py). So
no such hook stands in the programs themselves.
"""

import argparse
import runpy
import sys

from faults import injections, sabotage

_MODULES = {"teacher": "teacher_server", "trainer": "student_trainer"}


def main(argv: list[str]) -> None:
    """Changes what is asked for, then is the program."""
    split = argv.index("--")
    parser = argparse.ArgumentParser(prog="python -m faults.launcher")
    parser.add_argument("program", choices=tuple(_MODULES))
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--sabotage", choices=tuple(sabotage.ROWS))
    asked, options = parser.parse_args(argv[:split]), argv[split + 1 :]
    for fault in asked.fault:
        injections.inject(fault)
    if asked.sabotage is not None:
        sabotage.ROWS[asked.sabotage](asked.program)
    module = _MODULES[asked.program]
    sys.argv = [module, *options]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
