"""sbatch, squeue and scancel that a test answers for: small programs over one folder.

jobs.json      what squeue lists, one object a job
away, refuses  what every command, or sbatch, says on standard error before it fails
calls.jsonl    every call: its words, its standard input and its environment
"""

import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from control_plane.trainers.launching.slurm.launcher import SlurmLauncher
from control_plane.trainers.launching.slurm.script import SlurmOptions
from tests.support.fakes import FakeClock

_PROGRAM = """\
import json, os, pathlib, sys
folder, name, words = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
read = lambda file: (folder / file).read_text() if (folder / file).exists() else ""
jobs = json.loads(read("jobs.json") or "[]")
call = {"words": [name, *words], "stdin": sys.stdin.read(), "environment": dict(os.environ)}
with (folder / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
said = read("away") or (read("refuses") if name == "sbatch" else "")
if said:
    sys.exit(said)
if name == "sbatch":
    given = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    job = {"id": str(len(jobs) + 1), "name": given["job-name"], "tasks": given["ntasks"]}
    jobs.append({**job, "state": "PENDING", "raw": "0", "reason": "(Priority)"})
    print(job["id"] + ";cluster")
if name == "squeue":
    for job in jobs:
        fields = [job[key] for key in ("id", "name", "state", "raw", "tasks", "reason")]
        print("".join(field.ljust(20) + "|" for field in fields))
if name == "scancel" and not any(word.startswith("--signal") for word in words):
    for job in jobs:
        if job["id"] in words:
            job["state"] = "CANCELLED"
(folder / "jobs.json").write_text(json.dumps(jobs))
"""


@dataclass
class FakeSlurm:
    """Slurm's commands in `folder`/bin, and what they are to answer."""

    folder: Path

    def __post_init__(self) -> None:
        program = self.folder / "program.py"
        program.write_text(_PROGRAM)
        (self.folder / "bin").mkdir()
        for name in ("sbatch", "squeue", "scancel"):
            path = self.folder / "bin" / name
            words = f"exec {sys.executable} -I -S {program} {self.folder} {name}"
            path.write_text(f'#!/bin/sh\n{words} "$@"\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path}

    def launcher(self, clock: FakeClock, **options: Any) -> SlurmLauncher:
        """Returns a launcher; another one is that of a control plane that was restarted."""
        return SlurmLauncher(
            options=SlurmOptions(**options), clock=clock, env={**self.environment, "SECRET": "x"}
        )

    def calls(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for line in lines if (call := json.loads(line))["words"][0] == name]

    def say(self, file: str, text: str) -> None:
        (self.folder / file).write_text(text)

    def set_job(self, number: str, **fields: str) -> None:
        path = self.folder / "jobs.json"
        jobs = json.loads(path.read_text()) if path.exists() else []
        for job in jobs:
            if job["id"] == number:
                job.update(fields)
        path.write_text(json.dumps(jobs))

    def forget_jobs(self) -> None:
        self.say("jobs.json", "[]")
