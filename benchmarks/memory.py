"""How far work raises the memory of a process above what it held before."""

import os
import subprocess
import sys
from pathlib import Path


def peak_bytes_of(module: str, *arguments: str) -> int:
    """Returns what `python -m module arguments` prints: the growth in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


class MemoryGrowth:
    """Measures from its making on. Linux; the process is one's own or of the same user."""

    def __init__(self, pid: int | None = None) -> None:
        self._folder = Path(f"/proc/{pid or os.getpid()}")
        (self._folder / "clear_refs").write_text("5")  # the high-water mark starts anew
        self._before = self._bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Returns by how much the most memory since the start exceeds that at the start."""
        return self._bytes("VmHWM") - self._before

    def _bytes(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise OSError(f"{self._folder}/status has no {name}")
