"""Rollouts in flight as tensors: what a checkpoint holds of them.

    step             []   int64, the step that learns them
    rows_R           [R]  int64, their places in the step
    ends_R           [R]  int64, the token that ended each; -1 if it was cut
    lengths_R        [R]  int64, tokens of each completion, without that one
    ids              [sum of lengths_R] int64
    prompt_lengths_R [R]  int64, tokens of each prompt
    prompt_ids       [sum of prompt_lengths_R] int64

Only ids: the teacher is asked again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lectern_common.errors import CorruptData
from student_trainer.generating.rollouts.rows import Rollout
from student_trainer.generating.rollouts.writing import Writer
from student_trainer.ranks.world import Ranks

_CUT = -1


def tensors_of(
    rollouts: Sequence[Rollout], writer: Writer, step: int, ranks: Ranks
) -> dict[str, Tensor]:
    """Returns the rollouts of all ranks; all ranks call it. {} if none are in flight.

    Args:
        rollouts: this rank's, of `step`; either all ranks have those of the step, or none has any.
        writer: how they were written.
        step: the step that learns them.
        ranks: that train the run together.
    """
    if not writer.stale_steps:
        return {}
    rows = [slot.row for slot in writer.plan.slots(step)]
    place = {row: index for index, row in enumerate(rows)}
    # One line a rollout: whether it is there, its end, both lengths, and both ids.
    longest = writer.prompts.longest + writer.sampling.max_new_tokens
    lines = np.zeros((len(rows), 4 + longest), np.int64)
    for rollout in rollouts:
        end = _CUT if rollout.end is None else rollout.end
        lengths = (len(rollout.ids), len(rollout.prompt_ids))
        own = [1, end, *lengths, *rollout.ids, *rollout.prompt_ids.tolist()]
        lines[place[rollout.slot.row], : len(own)] = own
    lines = ranks.sums_of(lines.reshape(-1)).reshape(lines.shape)
    if not lines[:, 0].all() or not rows:
        return {}
    ids = [line[4 : 4 + line[2]] for line in lines]
    prompts = [line[4 + line[2] : 4 + line[2] + line[3]] for line in lines]
    return {
        "step": torch.tensor(step),
        "rows_R": torch.tensor(rows),
        "ends_R": torch.from_numpy(lines[:, 1].copy()),
        "lengths_R": torch.from_numpy(lines[:, 2].copy()),
        "ids": torch.from_numpy(np.concatenate(ids)),
        "prompt_lengths_R": torch.from_numpy(lines[:, 3].copy()),
        "prompt_ids": torch.from_numpy(np.concatenate(prompts)),
    }


def rollouts_of(
    tensors: dict[str, Tensor], writer: Writer, step: int, rank: int
) -> list[Rollout] | None:
    """Returns a rank's rollouts of a step; None if there are none in flight.

    So it is too if one has an id that the writer may not write: those of a run that was forked
    under another teacher.

    Raises:
        CorruptData: they are not those of the run's step.
    """
    if not tensors or not writer.stale_steps:
        return None
    slots = {slot.row: slot for slot in writer.plan.slots(step)}
    rows = tensors["rows_R"].tolist()
    if int(tensors["step"]) != step or rows != list(slots):
        raise CorruptData(
            f"the rollouts in the checkpoint of step {step} are of other rows than the run writes; "
            "start a new run"
        )
    barred = torch.tensor(sorted(writer.barred), dtype=torch.int64)
    if any(torch.isin(tensors[name], barred).any() for name in ("ids", "ends_R")):
        return None
    ids = tensors["ids"].split(tensors["lengths_R"].tolist())
    prompts = tensors["prompt_ids"].split(tensors["prompt_lengths_R"].tolist())
    ends = tensors["ends_R"].tolist()
    written = {
        row: Rollout(
            slots[row],
            prompts[index].numpy().astype(np.uint32),
            ids[index].tolist(),
            None if ends[index] == _CUT else ends[index],
        )
        for index, row in enumerate(rows)
    }
    return [written[slot.row] for slot in writer.plan.slots(step, rank)]
