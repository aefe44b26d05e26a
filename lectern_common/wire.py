"""Arrays as they travel: dtypes, row layouts, position masks. numpy only; no gRPC, no torch.

Legend: N rows (asked positions), V vocabulary, D hidden size, K top-k.

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
