"""Writes texts with a model: batched, with a cache of keys and values, each yielded as it ends.

A row that ends leaves the batch at once, so the others get faster; a waiting prompt takes its
place. Prompts come longest first, so that near lengths are together and a coming prompt is never
longer than what is there.

A draw is a function of the row's logits and its own uniform numbers. So a text does not depend on
the batch that it is in, but for rounding: sums of another shape round otherwise, and a logit that
differs in its last bit changes a token if two are that close. Which rows are together is a
function of the request, so the same request gives the same texts on the same machine.

Legend: B rows, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lectern_common.errors import Diverged, InvalidRequest
from lectern_models.modes import evaluating
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.rows import Rows, rows_of
from student_trainer.generating.sampling import Sampling, chosen_ids
from student_trainer.stop import Stop


@dataclass(frozen=True)
class Written:
    """A text that a model wrote.

    Attributes:
        index: of its prompt.
        ids: what was added to the prompt, without the id that ended it.
        end: the id that ended it; None means that none did.
        is_cut: it reached max_new_tokens without an end.
    """

    index: int
    ids: list[int]
    end: int | None
    is_cut: bool = False


def written(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    ends: Collection[int],
    stop: Stop,
    is_over: Callable[[int, list[int]], bool] | None = None,
    max_rows: int | None = None,
    barred: Collection[int] = (),
) -> Iterator[Written]:
    """Yields the text of each prompt as soon as it has ended.

    The model's state, its training mode included, is as it was whenever a text is yielded; dropout
    is off meanwhile, no random state is used, and gradients are not computed. May be called under
    torch.autocast. Exchanges nothing between ranks: the weights must be whole.

    Args:
        model: in any dtype, on any device.
        prompts: with max_new_tokens, they fit into the model's positions.
        sampling: how tokens are chosen.
        ends: ids that end a text.
        stop: checked before each token.
        is_over: says if a text so far, of at least one id, has ended, whatever follows; called with
            the prompt's index.
        max_rows: rows computed at a time; None means all.
        barred: ids that are never chosen.

    Raises:
        InvalidRequest: a prompt is empty; or, as they are yielded:
        Diverged: the model's logits are not a distribution.
        StopRequested: a stop was requested.
    """
    for index, prompt in enumerate(prompts):
        if not len(prompt.ids):
            raise InvalidRequest(f"prompt {index} has no tokens", "prompts")
        if sampling.temperature > 0 and prompt.uniforms is None:
            raise ValueError(f"prompt {index} has no numbers for its draws")
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}; it must be 1 or more")
    writer = _Writer(model, prompts, sampling, ends, stop, is_over, max_rows, barred)
    return writer.texts()


class _Row:
    """A text in the making: of which prompt, its ids so far, and the numbers that choose them."""

    def __init__(self, index: int, prompt: Prompt, sampling: Sampling) -> None:
        self.index = index
        self.ids: list[int] = []
        self.uniforms: npt.NDArray[np.float64] | None = None
        if sampling.temperature > 0 and prompt.uniforms is not None:
            self.uniforms = prompt.uniforms(sampling.max_new_tokens)


class _Writer:
    """One call of `written`."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        ends: Collection[int],
        stop: Stop,
        is_over: Callable[[int, list[int]], bool] | None,
        max_rows: int | None,
        barred: Collection[int],
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._sampling = sampling
        self._ends = frozenset(ends)
        self._stop = stop
        self._is_over = is_over
        self._barred = torch.tensor(sorted(barred), dtype=torch.int64, device=model.device)
        longest_first = sorted(range(len(prompts)), key=lambda one: (-len(prompts[one].ids), one))
        self._waiting = longest_first[::-1]  # taken from the end
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        self._rows: Rows = rows_of(model, longest + sampling.max_new_tokens)
        self._going: list[_Row] = []
        most = self._rows.most_at_a_time
        self._max_rows = min(max_rows or len(prompts), most or len(prompts))

    def texts(self) -> Iterator[Written]:
        while self._going or self._waiting:
            ended: list[Written] = []
            with evaluating(self._model), torch.no_grad(), _eagerly(self._model):
                while not ended:
                    ended = self._next_tokens()
            yield from ended

    def _next_tokens(self) -> list[Written]:
        """Adds a token to each text; returns those that ended with it."""
        self._stop.check()
        parts = []
        if self._going:
            parts.append(self._rows.next_logits([row.ids[-1] for row in self._going]))
        coming = self._coming()
        if coming:
            parts.append(self._rows.add([self._prompts[index].ids for index in coming]))
            self._going += [_Row(one, self._prompts[one], self._sampling) for one in coming]
        ids = self._chosen(torch.cat(parts) if len(parts) > 1 else parts[0])
        ended = {}
        for place, (row, token) in enumerate(zip(self._going, ids, strict=True)):
            text = self._with(row, token)
            if text is not None:
                ended[place] = text
        if ended:
            left = [place for place in range(len(self._going)) if place not in ended]
            self._going = [self._going[place] for place in left]
            self._rows.keep(left)
        return list(ended.values())

    def _coming(self) -> list[int]:
        """Returns the prompts that join now, longest first."""
        free = self._max_rows - len(self._going)
        if not self._waiting or not self._rows.may_add(free, self._max_rows):
            return []
        return [self._waiting.pop() for _ in range(min(free, len(self._waiting)))]

    def _chosen(self, logits_BV: Tensor) -> list[int]:
        if len(self._barred):
            logits_BV = logits_BV.index_fill(-1, self._barred, -torch.inf)
        uniforms_B = None
        if self._sampling.temperature > 0:
            uniforms_B = torch.tensor(
                [row.uniforms[len(row.ids)] for row in self._going if row.uniforms is not None],
                dtype=torch.float64,
            )
        ids = chosen_ids(logits_BV, uniforms_B, self._sampling)
        for row, token in zip(self._going, ids, strict=True):
            if token < 0:
                raise Diverged(
                    f"the model's logits are not finite at token {len(row.ids)} of its text for "
                    f"prompt {row.index}, so it can write nothing; its weights have diverged"
                )
        return ids

    def _with(self, row: _Row, token: int) -> Written | None:
        """Adds the token to the text; returns the text if it has ended."""
        if token in self._ends:
            return Written(row.index, row.ids, token)
        row.ids.append(token)
        if self._is_over is not None and self._is_over(row.index, row.ids):
            return Written(row.index, row.ids, None)
        if len(row.ids) >= self._sampling.max_new_tokens:
            return Written(row.index, row.ids, None, is_cut=True)
        return None


def _eagerly(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Returns a context in which no part of the model is compiled for each new length."""
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
