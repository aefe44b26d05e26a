"""Arrays as they travel: dtypes, row layouts, position masks. numpy only; no gRPC, no torch.

Legend: N rows (asked positions), V vocabulary, D hidden size, K top-k, R records of sampled rows.

bfloat16 has no numpy dtype, so it travels and is held here as uint16 bit patterns; whoever computes
with it views it as bfloat16.
"""

import numpy as np
import numpy.typing as npt

from lectern_common.errors import InvalidRequest

PROTOCOL_VERSION = 1

# Payload bytes a piece of a reply stream aims at: over loopback, 0.5-2 MiB pieces move 1-2.5 GB/s,
# 64 KiB pieces a third of that.
PIECE_BYTES = 1 << 20

# Largest message of either direction. A piece holds whole rows, and one dense row of a large
# vocabulary is 0.6 MB; a request holds token ids alone.
MAX_MESSAGE_BYTES = 16 << 20

# dtype name -> numpy dtype that carries its bits, little-endian.
CARRIERS: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}


def top_k_record(k: int) -> np.dtype:
    """Returns the structured dtype of one TOP_K row: 8 k + 8 bytes, packed.

    Fields: `logits` float32 [k] falling; `ids` uint32 [k]; `log_rest_t` float32, the logsumexp of
    logits / temperature over the ids outside the k, -inf where there are none; `log_normalizer_t`
    float32, the same over all ids.
    """
    return np.dtype(
        [
            ("logits", "<f4", (k,)),
            ("ids", "<u4", (k,)),
            ("log_rest_t", "<f4"),
            ("log_normalizer_t", "<f4"),
        ]
    )


# What a SAMPLED record can hold: 24 bits of id, 8 bits of count - 1.
MAX_SAMPLED_ID = (1 << 24) - 1
MAX_DRAWS = 256


def sampled_record() -> np.dtype:
    """Returns the structured dtype of one SAMPLED record, 8 bytes: a distinct id of a row.

    Fields: `id_and_count` uint32, the id in the low 24 bits and its count - 1 in the high 8;
    `log_prob` float32, the id's log-probability at the asked temperature.
    """
    return np.dtype([("id_and_count", "<u4"), ("log_prob", "<f4")])


def pack_sampled(
    ids_R: npt.NDArray[np.integer],
    counts_R: npt.NDArray[np.integer],
    log_probs_R: npt.NDArray[np.floating],
) -> np.ndarray:
    """Returns `sampled_record()` [R].

    Raises:
        InvalidRequest: an id is not 0 to MAX_SAMPLED_ID, or a count not 1 to MAX_DRAWS.
    """
    if len(ids_R) and (int(ids_R.min()) < 0 or int(ids_R.max()) > MAX_SAMPLED_ID):
        raise InvalidRequest(
            f"sampled answers hold ids up to {MAX_SAMPLED_ID}; ask for hidden or top_k",
            field="vocab_size",
        )
    if len(counts_R) and (int(counts_R.min()) < 1 or int(counts_R.max()) > MAX_DRAWS):
        raise InvalidRequest(
            f"sampled answers hold counts of 1 to {MAX_DRAWS}; ask for fewer draws",
            field="representation.num_draws",
        )
    records_R = np.empty(len(ids_R), sampled_record())
    counts = counts_R.astype(np.uint32) - np.uint32(1)
    records_R["id_and_count"] = ids_R.astype(np.uint32) | (counts << np.uint32(24))
    records_R["log_prob"] = log_probs_R
    return records_R


def unpack_sampled(
    records_R: np.ndarray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Returns (ids, counts, log-probabilities), each [R], of `sampled_record()` [R]."""
    words = records_R["id_and_count"]
    ids_R = (words & np.uint32(MAX_SAMPLED_ID)).astype(np.int64)
    counts_R = (words >> np.uint32(24)).astype(np.int64) + 1
    return ids_R, counts_R, np.ascontiguousarray(records_R["log_prob"], np.float32)


def pack_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Returns one bit per token, least significant bit first, zero-padded to whole bytes."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpack_mask(data: bytes, num_tokens: int) -> npt.NDArray[np.bool_]:
    """Returns the bool mask [num_tokens] that `pack_mask` packed.

    Raises:
        InvalidRequest: the length is not ceil(num_tokens / 8) bytes, or a padding bit is set.
    """
    expected = (num_tokens + 7) // 8
    if len(data) != expected:
        raise InvalidRequest(
            f"position_mask has {len(data)} bytes; {num_tokens} tokens need {expected}",
            field="position_mask",
        )
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if bits[num_tokens:].any():
        raise InvalidRequest(
            f"position_mask sets a bit beyond token {num_tokens - 1}", field="position_mask"
        )
    return bits[:num_tokens].astype(bool)
