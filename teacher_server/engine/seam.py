"""The interface between queue and model: what is asked, what is computed, and the Engine.

Legend: S tokens of one sequence, N asked rows, V asked vocabulary, D hidden size, K top-k,
A ids asked beside the K.

Imports no torch and no gRPC. A forward answers a base ask (see `base_ask`), from which other
answers about the same sequence are derived. So one forward serves every request for a sequence,
whatever representation each one asks for.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lectern_common.errors import TeacherError
from lectern_common.tokens.tokenizer_map import tokenizer_sha256
from lectern_common.wire.formats import Representation, Widths, top_k_record

# Part of the fingerprint: raise it when a representation changes by more than rounding.
REPRESENTATION_VERSION = 2


class DeviceLost(Exception):
    """The device has failed for good in this process; only a new process may help."""


class NoLongerWanted(Exception):
    """The client has gone, or its deadline has passed."""


@dataclass(frozen=True, eq=False)
class SequenceAsk:
    """One sequence and what is asked of it: everything that the answer depends on.

    `also_NA` are ids below `vocab_size` whose logits are asked at each row beside its largest K,
    whether or not they are among them; only for "top_k", whose rows are then `beside_record`s.
    None means none. `tensor_parallel` is that of ModelFacts, in base asks only: sums over slices
    round differently.
    """

    token_ids_S: npt.NDArray[np.uint32]
    asked_S: npt.NDArray[np.bool_]  # at least one is set
    vocab_size: int
    representation: Representation
    temperature: float
    also_NA: npt.NDArray[np.uint32] | None = None
    tensor_parallel: int = 1

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_S)

    @property
    def num_rows(self) -> int:
        return int(np.count_nonzero(self.asked_S))

    @property
    def key(self) -> bytes:
        """32 bytes, equal only for equal asks."""
        digest = hashlib.sha256(
            repr((len(self.token_ids_S), self.vocab_size, self.representation)).encode()
        )
        digest.update(np.float64(self.temperature).tobytes())
        digest.update(np.packbits(self.asked_S).tobytes())
        digest.update(np.ascontiguousarray(self.token_ids_S, "<u4").tobytes())
        if self.also_NA is not None:
            digest.update(repr(self.also_NA.shape).encode())
            digest.update(np.ascontiguousarray(self.also_NA, "<u4").tobytes())
        if self.tensor_parallel > 1:
            digest.update(b"tensor_parallel %d" % self.tensor_parallel)
        return digest.digest()


def beside_record(k: int, num_also: int) -> np.dtype:
    """Returns the structured dtype of a "top_k" row with ids asked beside the K.

    Fields: `top`, a `top_k_record(k)`; `logits` float32 [A], of the ids asked beside, in their
    order; `rank` uint32, the place of the first of those ids among all V, from 1: by falling logit,
    of equal logits the lower id first, as the K are ordered.
    """
    return np.dtype([("top", top_k_record(k)), ("logits", "<f4", (num_also,)), ("rank", "<u4")])


@dataclass(frozen=True)
class ComputedRows:
    """The bytes of the answer to one ask.

    `row_lengths` counts the records of each row, only for "sampled", whose rows differ in length.
    `first_bad_row` is the first row of hidden states that is not finite; it and the rows after it
    are never sent, and nothing is derived from them.
    """

    payload: memoryview
    row_lengths: npt.NDArray[np.uint32] | None = None
    first_bad_row: int | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.payload) + (0 if self.row_lengths is None else self.row_lengths.nbytes)


@dataclass(frozen=True)
class ScoringRequest:
    """A validated request, answered one sequence after the other.

    Sequences without an asked position are left out. `row_bytes` is the size of a row, or the
    largest possible one for "sampled". With `comes_once` no sequence is asked about again, so that
    keeping its rows would only cost others theirs.
    """

    run_id: str
    request_id: str
    asks: Sequence[SequenceAsk]
    row_bytes: int
    comes_once: bool = False

    @property
    def num_rows(self) -> int:
        return sum(ask.num_rows for ask in self.asks)

    @property
    def num_tokens(self) -> int:
        return sum(ask.num_tokens for ask in self.asks)


@dataclass(frozen=True)
class HeadFacts:
    """How the output head makes logits: see protos/teacher.proto, HeadTransform."""

    scale: float = 1.0
    divisor: float = 1.0
    soft_cap: float | None = None
    has_bias: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """What does not change while a model is loaded; fields as in the proto's Model.

    `not_offered` maps representations to why they are not offered, None if they are; see `why_not`.
    `tokens` is the token-to-id map; None means that the model has no tokenizer.
    `tokens_before_text` are the ids that its tokenizer puts before a text; None means unknown.
    """

    model_id: str
    revision: str
    weights_sha256: str
    fingerprint: str
    logit_width: int
    tokens: Mapping[str, int] | None
    max_positions: int | None
    hidden_size: int
    hidden_dtype: str
    dtype: str
    quantization: str
    device: str
    head: HeadFacts
    not_offered: Mapping[str, str | None]
    engine: str
    mode: str
    num_parameters: int
    measured_tokens_per_second: float = 0.0
    tokens_before_text: tuple[int, ...] | None = None
    # What else the last bits of an answer depend on: software versions, number of threads.
    arithmetic: str = ""
    # Ranks that compute each forward together, every matrix cut into slices; 1 is a whole model.
    tensor_parallel: int = 1

    @cached_property
    def num_tokens(self) -> int:
        """The number of ids that are tokens; without a tokenizer, all of them.

        Tokens that were added behind the model's last logit do not count.
        """
        if self.tokens is None:
            return self.logit_width
        return len({token_id for token_id in self.tokens.values() if token_id < self.logit_width})

    @cached_property
    def tokenizer_sha256(self) -> str:
        """The hash of the token-to-id map, "" without one; the first call takes 0.1 s."""
        return "" if self.tokens is None else tokenizer_sha256(self.tokens)

    @property
    def offers_hidden(self) -> bool:
        return self.why_not("hidden") is None

    def why_not(self, name: str) -> str | None:
        """Returns why a representation is not offered; None means that it is."""
        return self.not_offered.get(name, f"the {self.engine} engine does not support it")

    def widths(self, vocab_size: int) -> Widths:
        """Returns what the size of a row depends on, for `vocab_size` asked ids."""
        return Widths(vocab_size, self.hidden_size, self.hidden_dtype)


def base_ask(ask: SequenceAsk, facts: ModelFacts) -> SequenceAsk:
    """Returns what the forward for `ask` answers; its key identifies the forward.

    Hidden states at all positions if the model offers them, else the ask itself.
    """
    if not facts.offers_hidden:
        return ask
    return SequenceAsk(
        ask.token_ids_S,
        np.ones(ask.num_tokens, bool),
        facts.logit_width,
        Representation("hidden"),
        temperature=1.0,
        tensor_parallel=facts.tensor_parallel,
    )


def selected(rows: ComputedRows, base: SequenceAsk, ask: SequenceAsk) -> ComputedRows:
    """Returns the rows of `base` that `ask` asks for; both are for the same representation.

    Nothing is copied if all are asked for.

    Raises:
        TeacherError: an asked row is not finite.
    """
    require_finite(rows, ask)
    if np.array_equal(ask.asked_S, base.asked_S):
        return rows
    table = np.frombuffer(rows.payload, np.uint8).reshape(base.num_rows, -1)
    return dataclasses.replace(rows, payload=table[ask.asked_S].data.cast("B"))


def require_finite(rows: ComputedRows, ask: SequenceAsk) -> None:
    """Raises TeacherError if an asked position is at or after the first bad row."""
    if rows.first_bad_row is not None and ask.asked_S[rows.first_bad_row :].any():
        raise TeacherError(
            f"the model's hidden states are not finite from position {rows.first_bad_row} of a "
            "sequence on; they cannot be used as targets"
        )


class Engine(Protocol):
    """A loaded model. `score` and `derived` are called on a single thread, `head_bytes` on any."""

    @property
    def facts(self) -> ModelFacts: ...

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        """Returns the rows of base asks, in order; several are computed together.

        In mode "independent" they have one length, and their bytes are as if computed alone. No
        two of them share memory.

        Raises:
            TeacherError: a value is not finite (only if the model offers no hidden states).
            InvalidRequest: the temperature takes logits / temperature out of float32's range.
            TeacherOutOfMemory: fewer tokens at a time may succeed.
            DeviceLost: no later call can succeed.
        """
        ...

    def derived(
        self, rows: ComputedRows, ask: SequenceAsk, wanted: Callable[[], bool]
    ) -> ComputedRows:
        """Returns the answer to `ask` from the rows of its base ask, which are hidden states.

        Called only if "hidden" is offered and something else is asked. Calls `wanted` a few times
        on the way.

        Raises:
            TeacherError, InvalidRequest, TeacherOutOfMemory, DeviceLost: as `score`.
            NoLongerWanted: `wanted` returned False.
        """
        ...

    def head_bytes(self, vocab_size: int) -> Sequence[memoryview]:
        """Returns the head's rows 0 .. vocab_size - 1, then its bias if it has one.

        Their dtype is `facts.hidden_dtype`. Called only if "hidden" is offered.
        """
        ...
