import math

import pytest

from student_trainer.early_stopping import Best


def after(*losses: float) -> Best:
    best = Best()
    for index, loss in enumerate(losses):
        best = best.after(100 * index, loss)
    return best


def test_the_best_is_the_lowest_loss_and_the_first_of_equal_ones() -> None:
    assert after(3.0, 2.0, 2.5, 2.0) == Best(2.0, 100, 2)
    assert after(3.0, 2.0, 2.5, 1.5) == Best(1.5, 300, 0)


def test_patience_counts_evaluations_in_a_row_without_a_lower_loss() -> None:
    assert not after(3.0, 3.1).is_over(2)
    assert after(3.0, 3.1, 3.0).is_over(2)
    assert not after(3.0, 3.1, 2.9, 3.0).is_over(2)
    assert after(3.0, 3.1, 2.9, 3.0, 4.0).is_over(2)


def test_without_patience_a_run_is_never_over() -> None:
    assert not after(1.0, *[2.0] * 50).is_over(None)
    assert not Best().is_over(1)


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    assert after(math.nan, 3.0) == Best(3.0, 100, 0)
    assert after(3.0, math.nan, -math.inf) == Best(3.0, 0, 2)
    assert after(math.nan, math.inf).step is None


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (after(3.0, 2.0, 2.5, 2.25), ["in 2 evaluations in a row", "2.0000, was at step 100"]),
        (after(3.0, 3.5), ["in one evaluation", "at step 0"]),
        (after(math.nan, math.nan), ["no validation loss was finite in 2 evaluations"]),
    ],
)
def test_the_sentence_names_the_best_and_the_wait(best: Best, words: list[str]) -> None:
    for word in words:
        assert word in best.sentence()
