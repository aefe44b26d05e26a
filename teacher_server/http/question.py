"""What every scoring route asks, and the asks that are made of it.

Legend: S tokens of one sequence, N asked rows, A candidate ids of each row.

Row i predicts token i + 1. So of S tokens at most S - 1 rows are asked, and row i is asked about
token i + 1 of the sequence itself, the realised one, besides what else is wanted of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lectern_common.errors import InvalidRequest
from lectern_common.wire.formats import Representation
from teacher_server.engine.seam import (
    ModelFacts,
    ScoringRequest,
    SequenceAsk,
    beside_record,
)
from teacher_server.http.sending import MAX_REPLY_BYTES
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.validation import require_offered

# An entry of a reply takes at most this many bytes of JSON: an id, a log-probability, a rank.
ENTRY_BYTES = 80
_BASE64_BYTES = 6  # of a float32 candidate, rounded up


@dataclass(frozen=True)
class Candidates:
    """Ids whose log-probabilities are asked at the last rows of a sequence.

    Attributes:
        ids_NA: int64; -1 pads a row that has fewer.
        first_row: the row of the sequence that `ids_NA[0]` is about.
    """

    ids_NA: npt.NDArray[np.int64]
    first_row: int


@dataclass(frozen=True)
class Question:
    """A checked body of a scoring route.

    Attributes:
        sequences: token ids, each at least one.
        field: what the body calls the sequences, for messages.
        temperature: > 0; the log-probabilities are those of logits / temperature.
        top_k: the likeliest ids of each row to list; None: no list is wanted.
        first_row: the first row that is asked, of every sequence.
        candidates: only with a single sequence.
        is_list: whether the body had a list of sequences.
        request_id: for logs, and repeated in the reply.
        user: who asks, if the body says so.
    """

    sequences: Sequence[npt.NDArray[np.uint32]]
    field: str
    temperature: float
    top_k: int | None
    first_row: int = 0
    candidates: Candidates | None = None
    is_list: bool = False
    request_id: str = ""
    user: str = ""

    def num_rows(self, ids_S: npt.NDArray[np.uint32]) -> int:
        """Returns how many rows of a sequence are asked; 0 if it has no token to predict."""
        return max(0, len(ids_S) - 1 - self.first_row)

    @property
    def listed(self) -> int:
        """How many of the likeliest ids are computed: the record of a row has at least one."""
        return max(1, self.top_k or 0)

    def scoring(self, run_id: str, facts: ModelFacts) -> ScoringRequest:
        """Returns the request for the queue; sequences without an asked row are left out.

        Raises:
            RepresentationNotOffered: the model offers no top_k.
        """
        require_offered("top_k", facts)
        asks = [self._ask(ids_S, facts) for ids_S in self.sequences if self.num_rows(ids_S)]
        row_bytes = beside_record(self.listed, self._num_also).itemsize
        return ScoringRequest(run_id, self.request_id, asks, row_bytes)

    @property
    def _num_also(self) -> int:
        return 1 if self.candidates is None else 1 + self.candidates.ids_NA.shape[1]

    def _ask(self, ids_S: npt.NDArray[np.uint32], facts: ModelFacts) -> SequenceAsk:
        asked_S = np.zeros(len(ids_S), bool)
        asked_S[self.first_row : -1] = True
        also_NA = np.zeros((self.num_rows(ids_S), self._num_also), np.uint32)
        also_NA[:, 0] = ids_S[self.first_row + 1 :]
        if self.candidates is not None:  # what pads is asked as id 0, and not told
            from_row = self.candidates.first_row - self.first_row
            also_NA[from_row:, 1:] = np.maximum(self.candidates.ids_NA, 0)
        return SequenceAsk(
            ids_S,
            asked_S,
            facts.logit_width,
            Representation("top_k", top_k=self.listed),
            self.temperature,
            also_NA,
        )

    @property
    def reply_bytes(self) -> int:
        """How large the reply may be, in bytes."""
        row_bytes = 0 if self.top_k is None else ENTRY_BYTES * (self.top_k + 1)
        num_bytes = row_bytes * sum(map(self.num_rows, self.sequences))
        if self.candidates is not None:
            num_bytes += self.candidates.ids_NA.size * _BASE64_BYTES
        return num_bytes

    def require_reply_fits(self, limits: Limits) -> None:
        """Raises InvalidRequest if the reply could be too large."""
        most = min(limits.max_reply_bytes, MAX_REPLY_BYTES)
        if self.reply_bytes > most:
            rows = sum(map(self.num_rows, self.sequences))
            raise InvalidRequest(
                f"the reply could be {self.reply_bytes} bytes of JSON ({rows} positions), over the "
                f"limit of {most} for a reply over HTTP; send fewer tokens, or ask for fewer ids "
                "of each",
                field=self.field,
            )


@dataclass(frozen=True)
class Scored:
    """The answer about one sequence: a row for each asked position; log-probabilities float64.

    Attributes:
        own_ids_N, own_log_probs_N, own_ranks_N: the realised token, and its place among all ids,
            from 1; of equal logits the lower id is first.
        top_ids_NK, top_log_probs_NK: the likeliest ids, falling.
        candidate_log_probs_NA: float32 [rows of the candidates, A]; -inf where they are padded.
    """

    own_ids_N: npt.NDArray[np.uint32]
    own_log_probs_N: npt.NDArray[np.float64]
    own_ranks_N: npt.NDArray[np.uint32]
    top_ids_NK: npt.NDArray[np.uint32]
    top_log_probs_NK: npt.NDArray[np.float64]
    candidate_log_probs_NA: npt.NDArray[np.float32] | None = None


def scored(question: Question, ask: SequenceAsk, payload: memoryview) -> Scored:
    """Returns the answer that an engine's rows for an ask of `question` hold."""
    if ask.also_NA is None:
        raise ValueError("the ask is not one of a question")
    record = beside_record(question.listed, ask.also_NA.shape[1])
    rows_N = np.frombuffer(payload, record)
    top_NK = _with_masks(rows_N["top"]["logits"]) / ask.temperature
    rest_N = rows_N["top"]["log_rest_t"].astype(np.float64)
    # Not the float32 normaliser of the row: summed from the listed ids and the rest, a
    # log-probability close to 0 keeps its digits.
    normalizer_N = _log_sum(np.concatenate([top_NK, rest_N[:, None]], axis=1))
    also_NA = _log_probs(_with_masks(rows_N["logits"]) / ask.temperature, normalizer_N)
    num_listed = question.top_k or 0
    candidates = question.candidates
    told_NA = None
    if candidates is not None:
        told_NA = also_NA[candidates.first_row - question.first_row :, 1:].astype(np.float32)
        told_NA[candidates.ids_NA < 0] = -np.inf
    return Scored(
        own_ids_N=ask.also_NA[:, 0],
        own_log_probs_N=also_NA[:, 0],
        own_ranks_N=rows_N["rank"],
        top_ids_NK=rows_N["top"]["ids"][:, :num_listed],
        top_log_probs_NK=_log_probs(top_NK, normalizer_N)[:, :num_listed],
        candidate_log_probs_NA=told_NA,
    )


def _with_masks(logits_NX: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns the logits with -inf for every one that means probability 0, such as the lowest."""
    from lectern_models.logits.masks import LOWEST_LOGIT  # which imports torch

    return np.where(logits_NX <= LOWEST_LOGIT, -np.inf, logits_NX.astype(np.float64))


def _log_probs(
    scaled_NX: npt.NDArray[np.float64], normalizer_N: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Returns log-probabilities, none above 0 by a rounding error."""
    return np.minimum(scaled_NX - normalizer_N[:, None], 0.0)


def _log_sum(values_NX: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns logsumexp of each row; a row has a finite value, and may have -inf."""
    largest_N1 = values_NX.max(axis=1, keepdims=True)
    sums_N = np.exp(values_NX - largest_N1).sum(axis=1)
    found: npt.NDArray[np.float64] = largest_N1[:, 0] + np.log(sums_N)
    return found
