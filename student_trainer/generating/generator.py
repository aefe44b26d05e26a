"""Writes completions: a stand-in of the generator."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from lectern_common.errors import Diverged
from student_trainer.generating.prompt import Prompt
from student_trainer.generating.sampling import Sampling, drawn_ids
from student_trainer.stop import Stop


@dataclass(frozen=True)
class Written:
    """The ids that a model added, without the one that ended it."""

    index: int
    ids: list[int]
    end: int | None
    is_cut: bool = False


@contextmanager
def whole_weights(student: nn.Module) -> Iterator[None]:
    """Within the block the weights are whole on each rank."""
    yield


@torch.no_grad()
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
    was_training = model.training
    model.train(False)
    try:
        for index, prompt in enumerate(prompts):
            drawn = None
            if sampling.temperature > 0:
                assert prompt.uniforms is not None
                drawn = torch.from_numpy(prompt.uniforms(sampling.max_new_tokens))
            ids, end = list(map(int, prompt.ids)), None
            start = len(ids)
            while len(ids) - start < sampling.max_new_tokens:
                stop.check()
                logits_V = model(torch.tensor([ids], device=model.device)).logits[0, -1].float()
                if barred:
                    logits_V[list(barred)] = -torch.inf
                if logits_V.isnan().any():
                    raise Diverged("logits are NaN")
                if drawn is None:
                    chosen = int(logits_V.argmax())
                else:
                    u = drawn[len(ids) - start :][:1]
                    chosen = int(drawn_ids(logits_V[None], u, sampling)[0])
                if chosen in ends:
                    end = chosen
                    break
                ids.append(chosen)
            yield Written(index, ids[start:], end, end is None)
    finally:
        model.train(was_training)
