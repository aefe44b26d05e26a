"""Memory of writing, for few prompts and for many: at most 8 rows are in hand at a time.

python -m benchmarks.trainer.on_policy.memory PROMPTS prints the growth of a fresh process in bytes.
"""

import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.memory import MemoryGrowth, peak_bytes_of

VOCAB_SIZE = 8_192
FEW, MANY = 8, 512
_NEW_TOKENS = 32
_MODULE = "benchmarks.trainer.on_policy.memory"


def measure(many: int = MANY) -> Iterator[dict[str, Any]]:
    """Yields one row."""
    few_bytes, many_bytes = (peak_bytes_of(_MODULE, str(count)) for count in (FEW, many))
    yield {
        "figure": "memory of writing",
        "prompts": many,
        "mib": many_bytes / 2**20,
        f"mib_of_{FEW}": few_bytes / 2**20,
        f"against_{FEW}": many_bytes / few_bytes,
        "goals": {f"against_{FEW}": "<= 1.1"},
    }


def growth_of(prompts: int) -> int:
    """Returns the bytes by which writing a text for each of these prompts raises the memory."""
    import torch

    from benchmarks.trainer.on_policy.steps import PROMPTS, write_models, writer_of
    from lectern_models.loading import load_causal_lm
    from student_trainer.generating.generator import written
    from student_trainer.generating.prompt import Prompt
    from student_trainer.generating.rollouts.plan import Slot, uniforms_of
    from student_trainer.stop import Stop

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        model = load_causal_lm(write_models(Path(scratch), VOCAB_SIZE)[1], "float32")
    writer = writer_of(VOCAB_SIZE, new_tokens=_NEW_TOKENS)
    growth = MemoryGrowth()
    asked = [
        Prompt(writer.prompts.ids(index).tolist(), partial(uniforms_of, 0, Slot(0, index, 0, 0)))
        for index in range(prompts)
    ]
    for _ in written(model, asked, writer.sampling, ends=(), stop=Stop(), max_rows=PROMPTS):
        pass
    return growth.peak_bytes()


if __name__ == "__main__":
    print(growth_of(int(sys.argv[1])))
