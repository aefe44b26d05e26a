"""Turns hidden states or logits into rows of bytes, a few rows at a time.

Legend: S tokens, N asked rows, C rows of one chunk, V asked vocabulary, D hidden size, K top-k.

Every function takes logits that are already sliced to the asked vocabulary, so no id beyond it
takes part in a softmax.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lectern_common.errors import TeacherError
from lectern_common.wire.formats import CARRIERS, pack_sampled, top_k_record
from lectern_models.masks import first_row_without_distribution
from lectern_models.output_head import OutputHead
from lectern_models.sampled import draw, uniforms
from lectern_models.top_k import log_normalizers, ordered_top_k
from teacher_server.engine.seam import ComputedRows, NoLongerWanted, SequenceAsk

# Bytes of float32 logits in a chunk. On the CPU they should stay in its cache between passes; on
# CUDA the product needs many rows to fill the device.
_CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
# Each chunk reads the whole head, so fewer rows make slow matrix products.
_MIN_CHUNK_ROWS = 16


@dataclass(frozen=True)
class Logits:
    """The asked logits of a sequence, computed a few rows at a time.

    `of_rows(start, stop)` returns float32 [C, V]; `wanted` is called before each chunk.
    """

    num_rows: int
    vocab_size: int
    device: torch.device
    of_rows: Callable[[int, int], Tensor]
    wanted: Callable[[], bool]

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yields each chunk's slice of the rows and its logits.

        Raises:
            NoLongerWanted: no client waits for them any more.
            TeacherError: a logit is not finite; -inf, a masked id, is allowed beside others.
        """
        wanted_bytes = _CHUNK_BYTES.get(self.device.type, _CHUNK_BYTES["cuda"])
        size = max(_MIN_CHUNK_ROWS, wanted_bytes // (4 * self.vocab_size))
        for start in range(0, self.num_rows, size):
            if not self.wanted():
                raise NoLongerWanted
            stop = min(start + size, self.num_rows)
            logits_CV = self.of_rows(start, stop)
            bad_row = first_row_without_distribution(logits_CV)
            if bad_row is not None:
                raise TeacherError(
                    f"the model's logits are not finite (asked position {start + bad_row} of a "
                    "sequence), or all -inf; they cannot be used as a target"
                )
            yield slice(start, stop), logits_CV


def rows_of_hidden(
    hidden_ND: Tensor, head: OutputHead, ask: SequenceAsk, wanted: Callable[[], bool]
) -> ComputedRows:
    """Returns the answer to any ask but one for "hidden", computed from hidden states.

    Args:
        hidden_ND: hidden states of the asked positions, on the head's device.
        head: sliced to the asked vocabulary.
        ask: what to compute.
        wanted: see Logits.

    Raises:
        NoLongerWanted, TeacherError, InvalidRequest: as rows_of_logits.
    """

    def of_rows(start: int, stop: int) -> Tensor:
        return head.logits(hidden_ND[start:stop])

    device = head.weight_VD.device
    return rows_of_logits(Logits(ask.num_rows, ask.vocab_size, device, of_rows, wanted), ask)


def rows_of_logits(logits: Logits, ask: SequenceAsk) -> ComputedRows:
    """Returns the answer to an ask for "dense", "top_k" or "sampled".

    Raises:
        NoLongerWanted, TeacherError: as Logits.chunks.
        InvalidRequest: logits / temperature leave float32's range.
    """
    return _OF_LOGITS[ask.representation.kind](logits, ask)


def hidden_rows(hidden_SD: Tensor) -> ComputedRows:
    """Returns the bits of the hidden states, whatever their dtype, in memory of their own."""
    return ComputedRows(bits(hidden_SD).data.cast("B"), first_bad_row=first_bad_row(hidden_SD))


def first_bad_row(values_NX: Tensor) -> int | None:
    """Returns the first row that holds a value that is not finite, or None."""
    finite_N = values_NX.isfinite().all(-1)
    return None if bool(finite_N.all()) else int((~finite_N).nonzero()[0])


def _dense_rows(logits: Logits, _ask: SequenceAsk) -> ComputedRows:
    """float32 logits [N, V]."""
    rows_NV = np.empty((logits.num_rows, logits.vocab_size), "<f4")
    for rows, logits_CV in logits.chunks():
        rows_NV[rows] = logits_CV.cpu().numpy()
    return ComputedRows(rows_NV.data.cast("B"))


def _top_k_rows(logits: Logits, ask: SequenceAsk) -> ComputedRows:
    """N records of `top_k_record(k)`. Equal logits: the lower id comes first."""
    k = ask.representation.top_k or 0
    records_N = np.empty(logits.num_rows, top_k_record(k))
    for rows, logits_CV in logits.chunks():
        values_CK, ids_CK = ordered_top_k(logits_CV, k)
        rest_C, normalizer_C = log_normalizers(logits_CV, ids_CK, ask.temperature)
        chunk = records_N[rows]
        chunk["logits"] = values_CK.cpu().numpy()
        chunk["ids"] = ids_CK.cpu().numpy()
        chunk["log_rest_t"] = rest_C.cpu().numpy()
        chunk["log_normalizer_t"] = normalizer_C.cpu().numpy()
    return ComputedRows(records_N.view(np.uint8).data)


def _sampled_rows(logits: Logits, ask: SequenceAsk) -> ComputedRows:
    """Records of `sampled_record()`, by rising id within a row, and their number in each row."""
    asked = ask.representation
    seed, num_draws = asked.seed or 0, asked.num_draws or 0
    uniforms_NU = uniforms(seed, ask.token_ids_S, ask.asked_S, num_draws)
    records, lengths = [], []
    for rows, logits_CV in logits.chunks():
        draws = draw(logits_CV, torch.from_numpy(uniforms_NU[rows]), ask.temperature)
        parts = (draws.ids_R, draws.counts_R, draws.log_probs_R)
        records.append(pack_sampled(*(part.cpu().numpy() for part in parts)))
        lengths.append(draws.row_lengths_C.cpu().numpy().astype(np.uint32))
    return ComputedRows(np.concatenate(records).view(np.uint8).data, np.concatenate(lengths))


# All but "hidden", whose rows are the hidden states themselves.
_OF_LOGITS: dict[str, Callable[[Logits, SequenceAsk], ComputedRows]] = {
    "dense": _dense_rows,
    "top_k": _top_k_rows,
    "sampled": _sampled_rows,
}


def bits(values: Tensor) -> np.ndarray:
    """Returns the tensor on the CPU as numpy; bfloat16, which numpy lacks, as its bit patterns."""
    values = values.detach().cpu().contiguous()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def from_bits(payload: memoryview, dtype: str, num_rows: int) -> Tensor:
    """Returns the rows whose bytes `bits` made, sharing their memory."""
    carried = torch.from_numpy(np.frombuffer(payload, CARRIERS[dtype]).reshape(num_rows, -1))
    return carried.view(torch.bfloat16) if dtype == "bfloat16" else carried
