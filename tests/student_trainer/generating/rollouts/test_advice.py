"""Advice to a run that writes most of its time."""

from typing import Any

import pytest

from lectern_common.spec.load import parse_spec
from lectern_common.spec.run_spec import RunSpec
from student_trainer.generating.rollouts.advice import WritingAdvice, WritingBound, advice
from student_trainer.teacher.advice import OVER_STEPS, TeacherFacts
from student_trainer.teacher.advice import advice as teacher_advice


def spec_of(**sections: Any) -> RunSpec:
    body: dict[str, Any] = {
        "name": "run",
        "teacher": {},
        "student": {"init": "small"},
        "data": {"path": "text"},
        "objective": {"alpha": 0},
        "rollout": {"fraction": 1, "prompts": "set"},
    }
    return parse_spec({**body, **sections})


def said(watch: WritingAdvice, *shares: float, finished: float = 1.0) -> list[WritingBound]:
    found = [
        watch.after(
            {
                "time/step_seconds": 2.0,
                "rollout/seconds": 2.0 * share,
                "rollout/finished_share": finished,
            }
        )
        for share in shares
        for _ in range(OVER_STEPS)
    ]
    return [bound for bound in found if bound is not None]


def test_a_run_that_writes_most_of_the_time_is_told_once_while_nothing_changes() -> None:
    watch = WritingAdvice(spec_of(), on_cpu=False)
    assert said(watch, 0.55) == []
    (bound,) = said(watch, 0.8, 0.8)
    assert 0.6 < bound.share <= 0.8
    assert len(said(watch, 0.5, 0.9)) == 0
    assert len(said(watch, 0.3, 0.9)) == 1


def test_an_evaluation_is_no_step() -> None:
    watch = WritingAdvice(spec_of(), on_cpu=False)
    assert all(watch.after({"loss/val": 1.0}) is None for _ in range(2 * OVER_STEPS))


@pytest.mark.parametrize(
    ("finished", "on_cpu", "rows", "named"),
    [
        (0.2, False, 64, ["rollout.max_new_tokens (now 512): 80%", "rollout.fraction"]),
        (0.9, True, 64, ["train on a GPU", "rollout.fraction"]),
        (0.9, False, 8, ["batch.sequences_per_step (now 8)", "rollout.fraction"]),
    ],
)
def test_the_advice_names_what_helps(
    finished: float, on_cpu: bool, rows: int, named: list[str]
) -> None:
    spec = spec_of(batch={"sequences_per_step": rows})
    sentence = advice(spec, 0.75, finished, on_cpu=on_cpu)
    assert sentence.startswith("the student wrote for 75% of the last 50 steps' time")
    assert sentence.count(";") == len(named) - 1
    assert all(part in sentence for part in named)


def test_a_run_that_waits_for_its_teacher_may_write_a_step_ahead() -> None:
    fresh = TeacherFacts("hidden", 4, stale_steps=0, asks_about_data=False)
    assert "rollout.stale_steps to 1" in teacher_advice(fresh, 0.5, {})
    stale = TeacherFacts("hidden", 0, stale_steps=1, asks_about_data=False)
    sentence = teacher_advice(stale, 0.5, {})
    assert "stale_steps" not in sentence and "prefetch_steps" not in sentence
    assert "prefetch_steps" in teacher_advice(TeacherFacts("hidden", 0), 0.5, {})
