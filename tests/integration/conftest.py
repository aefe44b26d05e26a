"""Checks after every test of the whole service that it left no process behind."""

import contextlib
import uuid
from collections.abc import Iterator

import psutil
import pytest

from tests.support.servers import wait_for
from tests.support.stack import MARK, marked_processes


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Marks all processes that the test starts; afterwards none may be left."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    yield mark
    try:
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not marked_processes(mark), seconds=10)
        left = [" ".join(process.cmdline()) for process in marked_processes(mark)]
        assert left == []
    finally:
        for process in marked_processes(mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
