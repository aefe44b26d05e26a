"""Rollouts for people to read, with the teacher's judgement of each token: rollouts.jsonl.

    {"step", "row", "sample", "prompt", "prompt_ids", "ids", "end", "text", "tokens", "kl",
     "mean_kl"}

one line a rollout, in the order of the steps; `step` is that of the line in metrics.jsonl. `ids`
has no end token: that is `end`, null if the completion was cut. `tokens` are the texts of what was
learnt, the end token last, and `kl` the divergence at each in nats, null if it is not finite. Texts
are null without a tokenizer.

The file stays small: of a run's steps some, evenly spread, and of each of them the first rollouts.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lectern_common.files import fsync
from lectern_common.json_lines import append_json_line, keep_lines_before
from student_trainer.data.token_texts import token_texts
from student_trainer.generating.rollouts.rows import Rollout
from student_trainer.journal.disk_full import disk_full_as_error

# Steps of a run that are kept, and of each the most rollouts and tokens: some 40 MB in all.
_STEPS = 400
_ROLLOUTS = 4
_TOKENS = 4096
_DIGITS = 5

Decode = Callable[[Sequence[int]], str]


class KeptRollouts:
    """The file of one run; only the first rank has one.

    Args:
        path: of the file.
        steps: of the run.
        decode: returns the text of ids; None without a tokenizer.
    """

    def __init__(self, path: Path, steps: int, decode: Decode | None) -> None:
        self._path = path
        self._steps = steps
        self._decode = decode
        self._every = max(1, math.ceil(steps / _STEPS))

    def keep_before(self, step: int) -> None:
        """Drops lines after `step`, and an incomplete last line; a resume writes them again.

        Raises:
            DiskFull: no space; the file is unchanged.
        """
        with disk_full_as_error(self._path.name):
            keep_lines_before(self._path, step + 1)

    def is_due(self, step: int) -> bool:
        """Returns True if rollouts of a step are kept: of the first, the last, and some others."""
        return step in (1, self._steps) or step % self._every == 0

    def add(self, step: int, rollouts: Iterable[tuple[Rollout, npt.NDArray[np.float64]]]) -> None:
        """Appends the first rollouts of a step, with the divergence at each token.

        Raises:
            DiskFull: no space for a line.
        """
        left = _TOKENS
        with disk_full_as_error(self._path.name):
            for count, (rollout, kd) in enumerate(rollouts):
                left -= len(rollout.prompt_ids) + len(kd)
                if count == _ROLLOUTS or (count and left < 0):
                    break
                append_json_line(self._path, {"step": step, **self._line(rollout, kd)})

    def save(self) -> None:
        """Makes the lines outlive the machine. Raises DiskFull."""
        with disk_full_as_error(self._path.name):
            if self._path.exists():
                fsync(self._path)

    def _line(self, rollout: Rollout, kd: npt.NDArray[np.float64]) -> dict[str, Any]:
        """Returns a line, of at most _TOKENS tokens of prompt (its end) and of completion."""
        prompt_ids = rollout.prompt_ids[-_TOKENS:].tolist()
        ids, learnt, kd = rollout.ids[:_TOKENS], rollout.completion[:_TOKENS], kd[:_TOKENS]
        decode = self._decode
        return {
            "row": rollout.slot.row,
            "sample": rollout.slot.sample,
            "prompt": None if decode is None else decode(prompt_ids),
            "prompt_ids": prompt_ids,
            "ids": ids,
            "end": rollout.end,
            "text": None if decode is None else decode(ids),
            "tokens": None if decode is None else token_texts(learnt, decode),
            "kl": [
                round(value, _DIGITS) if math.isfinite(value) else None for value in kd.tolist()
            ],
            "mean_kl": float(kd.mean()),
        }
