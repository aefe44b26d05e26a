"""When a run that waits for its teacher gets advice, and what the advice is."""

from typing import Any

import pytest

from student_trainer.teacher.advice import (
    OVER_STEPS,
    SAID_ABOVE,
    TeacherBound,
    TeacherFacts,
    WaitAdvice,
    advice,
)

HIDDEN = TeacherFacts("hidden", prefetch_steps=4)


def step(share: float, seconds: float = 2.0, **further: float) -> dict[str, float | None]:
    return {"time/step_seconds": seconds, "time/teacher_wait_seconds": share * seconds, **further}


def said(waits: WaitAdvice, *shares: float, steps: int = OVER_STEPS) -> list[TeacherBound]:
    heard = [waits.after(step(share)) for share in shares for _ in range(steps)]
    return [one for one in heard if one is not None]


def test_a_share_above_the_limit_over_fifty_steps_gives_advice_once() -> None:
    waits = WaitAdvice(HIDDEN)
    assert said(waits, 0.5, steps=49) == []
    [bound] = said(waits, 0.5, steps=1)
    assert bound.share == pytest.approx(0.5)
    assert "50% of the last 50 steps" in bound.advice
    assert said(waits, 0.5, 0.9, 0.2, 0.6) == []


def test_advice_comes_again_after_the_share_was_well_below() -> None:
    waits = WaitAdvice(HIDDEN)
    assert len(said(waits, 0.5)) == 1
    assert said(waits, 0.1) == []
    assert len(said(waits, 0.5)) == 1


def test_the_speed_without_the_wait_is_that_of_all_fifty_steps() -> None:
    """25 steps of 1,000 tokens in 1 second, 25 of 1,000 in 3, of which 2 were waited."""
    waits = WaitAdvice(TeacherFacts("top_k", prefetch_steps=4, tokens_per_second=5000.0))
    quick = step(0.0, seconds=1.0, **{"perf/tokens_per_second": 1000.0})
    slow = step(2 / 3, seconds=3.0, **{"perf/tokens_per_second": 1000.0 / 3})
    heard = [waits.after(quick if index % 2 else slow) for index in range(OVER_STEPS)]
    assert heard[-1] is not None
    assert "this run needs 1,000" in heard[-1].advice


def test_a_share_at_the_limit_gives_no_advice() -> None:
    assert said(WaitAdvice(HIDDEN), SAID_ABOVE - 1e-9, 0.0) == []


def test_the_share_is_of_the_time_not_the_mean_of_the_steps_shares() -> None:
    waits = WaitAdvice(HIDDEN)
    heard = [
        waits.after(step(0.9, seconds=0.1) if index % 2 else step(0.0, seconds=10.0))
        for index in range(200)
    ]
    assert set(heard) == {None}


def test_metrics_of_only_an_evaluation_are_not_a_step() -> None:
    waits = WaitAdvice(HIDDEN)
    assert said(waits, 0.9, steps=49) == []
    assert waits.after({"loss/val": 3.0}) is None
    assert len(said(waits, 0.9, steps=1)) == 1


def test_a_teacher_that_was_away_is_not_a_slow_one() -> None:
    """A restart of 100 s within one step gives no advice; a slow teacher after it does."""
    away = 0.0
    waits = WaitAdvice(TeacherFacts("hidden", 4, tokens_per_second=9000.0), lambda: away)
    assert said(waits, 0.1) == []
    away = 100.0
    long = {"perf/tokens_per_second": 2000 / 102}
    assert waits.after(step(100.2 / 102, seconds=102.0, **long)) is None
    assert said(waits, 0.1) == []
    [bound] = said(waits, 0.5)
    assert bound.share < 0.35


def test_an_outage_behind_answers_that_were_there_already_hides_no_waiting() -> None:
    """Answers asked for ahead cover it: no step waited for it, and later steps wait as they do."""
    away = 5.0
    waits = WaitAdvice(HIDDEN, lambda: away)
    away = 65.0
    assert waits.after(step(0.0)) is None
    [bound] = said(waits, 0.5, steps=49)
    assert bound.share == pytest.approx(0.49)


FAST = {"perf/tokens_per_second": 1000.0, "wire/bytes_per_token": 7168.0}


@pytest.mark.parametrize(
    ("facts", "metrics", "words", "others"),
    [
        (
            TeacherFacts("hidden", prefetch_steps=0),
            FAST,
            ["prefetch_steps to 4", "a second server"],
            ["throughput", "representation"],
        ),
        (TeacherFacts("hidden", prefetch_steps=2), FAST, ["prefetch_steps (now 2)"], []),
        (
            TeacherFacts("hidden", 4, mode="independent", tokens_per_second=1500.0),
            FAST,
            [
                "--mode throughput (it scores 1,500 tokens per second, and this run by itself "
                "needs 2,000)"
            ],
            ["prefetch_steps", "representation"],
        ),
        (
            TeacherFacts("hidden", 8, num_replicas=2, mode="throughput", tokens_per_second=1500.0),
            FAST,
            ["another server", "fewer runs"],
            ["--mode", "prefetch_steps"],
        ),
        (
            TeacherFacts("hidden", 4, mode="independent", tokens_per_second=9000.0),
            FAST,
            ["fewer runs use the teacher at a time: it scores 9,000 tokens per second"],
            ["--mode", "server"],
        ),
        (
            TeacherFacts("dense", 4),
            {**FAST, "wire/bytes_per_token": 607_744.0},
            ["representation to hidden", "608 kB per token"],
            [],
        ),
        (
            HIDDEN,
            {"perf/tokens_per_second": 50_000.0, "wire/bytes_per_token": 7168.0},
            ["representation to top_k or sampled: the wire carries 358 MB", "7.17 kB per token"],
            [],
        ),
        (
            TeacherFacts("top_k", 4),
            {},
            ["a second server"],
            ["representation", "tokens per second"],
        ),
    ],
)
def test_the_advice_follows_the_settings(
    facts: TeacherFacts, metrics: dict[str, Any], words: list[str], others: list[str]
) -> None:
    text = advice(facts, 0.5, metrics)
    for word in words:
        assert word in text
    for word in others:
        assert word not in text


def test_a_student_that_only_waits_gets_advice_too() -> None:
    assert "100% of" in advice(HIDDEN, 1.0, {"perf/tokens_per_second": 0.0})
