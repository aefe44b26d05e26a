"""Tasks of lm-evaluation-harness, an extra: `pip install 'lectern[lm-eval]'`."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from lectern_common.errors import InvalidRequest, LecternError, Misconfigured, NotFound
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.suites import HarnessOptions
from lectern_common.stages.evaluate import EvaluateRequest
from lectern_common.stages.status import Report
from student_trainer.evaluating.kept import Kept
from student_trainer.evaluating.subject import Subject
from student_trainer.stop import Stop

_NAMED = 10


def evaluate_tasks(
    asked: EvaluateRequest, roots: Roots, subject: Subject, work: Path, stop: Stop, report: Report
) -> dict[str, Any]:
    """Returns {"tasks": {task: {metric: value}}, "version", ...} of a model, task by task.

    Raises:
        Misconfigured: the package is not installed.
        InvalidRequest: there is no such task, or it needs what is not done here.
        LecternError: a task failed.
        StopRequested: a stop was requested; tasks that are done are kept in `work`.
    """
    if subject.model is None:
        raise InvalidRequest("needs the model itself; a server never generates", "model")
    folder = subject.tokenizer().folder
    options = asked.lm_eval.model_dump(mode="json")
    kept = Kept(work / "lm-eval.jsonl", [subject.facts, options, asked.tasks, asked.seed])
    harness = Harness(subject.model, folder, asked.batch_sequences, asked.lm_eval, roots)
    for number, task in enumerate(asked.tasks):
        report("tasks of lm-eval", number, len(asked.tasks))
        if number < len(kept.entries):
            continue
        stop.check()
        kept.add({"task": task, "metrics": harness.scores(task, asked.seed)})
    report("tasks of lm-eval", len(asked.tasks), len(asked.tasks))
    return {
        "tasks": {entry["task"]: entry["metrics"] for entry in kept.entries},
        "version": version("lm_eval"),
        **options,
    }


class Harness:
    """lm-evaluation-harness around a model.

    Args:
        model: it.
        folder: with its tokenizer.
        batch_sequences: sequences at a time.
        options: how tasks are run.
        roots: `data` has tasks of one's own.

    Raises:
        Misconfigured: the package is not installed.
        NotFound: there is no folder of tasks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        folder: Path,
        batch_sequences: int,
        options: HarnessOptions,
        roots: Roots,
    ) -> None:
        require_harness()
        include = None
        if options.tasks_path is not None:
            include = resolve_under(roots.data, options.tasks_path, "lm_eval.tasks_path")
            if not include.is_dir():
                raise NotFound(
                    f"lm_eval.tasks_path: no folder {options.tasks_path} under {roots.data}"
                )
        load: Any = AutoTokenizer.from_pretrained
        tokenizer = load(str(folder), trust_remote_code=False, local_files_only=True)
        models: Any = import_module("lm_eval.models.huggingface")
        self._tasks: Any = import_module("lm_eval.tasks").TaskManager(
            include_path=None if include is None else str(include)
        )
        self._options = options
        self._model = models.HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_sequences,
            device=str(model.device),
        )

    def scores(self, task: str, seed: int) -> dict[str, float]:
        """Returns metric -> value of a task, or of each task of a group as "TASK/METRIC".

        Raises:
            InvalidRequest: there is no such task.
            LecternError: it failed.
        """
        self.require([task])
        evaluator: Any = import_module("lm_eval.evaluator")
        try:
            with _random_state_kept():
                found = evaluator.simple_evaluate(
                    model=self._model,
                    tasks=[task],
                    num_fewshot=self._options.num_fewshot,
                    limit=self._options.limit,
                    task_manager=self._tasks,
                    bootstrap_iters=0,
                    log_samples=False,
                    random_seed=seed,
                    numpy_random_seed=seed % (1 << 32),
                    torch_random_seed=seed,
                    fewshot_random_seed=seed,
                )
        except LecternError:
            raise
        except Exception as error:  # whatever a task raises
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            raise LecternError(f"lm-eval:{task} failed: {text}") from error
        metrics = _metrics(task, (found or {}).get("results", {}))
        if not metrics:
            raise LecternError(f"lm-eval:{task} measured nothing")
        return metrics

    def require(self, tasks: Sequence[str]) -> None:
        """Raises InvalidRequest unless there are these tasks."""
        known = self._tasks.all_tasks
        for task in tasks:
            if task not in known:
                close = get_close_matches(task, known, n=_NAMED)
                means = f"; did you mean {', '.join(close)}?" if close else ""
                raise InvalidRequest(f"lm-evaluation-harness has no task {task}{means}", "suites")


def require_harness() -> None:
    """Raises Misconfigured unless lm-evaluation-harness is installed."""
    if find_spec("lm_eval") is None:
        raise Misconfigured(
            "suites of lm-eval need lm-evaluation-harness: pip install 'lectern[lm-eval]'"
        )


def _metrics(task: str, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Returns the numbers among the results; METRIC.FILTER for other filters than none."""
    found = {}
    for name, values in results.items():
        for key, value in values.items():
            metric = key.removesuffix(",none").replace(",", ".")
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if metric == "sample_len" or metric == "sample_count" or not is_number:
                continue
            if math.isfinite(value):
                found[metric if name == task else f"{name}/{metric}"] = float(value)
    return found


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restores the random states that the harness seeds."""
    python, numpy_state = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
