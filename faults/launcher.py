"""python -m faults.launcher PROGRAM [--fault NAME] [--sabotage ROW] -- OPTIONS

Runs a teacher server, a trainer, a control plane or the command as `python -m` does, after
injecting the named faults (injections.py of its side) and removing the one protection that
`--sabotage` names (sabotage.py). So the programs themselves need no such hooks. Trainers of a
control plane are started through this launcher too, with the faults of `--trainer-fault`.
"""

import argparse
import runpy
import sys
from typing import Any

from faults.control import injections as control_injections
from faults.control import stand_in
from faults.rollouts import injections as rollout_injections
from faults.teacher import injections, sabotage
from faults.trainer import injections as trainer_injections

_MODULES = {
    "teacher": "teacher_server",
    "trainer": "student_trainer",
    "control": "control_plane",
    "lectern": "lectern",
}
FAULTS = {
    "teacher": injections.FAULTS,
    "trainer": {**trainer_injections.FAULTS, **rollout_injections.FAULTS, **stand_in.FAULTS},
    "control": control_injections.FAULTS,
    "lectern": {},
}


def _launch_ranks_alike(words: list[str]) -> None:
    """Makes a trainer on several devices start its ranks through this launcher too."""
    from faults.replacing import put
    from student_trainer.ranks import supervisor as rank_processes

    supervise = rank_processes.supervise

    def launched(command: list[str], *arguments: Any, **named: Any) -> int:
        start = command.index("student_trainer")
        alike = [*command[:start], "faults.launcher", *words, *command[start + 1 :]]
        return supervise(alike, *arguments, **named)

    put(rank_processes, "supervise", launched)


def _launch_trainers_alike(faults: list[str], sabotaged: str | None) -> None:
    """Makes a control plane start its trainers through this launcher too."""
    from control_plane.trainers.launching import fork_server, processes
    from faults.replacing import put

    words = [word for fault in faults for word in ("--fault", fault)]
    words += ["--sabotage", sabotaged] if sabotaged is not None else []
    argv = (sys.executable, "-m", "faults.launcher", "trainer", *words, "--")
    put(processes, "TRAINER_ARGV", argv)
    put(fork_server, "FORK_SERVER_ARGV", (*argv, "--fork-server"))


def main(argv: list[str]) -> None:
    """Makes the requested changes, then becomes the program."""
    split = argv.index("--")
    parser = argparse.ArgumentParser(prog="python -m faults.launcher")
    parser.add_argument("program", choices=tuple(_MODULES))
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--trainer-fault", action="append", default=[])
    parser.add_argument("--sabotage", choices=tuple(sabotage.ROWS))
    asked, options = parser.parse_args(argv[:split]), argv[split + 1 :]
    if asked.sabotage is not None:
        sabotage.ROWS[asked.sabotage](asked.program)
    for fault in asked.fault:
        name, _, value = fault.partition("=")
        FAULTS[asked.program][name](value)
    if asked.program == "control":
        _launch_trainers_alike(asked.trainer_fault, asked.sabotage)
    if asked.program == "trainer" and split > 1:
        _launch_ranks_alike(argv[: split + 1])
    module = _MODULES[asked.program]
    sys.argv = [module, *options]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
