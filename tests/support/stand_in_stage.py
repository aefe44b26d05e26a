"""A stage without a model, in the life of a real one: `python stand_in_stage.py STAGE FOLDER`.

It counts, keeps how far it is in its work folder, and behaves as its request says.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt

from lectern_common.errors import InvalidRequest, NotFound, TeacherUnavailable
from lectern_common.roots import Roots
from lectern_common.stages.evaluate import EvaluateRequest
from lectern_common.stages.requests import REQUESTS
from lectern_common.stages.status import Report
from student_trainer.__main__ import do_task
from student_trainer.stages.table import Stage
from student_trainer.stop import Stop

PROGRAM = (sys.executable, str(Path(__file__)))


class CountRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    run: str = ""
    count: PositiveInt = 3
    seconds: float = 0.0
    end: Literal[
        "succeeds", "missing", "wrong_field", "teacher_away", "breaks", "killed", "not_json"
    ] = "succeeds"


def count(
    asked: CountRequest, roots: Roots, work: Path, *, stop: Stop, report: Report
) -> dict[str, Any]:
    """Counts one by one; what is counted survives a stop and a kill."""
    counted = work / "counted"
    done = len(counted.read_bytes()) if counted.exists() else 0
    began_at = done
    report(f"counting from {done}", 0, 0)
    print("counts", flush=True)
    while done < asked.count:
        stop.sleep(asked.seconds)
        with counted.open("ab") as file:
            file.write(b".")
        done += 1
        report("numbers", done, asked.count)
        if asked.end == "killed" and done == began_at + 1:
            os.kill(os.getpid(), signal.SIGKILL)
    if asked.end == "missing":
        raise NotFound("there is no such model")
    if asked.end == "wrong_field":
        raise InvalidRequest("is too large", field="count")
    if asked.end == "teacher_away":
        raise TeacherUnavailable("the teacher does not answer")
    if asked.end == "breaks":
        raise RuntimeError("a bug")
    value = float("nan") if asked.end == "not_json" else 0.5
    return {"count": done, "began_at": began_at, "score": value, "markdown": f"counted {done}\n"}


def measure(
    asked: EvaluateRequest, roots: Roots, work: Path, *, stop: Stop, report: Report
) -> dict[str, Any]:
    """Counts to the request's seed, ten a second; returns a result like that of an evaluation."""
    counting = CountRequest(run=asked.model, count=asked.seed or 1, seconds=0.1)
    counted = count(counting, roots, work, stop=stop, report=report)
    found = {"loss": 2.0 if asked.weights == "initial" else 1.25, "perplexity": 3.5}
    suites = {"perplexity": {**found, "bits_per_byte": 0.75, "tokens": 100}}
    return {**counted, "suites": suites, "markdown": "# Measured\n"}


STAGES = {"evaluate": Stage(lambda: CountRequest, lambda: count)}
STAGES["export"] = STAGES["publish"] = STAGES["precompute"] = STAGES["evaluate"]
# Of a control plane's trainers, which are sent what was asked over REST.
OF_A_PLANE = {"evaluate": Stage(REQUESTS["evaluate"], lambda: measure)}


def main(words: list[str]) -> int:
    """Does the task that words name, after options of the stand-in trainer."""
    at = next(place for place, word in enumerate(words) if word in STAGES)
    return do_task(words[at:], OF_A_PLANE)


if __name__ == "__main__":
    sys.exit(do_task(sys.argv[1:], STAGES))
