"""What was measured of a student: by its run, and by evaluations of its export; nothing else."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lectern_common.errors import LecternError
from lectern_common.logs import get_logger
from lectern_common.stages.folder import TaskFolder
from student_trainer.exporting.finished import FinishedRun
from student_trainer.student.export import METADATA_NAME

_log = get_logger()

_LOSS = ("cross_entropy", "Cross entropy, nats a token")
_KL = ("kl", "KL divergence from the teacher, nats a token")
_TOP_1 = ("top1_agreement", "Same likeliest token as the teacher")
# Key in the export's metadata -> what the run measured on its validation rows.
_BY_THE_RUN = {
    "validation_loss": _LOSS,
    "validation_kl": _KL,
    "validation_top1_agreement": _TOP_1,
}
# Key in the result of a suite of an evaluation -> what it is.
_OF_SUITES = {
    "perplexity": {
        "loss": _LOSS,
        "perplexity": ("perplexity", "Perplexity"),
        "bits_per_byte": ("bits_per_byte", "Bits per byte"),
    },
    "agreement": {
        "kl": _KL,
        "top1_agreement": _TOP_1,
        "calibration_error": (
            "calibration_error",
            "Expected calibration error against the teacher",
        ),
    },
}
VALIDATION_ROWS = "validation rows"


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        what: it is, for people.
        key: it is, for programs.
        value: finite.
        on: the data that it was measured on.
    """

    what: str
    key: str
    value: float
    on: str


def measurements(run: FinishedRun) -> list[Measurement]:
    """Returns what was measured of the exported weights, the last of each kind.

    Evaluations of other weights of the run, such as those of a checkpoint or of an export that was
    replaced, are left out, and so are those that cannot be read.
    """
    found = {(one.key, one.on): one for one in _by_the_run(run.metadata)}
    for result in _evaluations(run):
        found |= {(one.key, one.on): one for one in _of_result(result)}
    return list(found.values())


def _by_the_run(metadata: Mapping[str, Any]) -> Iterator[Measurement]:
    for name, (key, what) in _BY_THE_RUN.items():
        yield from _measurement(what, key, metadata.get(name), VALIDATION_ROWS)


def _evaluations(run: FinishedRun) -> list[dict[str, Any]]:
    """Returns the results of evaluations of the run's export, in the order in which they ended."""
    exported_at = (run.export / METADATA_NAME).stat().st_mtime
    found = []
    for path in run.folder.tasks_path.glob("*"):
        task = TaskFolder(path)
        try:
            stage, _ = task.read_asked()
            result = task.read_result() if stage == "evaluate" else None
            ended_at = task.result_path.stat().st_mtime if result else 0.0
        except (LecternError, OSError) as error:
            _log.warning("evaluation_left_out", task=path.name, why=str(error))
            continue
        if result and ended_at >= exported_at and _is_of(run, result.get("model")):
            found.append((ended_at, path.name, result))
    return [result for _, _, result in sorted(found, key=lambda one: one[:2])]


def _is_of(run: FinishedRun, model: Any) -> bool:
    if not isinstance(model, dict):
        return False
    of_export = model.get("run") == run.folder.run_id and model.get("weights") == "export"
    return of_export and model.get("weights_sha256") in (None, run.weights_sha256)


def _of_result(result: Mapping[str, Any]) -> Iterator[Measurement]:
    suites = result.get("suites")
    for suite, values in suites.items() if isinstance(suites, dict) else ():
        if not isinstance(values, dict):
            continue
        on = str(values.get("data", "held-out text"))
        for name, (key, what) in _OF_SUITES.get(suite, {}).items():
            yield from _measurement(what, key, values.get(name), on)
        if suite == "code":
            yield from _of_code(values, result.get("request"))
        if suite == "lm_eval":
            yield from _of_harness(values.get("tasks"))


def _of_code(values: Mapping[str, Any], asked: Any) -> Iterator[Measurement]:
    options = asked.get("code") if isinstance(asked, dict) else None
    problems = options.get("problems") if isinstance(options, dict) else None
    on = f"{values.get('problems')} problems of {problems}, {values.get('mode')} mode"
    scores = values.get("pass_at_k")
    for k, value in scores.items() if isinstance(scores, dict) else ():
        yield from _measurement(f"pass@{k}", f"pass@{k}", value, on)


def _of_harness(tasks: Any) -> Iterator[Measurement]:
    for task, metrics in tasks.items() if isinstance(tasks, dict) else ():
        for key, value in metrics.items() if isinstance(metrics, dict) else ():
            yield from _measurement(str(key), str(key), value, f"lm-eval {task}")


def _measurement(what: str, key: str, value: Any, on: str) -> Iterator[Measurement]:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield Measurement(what, key, float(value), on)
