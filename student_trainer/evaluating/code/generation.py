"""Generates answers: batched, with a cache of keys and values, greedily or drawn.

A draw is a function of (seed, problem, sample) and of how many tokens of the answer there are: one
uniform number each, looked up in the distribution function over ids. So an answer does not depend
on the batch that it is in, but for rounding: sums of another shape round otherwise, and a logit
that differs in its last bit changes a token if two are that close. Which answers are in one batch
is a function of the request, so the same request gives the same answers on the same machine.

Legend: B sequences, V vocabulary.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from student_trainer.seeds import Key, raw_bits
from student_trainer.stop import Stop


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: the likeliest with temperature 0, else drawn."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, for one sample of one problem."""

    problem: str
    sample: int
    ids: Sequence[int]


@dataclass(frozen=True)
class Answer:
    """The ids that a model added, without the one that ended it; `is_cut`: it did not end."""

    ids: list[int]
    is_cut: bool


@torch.no_grad()
def answers(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    ends: Collection[int],
    is_over: Callable[[Prompt, list[int]], bool],
    stop: Stop,
) -> list[Answer]:
    """Returns the model's answer to each prompt, all computed as one batch.

    Args:
        model: in any dtype, on any device; dropout is off meanwhile.
        prompts: none is empty; with max_new_tokens they fit into the model's positions.
        sampling: how.
        ends: ids that end an answer.
        is_over: says if an answer so far, of at least one id, has ended, whatever follows.
        stop: checked before each token.

    Raises:
        StopRequested: a stop was requested.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    # Padding on the left, where the mask hides it: the last column is each prompt's last token.
    ids_BS = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask_BS = torch.zeros_like(ids_BS)
    for row, prompt in enumerate(prompts):
        ids_BS[row, longest - len(prompt.ids) :] = torch.tensor(list(prompt.ids))
        mask_BS[row, longest - len(prompt.ids) :] = 1
    over = _Over(prompts, longest, is_over, stop)
    processors = LogitsProcessorList()
    if sampling.temperature > 0:
        processors.append(_Drawn(prompts, longest, sampling))
    was_training = model.training
    model.train(False)
    try:
        with _plainly(model, sampling.max_new_tokens, ends):
            generate: Any = model.generate
            whole_BS = generate(
                input_ids=ids_BS.to(model.device),
                attention_mask=mask_BS.to(model.device),
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([over]),
            )
    finally:
        model.train(was_training)
    written = [row[longest:] for row in whole_BS.tolist()]
    return [
        _until_its_end(ids, ends, over.lengths[row], sampling) for row, ids in enumerate(written)
    ]


def uniforms(sampling: Sampling, prompt: Prompt) -> npt.NDArray[np.float64]:
    """Returns the numbers in [0, 1) that choose the tokens of an answer, in order."""
    name = int.from_bytes(hashlib.sha256(prompt.problem.encode()).digest()[:8], "little")
    bits = raw_bits(Key.ANSWERS, (sampling.seed, name, prompt.sample), sampling.max_new_tokens)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)


def drawn_ids(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> Tensor:
    """Returns the id that each uniform number chooses, int64 [B].

    The smallest id up to which the probability is above u; with top_p, only of the smallest set of
    likeliest ids that has this probability together.
    """
    p_BV = (logits_BV.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        sorted_BV, ids_BV = p_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        left_BV = sorted_BV.masked_fill(before_BV >= sampling.top_p, 0)
        p_BV = torch.zeros_like(p_BV).scatter_(-1, ids_BV, left_BV)
    up_to_BV = p_BV.cumsum(-1)
    wanted_B1 = uniforms_B[:, None].to(p_BV) * up_to_BV[:, -1:]
    ids_B = torch.searchsorted(up_to_BV, wanted_B1, right=True)[:, 0]
    last_B = (p_BV > 0).int().cumsum(-1).argmax(-1)  # rounding must not choose an impossible one
    return torch.minimum(ids_B, last_B)


class _Drawn(LogitsProcessor):
    """Leaves only the id that is drawn."""

    def __init__(self, prompts: Sequence[Prompt], longest: int, sampling: Sampling) -> None:
        self._longest = longest
        self._sampling = sampling
        drawn = np.stack([uniforms(sampling, prompt) for prompt in prompts])
        self._uniforms = torch.from_numpy(drawn)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        place = input_ids.shape[1] - self._longest
        uniforms_B = self._uniforms[:, place].to(scores.device)
        ids_B = drawn_ids(scores, uniforms_B, self._sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, ids_B[:, None], 0.0)


class _Over(StoppingCriteria):
    """Ends answers that are over; `lengths` has how long each was then."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        longest: int,
        is_over: Callable[[Prompt, list[int]], bool],
        stop: Stop,
    ) -> None:
        self._prompts = prompts
        self._longest = longest
        self._is_over = is_over
        self._stop = stop
        self.lengths: list[int | None] = [None] * len(prompts)

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self._stop.check()
        for row, ids in enumerate(input_ids[:, self._longest :].tolist()):
            if self.lengths[row] is None and self._is_over(self._prompts[row], ids):
                self.lengths[row] = len(ids)
        ended = [length is not None for length in self.lengths]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids.device)


def _until_its_end(
    ids: list[int], ends: Collection[int], length: int | None, sampling: Sampling
) -> Answer:
    """Returns an answer without what follows its end."""
    place = next((index for index, one in enumerate(ids) if one in ends), None)
    if length is not None and (place is None or length <= place):
        return Answer(ids[:length], False)
    if place is not None:
        return Answer(ids[:place], False)
    return Answer(ids[: sampling.max_new_tokens], True)


@contextmanager
def _plainly(model: PreTrainedModel, max_new_tokens: int, ends: Collection[int]) -> Iterator[None]:
    """Within the block, `generate` takes the likeliest ids, whatever the model's files propose."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=0,
    )
    try:
        yield
    finally:
        model.generation_config = own
