"""What every test process needs before the first test."""

import os
import signal
from collections.abc import Iterator

import pytest

from lectern_common.logs import configure_logs

# Two cores are shared by many tests and the processes they start; one thread each is also what
# makes sums come out the same on every machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

# A worker of pytest-xdist ignores Ctrl-C, and what it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with slow tests first, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """Programs that are run within a test take signals; the next test's are its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """Programs that are run within a test configure logs, which would go to that test's streams."""
    configure_logs("debug")
    yield
    configure_logs("debug")
