"""Prompts: a stand-in."""

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from student_trainer.data.rows import Rows


class PromptSet:
    def __init__(self, rows: Rows, length: int) -> None:
        self._rows, self._length = rows, length

    def __len__(self) -> int:
        return len(self._rows)

    def ids(self, index: int) -> npt.NDArray[np.uint32]:
        return self._rows.row(index)[: self._length]

    @property
    def longest(self) -> int:
        return self._length

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(self.ids(index).tobytes())
        return digest.hexdigest()


def prompts_of_rows(rows: Rows, prompt_tokens: int) -> PromptSet:
    return PromptSet(rows, prompt_tokens)


def open_prompt_set(path: Any, vocab_size: int, tokens: Any) -> PromptSet:
    raise NotImplementedError
