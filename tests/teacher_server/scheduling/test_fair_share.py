"""Deficit round robin: shares over time, weights, debts, newcomers."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_server.scheduling.fair_share import FairShare


def serve(share: FairShare, costs: dict[str, int], turns: int) -> Counter[str]:
    """Returns the tokens that each run got, with all of them always waiting."""
    served: Counter[str] = Counter()
    for _ in range(turns):
        run_id = share.next(list(costs))
        share.charge(run_id, costs[run_id])
        served[run_id] += costs[run_id]
    return served


def test_runs_get_equal_tokens_whatever_the_length_of_their_sequences() -> None:
    served = serve(FairShare(quantum_tokens=1000), {"short": 10, "long": 900}, 5000)
    assert abs(served["short"] - served["long"]) <= 1000 + 900


def test_shares_are_in_proportion_to_weights() -> None:
    share = FairShare({"big-*": 3.0, "small": 0.5}, quantum_tokens=100)
    served = serve(share, {"big-one": 50, "plain": 50, "small": 50}, 4500)
    total = sum(served.values())
    assert served["big-one"] / total == pytest.approx(3 / 4.5, abs=0.01)
    assert served["small"] / total == pytest.approx(0.5 / 4.5, abs=0.01)
    assert (share.weight("big-one"), share.weight("plain")) == (3.0, 1.0)


def test_a_heavy_run_does_not_get_its_whole_share_at_once() -> None:
    share = FairShare({"heavy": 100.0}, quantum_tokens=1000)
    turns = []
    for _ in range(303):
        run_id = share.next(["heavy", "light"])
        share.charge(run_id, 1000)
        turns.append(run_id)
    assert turns.count("light") == 3
    stretches = "".join("l" if turn == "light" else "h" for turn in turns).split("l")
    assert max(map(len, stretches)) <= 101


def test_a_run_that_joined_a_batch_waits_longer() -> None:
    share = FairShare(quantum_tokens=100)
    share.charge("company", 1000)
    got = [share.next(["company", "other"]) for _ in range(1)]
    for _ in range(9):
        share.charge("other", 100)
        got.append(share.next(["company", "other"]))
    assert got == ["other"] * 10


def test_an_idle_run_saves_no_credit() -> None:
    share = FairShare(quantum_tokens=100)
    serve(share, {"busy": 100}, 1000)
    served = serve(share, {"busy": 100, "back": 100}, 200)
    assert abs(served["busy"] - served["back"]) <= 200


@given(
    costs=st.dictionaries(
        st.sampled_from("abcdefgh"), st.integers(1, 5000), min_size=1, max_size=8
    ),
    turns=st.integers(1, 2000),
)
def test_no_two_waiting_runs_are_ever_further_apart_than_a_quantum_and_a_sequence(
    costs: dict[str, int], turns: int
) -> None:
    served = serve(FairShare(quantum_tokens=1000), costs, turns)
    amounts = [served[run_id] for run_id in costs]
    assert max(amounts) - min(amounts) <= 1000 + 2 * max(costs.values())
