"""Suites while a run trains, and checkpoints and early stopping by their metrics."""

import json
import math
from concurrent.futures import Future

import pytest

from lectern_common.errors import InvalidSpec
from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import require_resumable
from student_trainer.evaluating import during
from student_trainer.evaluating.sandbox.limits import Outcome, Verdict
from student_trainer.evaluating.words import TextTokenizer
from teacher_server.engine.transformers import EngineSettings, load
from tests.support.servers import teacher_thread
from tests.support.training.runs import Home, events_of, lines_of, status_of, trained


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("home"))
    home.tokenized("bytes")
    home.model("wide", vocab_size=300, weights=False, max_positions=64)
    home.model("teacher", vocab_size=300, max_positions=64, layers=2)
    (home.path / "models" / "teacher" / "tokenizer.json").write_bytes(
        (home.path / "data" / "bytes" / "tokenizer.json").read_bytes()
    )
    problem = {
        "task_id": "t/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "def check(c):\n    pass\n",
    }
    (home.path / "data" / "p.jsonl").write_text(json.dumps(problem) + "\n")
    return home


BYTES = {"student": {"config": "wide"}, "data": {"path": "bytes"}}
CODE = {"problems": "p.jsonl", "max_new_tokens": 4, "stop": []}


def measured(folder, key):
    return [(line["step"], line[key]) for line in lines_of(folder) if key in line]


def test_bits_per_byte_are_those_of_the_validation_rows(home):
    folder = home.run(**BYTES, evaluation={"suites": ["perplexity"]})
    assert trained(home, folder) == 0
    tokenizer = TextTokenizer(home.path / "data" / "bytes")
    from student_trainer.data.rows import in_order
    from student_trainer.data.select import open_data

    data = open_data(folder.read_spec(), home.roots, 300, None)
    labels = [row.tolist() for batch in in_order(data.validation, 8) for row in batch.labels_BS]
    tokens = sum(map(len, labels))
    num_bytes = sum(len(tokenizer.text(row).encode()) for row in labels)
    losses = dict(measured(folder, "loss/val"))
    found = measured(folder, "val/bits_per_byte")
    assert [step for step, _ in found] == [0, 3, 6]
    for step, value in found:
        assert value == pytest.approx(losses[step] * tokens / math.log(2) / num_bytes, rel=1e-12)


def test_the_calibration_against_the_teacher_is_measured(home):
    engine = load(
        str(home.path / "models" / "teacher"), EngineSettings(dtype="float32", device="cpu")
    )
    with teacher_thread(engine) as address:
        folder = home.run(
            **BYTES,
            teacher={"address": address},
            objective={"alpha": 0.5},
            evaluation={"suites": ["agreement"], "metric": "val/calibration_error"},
        )
        assert trained(home, folder) == 0
    found = measured(folder, "val/calibration_error")
    assert [step for step, _ in found] == [0, 3, 6]
    assert all(0 < value < 1 for _, value in found)


class Scripted:
    """A judge that lets programs pass at some evaluations only."""

    interpreter = "scripted"

    def __init__(self, passes):
        self.passes = list(passes)
        self.opened = -1  # the first is opened to see that there is one

    def __call__(self, options):
        return self

    def __enter__(self):
        self.opened += 1
        return self

    def __exit__(self, *_):
        pass

    def judging(self, program):
        future: Future[Verdict] = Future()
        passes = self.passes[self.opened - 1]
        future.set_result(Verdict(Outcome.PASSED if passes else Outcome.FAILED))
        return future


def by_code(**evaluation):
    return {
        "suites": ["code"],
        "code": CODE,
        "metric": "code/pass_at_1",
        "every_steps": 2,
        **evaluation,
    }


def test_checkpoints_and_the_export_follow_the_score_of_code(home, monkeypatch):
    # At steps 0, 2, 4, 6, 8, 10: best at 4; the loss falls on and on.
    judge = Scripted([False, False, True, False, False, False, False])
    monkeypatch.setattr(during, "opened_judge", judge)
    folder = home.run(
        **BYTES,
        schedule={"steps": 20},
        evaluation=by_code(patience=3),
        checkpoint={"every_steps": 100, "keep_last": 1, "keep_best": 1},
    )
    assert trained(home, folder) == 0
    scores = measured(folder, "code/pass_at_1")
    assert scores == [(0, 0.0), (2, 0.0), (4, 1.0), (6, 0.0), (8, 0.0), (10, 0.0)]
    assert [step for step, _ in measured(folder, "code/not_judged")] == [0, 2, 4, 6, 8, 10]
    metadata = json.loads((folder.export_path / "distillation_metadata.json").read_text())
    assert metadata["step"] == 4
    message = status_of(folder).message or ""
    assert "no higher code/pass_at_1 in 3 evaluations in a row; the highest, 1.0000" in message
    kept = sorted(path.name for path in folder.checkpoints_path.glob("step-*"))
    assert kept == ["step-00000004", "step-00000010"]


def test_without_patience_the_best_by_the_metric_are_kept(home, monkeypatch):
    judge = Scripted([False, False, True, False])
    monkeypatch.setattr(during, "opened_judge", judge)
    folder = home.run(
        **BYTES,
        evaluation=by_code(),
        checkpoint={"every_steps": 2, "keep_last": 1, "keep_best": 1},
    )
    assert trained(home, folder) == 0
    kept = sorted(path.name for path in folder.checkpoints_path.glob("step-*"))
    assert kept == ["step-00000004", "step-00000006"]


def test_a_run_whose_code_could_not_be_judged_ends_before_its_first_step(home, monkeypatch):
    monkeypatch.setenv("PATH", str(home.path))
    folder = home.run(**BYTES, evaluation=by_code())
    assert trained(home, folder) == 1
    assert "--no-sandbox" in (status_of(folder).message or "")
    assert not folder.metrics_path.exists() or not lines_of(folder)


def test_a_run_without_a_tokenizer_cannot_count_bytes(home):
    folder = home.run(evaluation={"suites": ["perplexity"]})
    assert trained(home, folder) == 1
    assert "evaluation.suites: needs a tokenizer.json beside the data" in (
        status_of(folder).message or ""
    )
    assert not events_of(folder, "assembled")


SMALLEST = {
    "name": "a",
    "student": {"config": "s"},
    "data": {"path": "d"},
    "objective": {"alpha": 1},
}


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"metric": "val/bits_per_byte"}, "needs the suite perplexity"),
        ({"metric": "code/pass_at_1"}, "needs the suite code"),
        ({"metric": "code/pass_at_2", "suites": ["code"]}, "with 2 in code.k"),
        ({"metric": "lm-eval/a/acc", "suites": ["lm-eval:a"]}, "metric_goal is required"),
        (
            {"metric": "lm-eval/b/acc", "suites": ["lm-eval:a"], "metric_goal": "highest"},
            "lm-eval:b",
        ),
        ({"metric": "loss/total"}, "metric must be one of loss/val"),
        ({"metric_goal": "highest"}, "metric_goal must be lowest"),
        ({"metric": "val/kl"}, "compares with the teacher"),
        ({"suites": ["agreement"]}, "compares with the teacher"),
        ({"code": {}}, "code has no effect without the suite code"),
        ({"lm_eval": {}}, "lm_eval has no effect"),
        ({"suites": ["nonsense"]}, "suites"),
    ],
)
def test_what_a_run_cannot_measure_is_refused(evaluation, words):
    with pytest.raises(InvalidSpec, match=words):
        parse_spec({**SMALLEST, "evaluation": evaluation})


def test_suites_that_need_the_whole_student_are_refused_with_several_devices():
    spec = {**SMALLEST, "device": {"count": 2}, "batch": {"sequences_per_step": 4}}
    with pytest.raises(InvalidSpec, match="need the whole student on one device"):
        parse_spec({**spec, "evaluation": {"suites": ["code"]}})
    assert parse_spec({**spec, "evaluation": {"suites": ["perplexity"]}})


def test_a_resume_does_not_change_the_metric():
    old = parse_spec(SMALLEST)
    new = parse_spec(
        {**SMALLEST, "evaluation": {"suites": ["perplexity"], "metric": "val/bits_per_byte"}}
    )
    require_resumable(old, new, None)
    with pytest.raises(InvalidSpec, match="values of another metric do not compare"):
        require_resumable(old, new, 3)


def test_the_goal_of_a_metric_is_filled_in():
    spec = parse_spec({**SMALLEST, "evaluation": {"suites": ["code"], "metric": "code/pass_at_1"}})
    assert (spec.evaluation.metric_goal, spec.evaluation.is_highest) == ("highest", True)
    assert spec.evaluation.code is not None
    assert parse_spec(spec.model_dump(mode="json")) == spec
