"""Measures how far work raises the memory of a process."""

import os
import subprocess
import sys
from pathlib import Path


def peak_bytes_of(module: str, *arguments: str) -> int:
    """Runs `python -m module arguments`; returns the memory growth that it prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


class MemoryGrowth:
    """Measures growth from its creation on. Linux only; this process or one of the same user."""

    def __init__(self, pid: int | None = None) -> None:
        self._folder = Path(f"/proc/{pid or os.getpid()}")
        (self._folder / "clear_refs").write_text("5")  # resets the high-water mark
        self._before = self._bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Returns the peak memory since creation, minus the memory at creation."""
        return self._bytes("VmHWM") - self._before

    def _bytes(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise OSError(f"{self._folder}/status has no {name}")
