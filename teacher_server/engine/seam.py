"""What a model has to offer to the server: the seam between queue and model. No torch, no gRPC.

Legend: S tokens of one sequence, N asked rows, V asked vocabulary, D hidden size, K top-k.

A forward answers a base ask (`base_ask`); every answer that needs no further forward is derived
from it. So one forward serves all who ask the same sequence, whatever they ask of it.
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
from lectern_common.wire.formats import Representation, Widths

# Part of the fingerprint: raise it when the bytes of any representation change.
REPRESENTATION_VERSION = 2


class DeviceLost(Exception):
    """The device computes nothing any more in this process; only another process may help."""


class NoLongerWanted(Exception):
    """Whoever asked has gone, or its deadline has passed."""


@dataclass(frozen=True, eq=False)
class SequenceAsk:
    """One sequence and what is asked of it: all that its answer depends on."""

    token_ids_S: npt.NDArray[np.uint32]
    asked_S: npt.NDArray[np.bool_]  # at least one is set
    vocab_size: int
    representation: Representation
    temperature: float

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_S)

    @property
    def num_rows(self) -> int:
        return int(np.count_nonzero(self.asked_S))

    @property
    def key(self) -> bytes:
        """32 bytes: equal for equal asks alone."""
        digest = hashlib.sha256(
            repr((len(self.token_ids_S), self.vocab_size, self.representation)).encode()
        )
        digest.update(np.float64(self.temperature).tobytes())
        digest.update(np.packbits(self.asked_S).tobytes())
        digest.update(np.ascontiguousarray(self.token_ids_S, "<u4").tobytes())
        return digest.digest()


@dataclass(frozen=True)
class ComputedRows:
    """The bytes of the answer to one ask.

    `row_lengths` are the records of each row, for "sampled" alone, whose rows differ in length.
    `first_bad_row` is the first row of hidden states that is not finite; such a row, and those
    after it, are never sent and nothing is derived from them.
    """

    payload: memoryview
    row_lengths: npt.NDArray[np.uint32] | None = None
    first_bad_row: int | None = None

    @property
    def num_bytes(self) -> int:
        return len(self.payload) + (0 if self.row_lengths is None else self.row_lengths.nbytes)


@dataclass(frozen=True)
class ScoringRequest:
    """A validated request. Its answer is its sequences' answers, one after the other.

    Sequences of which nothing is asked are not in it. `row_bytes` is the most that a row takes:
    all take as much, but for "sampled".
    """

    run_id: str
    request_id: str
    asks: Sequence[SequenceAsk]
    row_bytes: int

    @property
    def num_rows(self) -> int:
        return sum(ask.num_rows for ask in self.asks)

    @property
    def num_tokens(self) -> int:
        return sum(ask.num_tokens for ask in self.asks)


@dataclass(frozen=True)
class HeadFacts:
    """The output head's form: see protos/teacher.proto, HeadTransform."""

    scale: float = 1.0
    divisor: float = 1.0
    soft_cap: float | None = None
    has_bias: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """What does not change while a model is loaded; the fields are those of the proto's Model.

    `not_offered` maps representations to why they are not offered, None if they are; see `why_not`.
    `tokens` is the token-to-id map, None where the model has no tokenizer.
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
    # What else the last bits of an answer depend on: the software, the number of threads.
    arithmetic: str = ""

    @cached_property
    def num_tokens(self) -> int:
        """Ids that a token stands behind; without a tokenizer every id counts as one."""
        return self.logit_width if self.tokens is None else len(set(self.tokens.values()))

    @cached_property
    def tokenizer_sha256(self) -> str:
        """The hash of the token-to-id map, "" without one; a tenth of a second when first asked."""
        return "" if self.tokens is None else tokenizer_sha256(self.tokens)

    @property
    def offers_hidden(self) -> bool:
        return self.why_not("hidden") is None

    def why_not(self, name: str) -> str | None:
        """Returns why a representation is not offered; None means that it is."""
        return self.not_offered.get(name, f"the {self.engine} engine does not make it")

    def widths(self, vocab_size: int) -> Widths:
        """Returns what the bytes of a row depend on, if `vocab_size` ids are asked for."""
        return Widths(vocab_size, self.hidden_size, self.hidden_dtype)


def base_ask(ask: SequenceAsk, facts: ModelFacts) -> SequenceAsk:
    """Returns what the forward for `ask` answers: its key names the forward.

    Hidden states at all positions where the model offers them, else the ask itself.
    """
    if not facts.offers_hidden:
        return ask
    return SequenceAsk(
        ask.token_ids_S,
        np.ones(ask.num_tokens, bool),
        facts.logit_width,
        Representation("hidden"),
        temperature=1.0,
    )


def selected(rows: ComputedRows, base: SequenceAsk, ask: SequenceAsk) -> ComputedRows:
    """Returns the asked ones of a base ask's rows, where both ask for the same representation.

    Nothing is copied where all are asked.

    Raises:
        TeacherError: an asked row is not finite.
    """
    require_finite(rows, ask)
    if np.array_equal(ask.asked_S, base.asked_S):
        return rows
    table = np.frombuffer(rows.payload, np.uint8).reshape(base.num_rows, -1)
    return dataclasses.replace(rows, payload=table[ask.asked_S].data.cast("B"))


def require_finite(rows: ComputedRows, ask: SequenceAsk) -> None:
    """Raises TeacherError where an asked position is at or after the first bad row."""
    if rows.first_bad_row is not None and ask.asked_S[rows.first_bad_row :].any():
        raise TeacherError(
            f"the model's hidden states are not finite from position {rows.first_bad_row} of a "
            "sequence on; they cannot be used as targets"
        )


class Engine(Protocol):
    """A loaded model. `score` and `derived` are called on one thread alone, `head_bytes` on any."""

    @property
    def facts(self) -> ModelFacts: ...

    def score(self, asks: Sequence[SequenceAsk]) -> list[ComputedRows]:
        """Returns the rows of base asks, in order; several are computed together.

        In mode "independent" their bytes are those that each would have alone; then they are of
        one length. No two of them share memory.

        Raises:
            TeacherError: a value is not finite (where the model offers no hidden states).
            InvalidRequest: the temperature takes logits / temperature out of float32's range.
            TeacherOutOfMemory: fewer tokens at a time may succeed.
            DeviceLost: no later call can succeed.
        """
        ...

    def derived(
        self, rows: ComputedRows, ask: SequenceAsk, wanted: Callable[[], bool]
    ) -> ComputedRows:
        """Returns the answer to `ask` from the rows of its base ask, which are hidden states.

        Called only where "hidden" is offered and something else is asked. `wanted` is asked a few
        times on the way.

        Raises:
            TeacherError, InvalidRequest, TeacherOutOfMemory, DeviceLost: as `score`.
            NoLongerWanted: `wanted` said no.
        """
        ...

    def head_bytes(self, vocab_size: int) -> Sequence[memoryview]:
        """Returns the head's rows 0 .. vocab_size - 1, then its bias where it has one.

        Of dtype `facts.hidden_dtype`. Called only where "hidden" is offered.
        """
        ...
