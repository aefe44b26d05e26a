"""Checks every field of a request and turns it into plain data, before any engine sees it.

Legend: S tokens of one sequence, T tokens of all sequences.
"""

import math
import re

import numpy as np
import numpy.typing as npt

from lectern_common.errors import (
    Incompatible,
    InvalidRequest,
    RepresentationNotOffered,
    WrongModel,
)
from lectern_common.wire.formats import PROTOCOL_VERSION, Representation, unpack_mask
from protos import teacher_pb2
from teacher_server.engine.seam import ModelFacts, ScoringRequest, SequenceAsk
from teacher_server.rpc.limits import Limits

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_REQUEST_ID = re.compile(r"[ -~]{0,64}")


def require_protocol(version: int) -> None:
    """Raises Incompatible unless the client speaks this version of the contract."""
    if version != PROTOCOL_VERSION:
        raise Incompatible(
            f"protocol_version is {version}; this server expects {PROTOCOL_VERSION}: use a client "
            "of the server's version"
        )


def require_model(expected_fingerprint: str, facts: ModelFacts) -> None:
    """Raises WrongModel if the client expects another model; "" accepts any model."""
    if expected_fingerprint not in ("", facts.fingerprint):
        raise WrongModel(
            f"this server's model is {facts.model_id} (fingerprint {facts.fingerprint[:12]}); "
            f"expected fingerprint {expected_fingerprint[:12]!a}"
        )


def scoring_request(
    request: teacher_pb2.LogitsForBatchRequest, facts: ModelFacts, limits: Limits
) -> ScoringRequest:
    """Returns the request as plain data.

    Raises:
        InvalidRequest: a field is invalid; names it and its limit.
        Incompatible, WrongModel, RepresentationNotOffered: valid, but not on this server.
    """
    require_protocol(request.protocol_version)
    if not RUN_ID.fullmatch(request.run_id):
        raise InvalidRequest(f"run_id must match {RUN_ID.pattern}", field="run_id")
    if not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidRequest(
            "request_id must be at most 64 printable ASCII characters", field="request_id"
        )
    require_model(request.expected_fingerprint, facts)
    require_vocab_size(request.vocab_size, facts)
    representation = _representation(request, facts, limits)
    temperature = _temperature(request.temperature)
    lengths = _sequence_lengths(request, limits)
    token_ids_T = _token_ids(request.token_ids, sum(lengths), facts)
    asked_T = _asked(request, lengths)

    row_bytes = representation.row_bytes(facts.widths(request.vocab_size))
    _require_reply_fits(asked_T, lengths, row_bytes, representation, limits)
    ends = np.cumsum(lengths)
    sequences = zip(np.split(token_ids_T, ends[:-1]), np.split(asked_T, ends[:-1]), strict=True)
    asks = [
        SequenceAsk(token_ids_S, asked_S, request.vocab_size, representation, temperature)
        for token_ids_S, asked_S in sequences
        if asked_S.any()
    ]
    return ScoringRequest(
        request.run_id, request.request_id, asks, row_bytes, comes_once=request.comes_once
    )


def require_vocab_size(vocab_size: int, facts: ModelFacts) -> None:
    """Raises InvalidRequest unless the head is at least that wide."""
    if not 1 <= vocab_size <= facts.logit_width:
        raise InvalidRequest(
            f"vocab_size is {vocab_size}; it must be between 1 and the model's {facts.logit_width}",
            field="vocab_size",
        )


def require_offered(kind: str, facts: ModelFacts) -> None:
    """Raises RepresentationNotOffered, with the reason, unless the model offers it."""
    reason = facts.why_not(kind)
    if reason is not None:
        raise RepresentationNotOffered(f"{kind} is not offered: {reason}")


def _representation(
    request: teacher_pb2.LogitsForBatchRequest, facts: ModelFacts, limits: Limits
) -> Representation:
    asked = Representation.of_message(request.representation)
    require_offered(asked.kind, facts)
    largest_k = min(request.vocab_size, limits.max_top_k)
    if asked.top_k is not None and not 1 <= asked.top_k <= largest_k:
        raise InvalidRequest(
            f"representation.top_k is {asked.top_k}; it must be between 1 and {largest_k}, the "
            "smaller of vocab_size and the server's max_top_k",
            field="representation.top_k",
        )
    if asked.num_draws is not None and not 1 <= asked.num_draws <= limits.max_draws:
        raise InvalidRequest(
            f"representation.num_draws is {asked.num_draws}; it must be between 1 and "
            f"{limits.max_draws}",
            field="representation.num_draws",
        )
    return asked


def _temperature(temperature: float) -> float:
    if not (math.isfinite(temperature) and temperature > 0):
        raise InvalidRequest(
            f"temperature is {temperature}; it must be finite and above 0", field="temperature"
        )
    return temperature


def _sequence_lengths(
    request: teacher_pb2.LogitsForBatchRequest, limits: Limits
) -> npt.NDArray[np.int64]:
    field = "sequence_lengths"
    num_sequences = len(request.sequence_lengths)
    if not 1 <= num_sequences <= limits.max_sequences:  # before reading up to 16 million of them
        raise InvalidRequest(
            f"sequence_lengths has {num_sequences} sequences; it must have between 1 and "
            f"{limits.max_sequences}",
            field=field,
        )
    lengths = np.fromiter(request.sequence_lengths, np.int64, num_sequences)
    for index in (int(lengths.argmin()), int(lengths.argmax())):
        if not 1 <= lengths[index] <= limits.max_sequence_tokens:
            raise InvalidRequest(
                f"sequence_lengths[{index}] is {lengths[index]} tokens; it must be between 1 and "
                f"{limits.max_sequence_tokens}",
                field=field,
            )
    if lengths.sum() > limits.max_tokens:
        raise InvalidRequest(
            f"sequence_lengths sum to {lengths.sum()} tokens; a request holds at most "
            f"{limits.max_tokens}",
            field=field,
        )
    return lengths


def _token_ids(data: bytes, num_tokens: int, facts: ModelFacts) -> npt.NDArray[np.uint32]:
    if len(data) != 4 * num_tokens:
        raise InvalidRequest(
            f"token_ids has {len(data)} bytes; {num_tokens} tokens (the sum of sequence_lengths) "
            f"need {4 * num_tokens}",
            field="token_ids",
        )
    token_ids_T = np.frombuffer(data, "<u4")
    index = int(token_ids_T.argmax())
    if token_ids_T[index] >= facts.logit_width:
        raise InvalidRequest(
            f"token_ids[{index}] is {token_ids_T[index]}; it must be at most "
            f"{facts.logit_width - 1}",
            field="token_ids",
        )
    return token_ids_T


def _asked(
    request: teacher_pb2.LogitsForBatchRequest, lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Returns which of the T tokens are asked."""
    num_tokens = int(lengths.sum())
    if request.positions == teacher_pb2.POSITIONS_MASK:
        asked_T = unpack_mask(request.position_mask, num_tokens)
        if not asked_T.any():
            raise InvalidRequest(
                "position_mask has no bit set; ask for at least one position",
                field="position_mask",
            )
        return asked_T
    if request.position_mask:
        raise InvalidRequest(
            "position_mask is only for POSITIONS_MASK; leave it out",
            field="position_mask",
        )
    if request.positions == teacher_pb2.POSITIONS_ALL:
        return np.ones(num_tokens, bool)
    if request.positions == teacher_pb2.POSITIONS_LAST:
        asked_T = np.zeros(num_tokens, bool)
        asked_T[np.cumsum(lengths) - 1] = True
        return asked_T
    raise InvalidRequest(
        f"positions is {request.positions}; expected POSITIONS_ALL, POSITIONS_LAST or "
        "POSITIONS_MASK",
        field="positions",
    )


def _require_reply_fits(
    asked_T: npt.NDArray[np.bool_],
    lengths: npt.NDArray[np.int64],
    row_bytes: int,
    representation: Representation,
    limits: Limits,
) -> None:
    num_rows = int(asked_T.sum())
    if num_rows * row_bytes <= limits.max_reply_bytes:
        return
    ends = np.cumsum(lengths)
    rows_until = np.cumsum(asked_T)[ends - 1]
    fitting = int((rows_until * row_bytes <= limits.max_reply_bytes).sum())
    raise InvalidRequest(
        f"the reply would be {num_rows * row_bytes} bytes of {representation.kind} ({num_rows} "
        f"positions of {row_bytes}), over the limit of {limits.max_reply_bytes}; at most "
        f"{limits.max_reply_bytes // row_bytes} positions fit, the first {fitting} of these "
        f"{len(lengths)} sequences: send fewer, or ask for another representation",
        field="sequence_lengths",
    )
