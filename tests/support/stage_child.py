"""Runs stages in a process of their own: a request a line on standard input, a result a line.

What a library reads from its environment when it is imported can only be set for a new process.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lectern_common.errors import InvalidRequest, LecternError, error_of
from lectern_common.roots import Roots
from lectern_common.stages.requests import parse_request
from student_trainer.stages.table import STAGES
from student_trainer.stop import Stop, StopRequested


@dataclass
class StageChild:
    """A process that runs the stages it is asked for, one after the other."""

    process: "subprocess.Popen[str]"
    home: Path
    count: int = 0

    def __call__(
        self, stage: str, work: Path | None = None, stop_at: str = "", **asked: Any
    ) -> dict[str, Any]:
        """Returns the stage's result and what it reported, under "reported".

        Args:
            stage: its name.
            work: its folder.
            stop_at: request a stop as soon as it reports that it counts this.
            asked: the fields of its request.

        Raises:
            StopRequested: it was stopped.
            LecternError: the error of the stage.
        """
        self.count += 1
        work = work or self.home / "work" / str(self.count)
        line = {"stage": stage, "asked": asked, "home": str(self.home), "work": str(work)}
        line["stop_at"] = stop_at
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or "{}")
        if "stopped" in answer:
            raise StopRequested
        if "error" in answer:
            error = error_of(answer["reason"], answer["error"])
            if isinstance(error, InvalidRequest):
                error.field = answer["field"]
            raise error
        return cast(dict[str, Any], answer["result"])


@contextmanager
def stage_child(home: Path, environment: Mapping[str, str]) -> Iterator[StageChild]:
    """Yields a process with the variables; they are added to this process's own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.stage_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        text=True,
    )
    try:
        yield StageChild(process, home)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.wait()


def _answer(line: Mapping[str, Any]) -> dict[str, Any]:
    reported: list[tuple[str, int, int]] = []
    stop = Stop()

    def report(what: str, done: int, of: int) -> None:
        reported.append((what, done, of))
        if what == line["stop_at"]:
            stop.request()

    work = Path(line["work"])
    work.mkdir(parents=True, exist_ok=True)
    try:
        request = parse_request(line["stage"], line["asked"])
        result = STAGES[line["stage"]].function()(
            request,
            Roots.of_home(Path(line["home"])),
            work,
            stop=stop,
            report=report,
        )
    except LecternError as error:
        field = error.field if isinstance(error, InvalidRequest) else None
        return {"error": str(error), "reason": error.reason, "field": field}
    except StopRequested:
        return {"stopped": True}
    left = [path.name for path in work.rglob("*")]
    return {"result": {**result, "reported": reported, "left": left}}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    for request_line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(request_line))) + "\n")
        answers.flush()
