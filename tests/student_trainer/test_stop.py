"""The stop flag."""

import threading
import time
from pathlib import Path

import pytest

from student_trainer.stop import Stop, StopRequested, stop_at_checkpoint_by_file
from tests.support.servers import wait_for


def test_a_stop_stays_requested() -> None:
    stop = Stop()
    stop.check()
    assert not stop.requested
    stop.request()
    assert stop.requested
    with pytest.raises(StopRequested):
        stop.check()


def test_a_sleep_lasts_as_long_as_requested() -> None:
    began = time.monotonic()
    Stop().sleep(0.15)
    assert time.monotonic() - began >= 0.15


def test_a_stop_ends_a_long_sleep() -> None:
    stop = Stop()
    threading.Timer(0.05, stop.request).start()
    with pytest.raises(StopRequested):
        stop.sleep(3600)


def test_a_sleep_after_a_stop_does_not_start() -> None:
    stop = Stop()
    stop.request()
    with pytest.raises(StopRequested):
        stop.sleep(0)


def test_a_file_stops_at_a_checkpoint_and_not_before(tmp_path: Path) -> None:
    stop = Stop()
    (tmp_path / "stop").touch()
    stop_at_checkpoint_by_file(stop, tmp_path / "stop")
    wait_for(lambda: stop.at_checkpoint)
    assert not stop.requested
