"""What evaluations during training measure besides the validation loss: `evaluation.suites`.

val/bits_per_byte      perplexity: all nats of the validation rows, in bits, by their bytes
val/calibration_error  agreement: see evaluation/calibration.py
code/pass_at_K         code; code/not_judged counts problems that could not be judged
lm-eval/TASK/METRIC    lm-eval:TASK
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from lectern_common.errors import InvalidSpec
from lectern_common.roots import Roots
from lectern_common.spec.evaluation import OF_CODE, OF_HARNESS
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.suites import AGREEMENT, PERPLEXITY, CodeOptions
from lectern_common.tokens.shards import TOKENIZER_NAME
from lectern_models.loading import max_positions
from student_trainer.batch import Batch
from student_trainer.data.rows import in_order
from student_trainer.data.select import Data
from student_trainer.evaluating.code.problems import Problem, read_problems
from student_trainer.evaluating.code.suite import CodeRun, Writer, opened_judge
from student_trainer.evaluating.harness import Harness
from student_trainer.evaluating.kept import Kept
from student_trainer.evaluating.words import TextTokenizer
from student_trainer.evaluation.calibration import Calibration, calibration_error
from student_trainer.evaluation.evaluation import EvaluationSums
from student_trainer.ranks.world import Ranks
from student_trainer.stop import Stop
from student_trainer.student.load import LoadedStudent

_ROWS_AT_A_TIME = 64
_ANSWERS_AT_A_TIME = 16


class Suites:
    """The suites of a run.

    Args:
        ranks: the processes that train the run together.
        num_bytes: of the text of all validation rows; None means bits per byte are not measured.
        calibration: gets the positions of an evaluation; None means it is not measured.
        measures: each returns further metrics; called with (stop, what to call now and then).
    """

    def __init__(
        self,
        ranks: Ranks,
        *,
        num_bytes: int | None = None,
        calibration: Calibration | None = None,
        measures: Iterable[Callable[[Stop, Callable[[], None]], dict[str, float]]] = (),
    ) -> None:
        self.calibration = calibration
        self._ranks = ranks
        self._num_bytes = num_bytes
        self._measures = list(measures)

    def measured(
        self, sums: EvaluationSums, stop: Stop, progressed: Callable[[], None]
    ) -> dict[str, float]:
        """Returns the metrics of an evaluation.

        Args:
            sums: of the validation rows, over all ranks.
            stop: ends it with StopRequested.
            progressed: called as it goes on.

        Raises:
            StopRequested: a stop was requested.
            LecternError: something could not be measured; then there is no score.
        """
        metrics: dict[str, float] = {}
        if self._num_bytes is not None:
            metrics["val/bits_per_byte"] = sums.ce / math.log(2) / self._num_bytes
        if self.calibration is not None:
            taken = self._ranks.totals(*self.calibration.take())
            half = len(taken) // 2
            if sums.compared_positions:
                metrics["val/calibration_error"] = calibration_error(
                    taken[:half], taken[half:], sums.compared_positions
                )
        for measure in self._measures:
            progressed()
            metrics |= measure(stop, progressed)
        return metrics


def suites_of(
    spec: RunSpec, roots: Roots, loaded: LoadedStudent, data: Data, ranks: Ranks
) -> Suites | None:
    """Returns the suites of a run, everything they need checked; None if it has none.

    Raises:
        InvalidSpec: there is no tokenizer for them.
        LecternError: as the suites say: problems, sandbox, packages or tasks are missing.
    """
    evaluation = spec.evaluation
    if not evaluation.suites:
        return None
    num_bytes = None
    if PERPLEXITY in evaluation.suites:
        folder = _with_tokenizer(data.folder, "beside the data, which tells the bytes of its text")
        batches = in_order(data.validation, _ROWS_AT_A_TIME)
        num_bytes = _bytes_of(batches, TextTokenizer(folder))
    measures = []
    if evaluation.code is not None:
        measures.append(_code(spec, evaluation.code, roots, loaded, data))
    if evaluation.lm_eval is not None:
        folder = _tokenizer_folder(loaded, data)
        harness = Harness(
            loaded.student.model, folder, _ANSWERS_AT_A_TIME, evaluation.lm_eval, roots
        )
        harness.require(evaluation.tasks)
        measures += [_task(harness, task, spec.seed) for task in evaluation.tasks]
    calibration = Calibration() if AGREEMENT in evaluation.suites else None
    return Suites(ranks, num_bytes=num_bytes, calibration=calibration, measures=measures)


def _bytes_of(batches: Iterable[Batch], tokenizer: TextTokenizer) -> int:
    """Returns the bytes of the text that all labels are."""
    return sum(
        len(tokenizer.text(row[row >= 0].tolist()).encode())
        for batch in batches
        for row in batch.labels_BS
    )


def _code(
    spec: RunSpec, options: CodeOptions, roots: Roots, loaded: LoadedStudent, data: Data
) -> Callable[[Stop, Callable[[], None]], dict[str, float]]:
    problems: list[Problem] = read_problems(options, roots)
    tokenizer = TextTokenizer(_tokenizer_folder(loaded, data))
    model = loaded.student.model
    writer = Writer.of(model, tokenizer, max_positions(model))
    with opened_judge(options) as judge:  # refuses now what could not be judged later
        CodeRun(options, spec.seed, _ANSWERS_AT_A_TIME, problems, judge).require_fit(writer)

    def measure(stop: Stop, progressed: Callable[[], None]) -> dict[str, float]:
        with opened_judge(options) as judge:
            run = CodeRun(options, spec.seed, _ANSWERS_AT_A_TIME, problems, judge)
            found = run.score(writer, Kept(None, None), stop, lambda *_: progressed())
        scores = {f"{OF_CODE}{k}": value for k, value in found["pass_at_k"].items()}
        return {**scores, "code/not_judged": float(found["not_judged"])}

    return measure


def _task(
    harness: Harness, task: str, seed: int
) -> Callable[[Stop, Callable[[], None]], dict[str, float]]:
    def measure(stop: Stop, _: Callable[[], None]) -> dict[str, float]:
        stop.check()
        found = harness.scores(task, seed)
        return {f"{OF_HARNESS}{task}/{name}": value for name, value in found.items()}

    return measure


def _tokenizer_folder(loaded: LoadedStudent, data: Data) -> Path:
    """Returns the folder with the student's tokenizer: its own, else that of the data."""
    if (loaded.folder / TOKENIZER_NAME).exists():
        return loaded.folder
    return _with_tokenizer(data.folder, "in the student's folder or beside the data")


def _with_tokenizer(folder: Path | None, where: str) -> Path:
    if folder is None or not (folder / TOKENIZER_NAME).exists():
        raise InvalidSpec([("evaluation.suites", f"needs a {TOKENIZER_NAME} {where}")])
    return folder
