"""How much one server accepts at once. Sent to every client in Model.limits."""

from dataclasses import dataclass

from lectern_common.wire.formats import MAX_DRAWS, MAX_MESSAGE_BYTES


@dataclass(frozen=True)
class Limits:
    """Caps on a request and on the queue; fields as in the proto's Limits.

    `max_sequence_tokens` is already the smaller of the server's and the model's.
    """

    max_sequences: int = 1024
    max_tokens: int = 262_144
    max_sequence_tokens: int = 32_768
    max_top_k: int = 4096
    max_reply_bytes: int = 1 << 30
    max_queued_requests: int = 64
    # What a connection may make the server hold in memory before a call begins.
    max_request_bytes: int = MAX_MESSAGE_BYTES
    max_draws: int = MAX_DRAWS


def request_bytes(max_tokens: int, max_sequences: int) -> int:
    """Returns the size of the largest valid request: ids, mask, lengths, and the rest."""
    return min(MAX_MESSAGE_BYTES, 4 * max_tokens + max_tokens // 8 + 6 * max_sequences + (64 << 10))
