"""What a model has to offer to the server: the seam between queue and model. No torch, no gRPC.

Legend: S tokens of one sequence, N asked rows, V asked vocabulary, K top-k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

# Part of the fingerprint: raise it when the bytes of any representation change.
REPRESENTATION_VERSION = 2

NOT_SAMPLED = "this server draws no samples; ask for hidden or top_k"


class DeviceLost(Exception):
    """The device computes nothing any more in this process; only another process may help."""


@dataclass(frozen=True)
class Representation:
    """What is asked for each position. `top_k` is 0 but for kind "top_k"."""

    kind: str  # "dense", "hidden", "top_k"
    top_k: int = 0


@dataclass(frozen=True)
class SequenceAsk:
    """One sequence and what is asked of it: all that its answer depends on."""

    token_ids_S: npt.NDArray[np.uint32]
    asked_S: npt.NDArray[np.bool_]  # at least one is set
    vocab_size: int
    representation: Representation
    temperature: float

    @property
    def num_rows(self) -> int:
        return int(np.count_nonzero(self.asked_S))


@dataclass(frozen=True)
class ScoringRequest:
    """A validated request. Its answer is its sequences' answers, one after the other.

    Sequences of which nothing is asked are not in it.
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
        return sum(len(ask.token_ids_S) for ask in self.asks)


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

    `not_offered` maps each representation to why it is not offered, None where it is. `tokens` is
    the token-to-id map, None where the model has no tokenizer.
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

    @property
    def num_tokens(self) -> int:
        """Ids that a token stands behind; without a tokenizer every id counts as one."""
        return self.logit_width if self.tokens is None else len(set(self.tokens.values()))

    def row_bytes(self, representation: Representation, vocab_size: int) -> int:
        """Returns the bytes of one row on the wire."""
        if representation.kind == "hidden":
            return self.hidden_size * (4 if self.hidden_dtype == "float32" else 2)
        return 4 * vocab_size if representation.kind == "dense" else 8 * representation.top_k + 8


class Engine(Protocol):
    """A loaded model. `score` is called on one thread alone, `head_bytes` on any."""

    @property
    def facts(self) -> ModelFacts: ...

    def score(self, ask: SequenceAsk) -> memoryview:
        """Returns the asked rows of one sequence, as bytes, from one forward over it alone.

        Raises:
            TeacherError: a value is not finite; such rows are never returned.
            InvalidRequest: the temperature takes logits / temperature out of float32's range.
            DeviceLost: no later call can succeed.
        """
        ...

    def head_bytes(self, vocab_size: int) -> Sequence[memoryview]:
        """Returns the head's rows 0 .. vocab_size - 1, then its bias where it has one.

        Of dtype `facts.hidden_dtype`. Called only where "hidden" is offered.
        """
        ...
