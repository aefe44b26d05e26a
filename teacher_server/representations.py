"""Hidden states or logits into rows of bytes, a few rows at a time.

Legend: N asked rows, C rows of one chunk, V asked vocabulary, D hidden size, K top-k.

Every function takes logits that are already sliced to the asked vocabulary: no id beyond it has
part in a softmax.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lectern_common.errors import TeacherError
from lectern_common.wire import top_k_record
from lectern_models.top_k import log_normalizers, ordered_top_k

# Logits that stand in memory at once; a row of 152,064 logits is 0.6 MB.
CHUNK_BYTES = 32 << 20

# Rows start .. stop - 1 -> their float32 logits [C, V].
LogitsOfRows = Callable[[int, int], Tensor]


def hidden_rows(hidden_ND: Tensor) -> memoryview:
    """Returns the bits of the hidden states, whatever their dtype.

    Raises:
        TeacherError: a value is not finite.
    """
    _require_finite(hidden_ND, 0)
    return bits(hidden_ND).data.cast("B")


def dense_rows(num_rows: int, vocab_size: int, logits_of: LogitsOfRows) -> memoryview:
    """Returns float32 logits [N, V] as bytes.

    Raises:
        TeacherError: a logit is not finite.
    """
    rows_NV = np.empty((num_rows, vocab_size), "<f4")
    for start, stop in _chunks(num_rows, vocab_size):
        logits_CV = logits_of(start, stop)
        _require_finite(logits_CV, start)
        rows_NV[start:stop] = logits_CV.cpu().numpy()
    return rows_NV.data.cast("B")


def top_k_rows(
    num_rows: int, vocab_size: int, logits_of: LogitsOfRows, k: int, temperature: float
) -> memoryview:
    """Returns N records of `top_k_record(k)` as bytes. Equal logits: the lower id comes first.

    Raises:
        TeacherError: a logit is not finite.
        InvalidRequest: logits / temperature leave float32's range.
    """
    records_N = np.empty(num_rows, top_k_record(k))
    for start, stop in _chunks(num_rows, vocab_size):
        logits_CV = logits_of(start, stop)
        _require_finite(logits_CV, start)
        values_CK, ids_CK = ordered_top_k(logits_CV, k)
        rest_C, normalizer_C = log_normalizers(logits_CV, ids_CK, temperature)
        chunk = records_N[start:stop]
        chunk["logits"] = values_CK.cpu().numpy()
        chunk["ids"] = ids_CK.cpu().numpy()
        chunk["log_rest_t"] = rest_C.cpu().numpy()
        chunk["log_normalizer_t"] = normalizer_C.cpu().numpy()
    return records_N.view(np.uint8).data


def bits(values: Tensor) -> np.ndarray:
    """Returns the tensor on the CPU as numpy; bfloat16, which numpy lacks, as its bit patterns."""
    values = values.detach().cpu().contiguous()
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()


def _chunks(num_rows: int, vocab_size: int) -> list[tuple[int, int]]:
    rows = max(1, CHUNK_BYTES // (4 * vocab_size))
    return [(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def _require_finite(values_CX: Tensor, first_row: int) -> None:
    finite_C = values_CX.isfinite().all(-1)
    if not bool(finite_C.all()):
        row = first_row + int((~finite_C).nonzero()[0])
        raise TeacherError(
            f"the model's output is not finite (asked position {row} of a sequence); it cannot be "
            "used as a target"
        )
