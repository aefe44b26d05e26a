"""Tokens a minute for each run; places in the queue are tested with the queue (test_batcher.py)."""

import pytest

from lectern_common.errors import Overloaded
from teacher_server.scheduling.admission import Quotas


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_run_without_a_quota_may_ask_for_anything() -> None:
    quotas = Quotas({"coder-*": 10})
    for _ in range(100):
        quotas.take("writer-1", 10**9)


def test_each_run_has_its_own_bucket_which_refills() -> None:
    clock = Clock()
    quotas = Quotas({"coder-*": 600}, clock)
    quotas.take("coder-1", 600)
    quotas.take("coder-2", 600)
    with pytest.raises(Overloaded, match="quota of 600 tokens") as caught:
        quotas.take("coder-1", 1)
    assert caught.value.retry_after_seconds == 0.1
    clock.now = 1.0
    quotas.take("coder-1", 1)


def test_a_request_beyond_a_minutes_quota_is_admitted_and_paid_back() -> None:
    clock = Clock()
    quotas = Quotas({"*": 600}, clock)
    quotas.take("coder-1", 3000)
    with pytest.raises(Overloaded) as caught:
        quotas.take("coder-1", 1)
    assert caught.value.retry_after_seconds == 60.0  # and then again, until it is paid back
    clock.now = 239.8
    with pytest.raises(Overloaded) as caught:
        quotas.take("coder-1", 1)
    assert caught.value.retry_after_seconds == pytest.approx(0.2)
    clock.now = 240.2
    quotas.take("coder-1", 1)
