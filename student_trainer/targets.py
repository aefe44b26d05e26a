"""The interface between trainer and teacher: what is requested, and the targets it returns.

Legend: N asked positions ("rows"), V the student's vocabulary, D the teacher's hidden size, K
top-k, R records (distinct ids drawn, of all rows).
Rows are the asked positions in request order: by sequence, then by position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lectern_common.errors import InvalidRequest
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from student_trainer.seeds import Key, derived_seed

# The only mask: a label of IGNORE_INDEX takes part in nothing.
IGNORE_INDEX = -100


def of_step(representation: Representation, run_seed: int, step: int) -> Representation:
    """Returns what to ask for the rows of optimizer step `step`.

    The seed of the draws is a function of (run_seed, step): every epoch sees fresh draws, whose
    noise averages out, and a resumed run sees the same draws as an uninterrupted one. A teacher
    that caches hidden states makes fresh draws without a forward.
    """
    if "seed" not in representation.format.parameters:
        return representation
    return replace(representation, seed=derived_seed(Key.DRAWS, (run_seed, step)))


def of_epoch(representation: Representation, epoch: int) -> Representation:
    """Returns what to ask a record for in an epoch: its sets of draws are used in turn."""
    if "seed" not in representation.format.parameters:
        return representation
    return replace(representation, seed=epoch)


@dataclass(frozen=True)
class DenseTargets:
    """The teacher's logits, float32, not divided by any temperature; -inf rules an id out."""

    logits_NV: Tensor

    def __len__(self) -> int:
        return self.logits_NV.shape[0]

    def rows(self, start: int, stop: int) -> "DenseTargets":
        return DenseTargets(self.logits_NV[start:stop])

    def to(self, device: torch.device) -> "DenseTargets":
        return DenseTargets(self.logits_NV.to(device, non_blocking=True))


@dataclass(frozen=True)
class HiddenTargets:
    """Final-norm hidden states in the teacher's own dtype; `head` maps them to its logits.

    `head` is sliced to the student's vocabulary and already on the trainer's device.
    """

    hidden_ND: Tensor
    head: OutputHead

    def __len__(self) -> int:
        return self.hidden_ND.shape[0]

    def rows(self, start: int, stop: int) -> "HiddenTargets":
        return HiddenTargets(self.hidden_ND[start:stop], self.head)

    def to(self, device: torch.device) -> "HiddenTargets":
        return HiddenTargets(self.hidden_ND.to(device, non_blocking=True), self.head)


@dataclass(frozen=True)
class TopKTargets:
    """The K largest logits, and the mass of all other ids as one further outcome.

    log p_T is logits / T - log_normalizer_t for an id kept, and log_rest_t - log_normalizer_t for
    the rest. At K = V there is no rest, and log_rest_t is -inf; so it is if the teacher rules out
    all other ids.
    """

    logits_NK: Tensor  # float32, falling
    ids_NK: Tensor  # int64
    log_rest_t_N: Tensor  # float32, logsumexp over the other V - K ids of logits / temperature
    log_normalizer_t_N: Tensor  # float32, the same over V
    temperature: float  # as requested; a loss at another temperature is refused
    vocab_size: int

    def __len__(self) -> int:
        return self.logits_NK.shape[0]

    def rows(self, start: int, stop: int) -> "TopKTargets":
        cut = slice(start, stop)
        return TopKTargets(
            self.logits_NK[cut],
            self.ids_NK[cut],
            self.log_rest_t_N[cut],
            self.log_normalizer_t_N[cut],
            self.temperature,
            self.vocab_size,
        )

    def to(self, device: torch.device) -> "TopKTargets":
        return TopKTargets(
            self.logits_NK.to(device, non_blocking=True),
            self.ids_NK.to(device, non_blocking=True),
            self.log_rest_t_N.to(device, non_blocking=True),
            self.log_normalizer_t_N.to(device, non_blocking=True),
            self.temperature,
            self.vocab_size,
        )


@dataclass(frozen=True)
class SampledTargets:
    """Draws from the teacher's distribution: one record per distinct id of a row; rows are ragged.

    The records of row n are `row_starts[n]` to `row_starts[n + 1]`, in ascending order of id. The
    counts of a row sum to `num_draws`.
    """

    ids_R: Tensor  # int64
    counts_R: Tensor  # int64, >= 1
    log_probs_R: Tensor  # float32, log p_T, <= 0
    row_starts: npt.NDArray[np.int64]  # [N + 1], on the CPU wherever the tensors are
    num_draws: int
    temperature: float  # as requested; a loss at another temperature is refused
    vocab_size: int

    def __len__(self) -> int:
        return len(self.row_starts) - 1

    def rows(self, start: int, stop: int) -> "SampledTargets":
        row_starts = self.row_starts[start : stop + 1]
        cut = slice(int(row_starts[0]), int(row_starts[-1]))
        return replace(
            self,
            ids_R=self.ids_R[cut],
            counts_R=self.counts_R[cut],
            log_probs_R=self.log_probs_R[cut],
            row_starts=row_starts - row_starts[0],
        )

    def to(self, device: torch.device) -> "SampledTargets":
        return replace(
            self,
            ids_R=self.ids_R.to(device, non_blocking=True),
            counts_R=self.counts_R.to(device, non_blocking=True),
            log_probs_R=self.log_probs_R.to(device, non_blocking=True),
        )

    def row_of_record(self) -> Tensor:
        """Returns int64 [R], the row of each record, on the tensors' device."""
        rows_R = np.repeat(np.arange(len(self)), np.diff(self.row_starts))
        return torch.from_numpy(rows_R).to(self.ids_R.device, non_blocking=True)


TeacherTargets = DenseTargets | HiddenTargets | TopKTargets | SampledTargets


def joined(parts: Sequence[TeacherTargets]) -> TeacherTargets:
    """Returns the rows of all parts, in order: the inverse of `rows`.

    Args:
        parts: at least one; all of one representation, temperature, vocabulary and device.
    """
    first = parts[0]
    tensors = [
        field.name for field in fields(first) if isinstance(getattr(first, field.name), Tensor)
    ]
    changes: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in tensors
    }
    if isinstance(first, SampledTargets):
        lengths = [np.diff(part.row_starts) for part in parts if isinstance(part, SampledTargets)]
        changes["row_starts"] = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    return replace(first, **changes)


def likeliest_ids(targets: TeacherTargets) -> Tensor:
    """Returns the teacher's likeliest id at each position, int64 [n].

    Raises:
        InvalidRequest: the targets are draws.
    """
    if isinstance(targets, TopKTargets):
        return targets.ids_NK[:, 0]
    if isinstance(targets, DenseTargets):
        return targets.logits_NV.argmax(-1)
    if isinstance(targets, HiddenTargets):
        return targets.head.logits(targets.hidden_ND).argmax(-1)
    raise InvalidRequest("draws do not reveal the teacher's likeliest token", "targets")


class TargetsProvider(Protocol):
    """A teacher as the training loop sees it. Safe to call from several threads."""

    def score(
        self,
        sequences: Sequence[npt.NDArray[np.uint32]],
        positions: Sequence[npt.NDArray[np.bool_]],
        representation: Representation,
        temperature: float,
    ) -> TeacherTargets:
        """Returns the teacher's distribution at the given positions, over the student's vocabulary.

        Args:
            sequences: token ids, one array per sequence, ragged.
            positions: for each sequence, True if the distribution after that token is wanted.
            representation: what to return.
            temperature: distillation temperature; affects only top_k's rest and normaliser, and
                the draws.

        Raises:
            TeacherUnavailable: no answer within the outage budget.
            WrongModel: the model that answers is not the one that answered first.
            TeacherError: the answer cannot be used (checksum, shape, not finite).
            InvalidRequest, RepresentationNotOffered: the teacher does not offer this.
        """
        ...


@runtime_checkable
class AskedOfNewTexts(Protocol):
    """A teacher that treats texts that never come again, such as a student's own, otherwise."""

    def for_new_texts(self) -> TargetsProvider:
        """Returns the provider to ask about them: nothing is kept that only they would use."""
        ...


def for_new_texts(provider: TargetsProvider) -> TargetsProvider:
    """Returns the provider to ask about texts that never come again; perhaps the same one.

    The answers are the same. A server then neither fills nor empties its cache with them, and a run
    that keeps its teacher's answers does not keep these.
    """
    return provider.for_new_texts() if isinstance(provider, AskedOfNewTexts) else provider


class TeacherLogitsProvider(Protocol):
    """A teacher in the original specification's interface; a thin layer over `score`."""

    def vocab_size(self) -> int:
        """Returns the width of every row."""
        ...

    def logits_for_batch(self, input_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns one row of logits per sequence, at its last position; [] for an empty batch."""
        ...

    def logits_per_position(
        self, input_ids: Sequence[Sequence[int]]
    ) -> list[npt.NDArray[np.float32]]:
        """Returns the logits after every token, [S, vocab_size] for each sequence of S tokens."""
        ...
