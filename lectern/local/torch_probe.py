"""Asks a child process about torch and its devices, so that this one never loads torch."""

import json
import subprocess
import sys
from dataclasses import dataclass

from lectern.local.processes import printable

TIMEOUT_SECONDS = 120.0
_PROGRAM = """
import json
try:
    import torch
except ImportError as error:
    print(json.dumps({"problem": str(error)}))
    raise SystemExit
devices = []
for index in range(torch.cuda.device_count()):
    facts = torch.cuda.get_device_properties(index)
    devices.append(f"cuda:{index} {facts.name}, {facts.total_memory / 2**30:.0f} GiB")
print(json.dumps({
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "devices": devices,
    "threads": torch.get_num_threads(),
}))
"""


@dataclass(frozen=True)
class TorchFacts:
    """What a Python process found out about torch.

    `version` is None if torch cannot be loaded; `problem` then says why. `cuda` is the CUDA version
    torch was built for, None for a CPU build; `devices` are the CUDA devices it sees.
    """

    version: str | None = None
    cuda: str | None = None
    devices: tuple[str, ...] = ()
    threads: int = 0
    problem: str | None = None


def probe_torch(timeout_seconds: float = TIMEOUT_SECONDS) -> TorchFacts:
    """Asks a new Python process; takes as long as importing torch."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
        )
        facts = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return TorchFacts(problem=f"importing torch took over {timeout_seconds:g} s")
    except (IndexError, ValueError):
        last_line = done.stderr.splitlines()[-1:] or [b"no output"]
        return TorchFacts(problem=f"importing torch failed: {printable(last_line[0])}")
    return TorchFacts(
        version=facts.get("version"),
        cuda=facts.get("cuda"),
        devices=tuple(facts.get("devices", ())),
        threads=facts.get("threads", 0),
        problem=facts.get("problem"),
    )
