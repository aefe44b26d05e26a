"""Makes reply messages from facts, rows and counters. Nothing here waits."""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from lectern_common.wire.formats import (
    DTYPES,
    FORMATS,
    PIECE_BYTES,
    PROTOCOL_VERSION,
    sampled_record,
)
from lectern_common.wire.pieces import piece_message
from protos import teacher_pb2
from teacher_server.engine.seam import ComputedRows, ModelFacts, ScoringRequest
from teacher_server.rpc.limits import Limits
from teacher_server.scheduling.accounting import Accounting
from teacher_server.scheduling.batcher import Batcher
from teacher_server.scheduling.cache import Cache
from teacher_server.scheduling.requests import Ticket

_MAP_ENTRIES = 4096
_RECORD_BYTES = sampled_record().itemsize


class PieceCutter:
    """Gathers rows of sequences into pieces of about PIECE_BYTES, whole rows each.

    Args:
        row_bytes: size of a row; the largest for "sampled" rows, which come with their lengths.

    Attributes:
        crc32: over all payloads so far, in order.
        total_bytes: of all payloads so far.
    """

    def __init__(self, row_bytes: int) -> None:
        self._row_bytes = row_bytes
        self._rows_of_piece = max(1, PIECE_BYTES // row_bytes)
        self._held: list[memoryview] = []
        self._held_rows = 0
        self._held_lengths: list[npt.NDArray[np.uint32]] = []
        self._first_row = 0
        self.crc32 = 0
        self.total_bytes = 0

    def add(self, rows: ComputedRows) -> Iterator[bytes]:
        """Yields the pieces that these rows complete, as messages, and holds back the rest."""
        if rows.row_lengths is None:
            ends = None
            num_rows = len(rows.payload) // self._row_bytes
        else:
            ends = np.concatenate([[0], np.cumsum(rows.row_lengths, dtype=np.int64)])
            num_rows = len(rows.row_lengths)
        taken = 0
        while taken < num_rows:
            stop = min(num_rows, taken + self._rows_of_piece - self._held_rows)
            if ends is None or rows.row_lengths is None:
                first_byte, end_byte = taken * self._row_bytes, stop * self._row_bytes
            else:
                first_byte, end_byte = _RECORD_BYTES * ends[taken], _RECORD_BYTES * ends[stop]
                self._held_lengths.append(rows.row_lengths[taken:stop])
            self._hold(rows.payload[first_byte:end_byte])
            self._held_rows += stop - taken
            taken = stop
            if self._held_rows == self._rows_of_piece:
                yield self._piece()

    def rest(self) -> Iterator[bytes]:
        """Yields the last piece, if any rows are held back."""
        if self._held_rows:
            yield self._piece()

    def _hold(self, part: memoryview) -> None:
        self.crc32 = zlib.crc32(part, self.crc32)
        self.total_bytes += part.nbytes
        self._held.append(part)

    def _piece(self) -> bytes:
        lengths = np.concatenate(self._held_lengths).astype("<u4") if self._held_lengths else None
        row_lengths = b"" if lengths is None else lengths.tobytes()
        message = piece_message(self._first_row, self._held_rows, self._held, row_lengths)
        self._first_row += self._held_rows
        self._held.clear()
        self._held_rows = 0
        self._held_lengths.clear()
        return message


def head_replies(
    facts: ModelFacts, vocab_size: int, parts: Sequence[memoryview]
) -> Iterator[teacher_pb2.OutputHeadReply]:
    """Yields header, pieces and trailer of the output head's bytes."""
    header = teacher_pb2.OutputHeadHeader(
        fingerprint=facts.fingerprint,
        dtype=DTYPES[facts.hidden_dtype],
        vocab_size=vocab_size,
        hidden_size=facts.hidden_size,
        transform=head_transform(facts),
        total_bytes=sum(len(part) for part in parts),
    )
    yield teacher_pb2.OutputHeadReply(header=header)
    crc32 = 0
    for part in parts:
        for start in range(0, len(part), PIECE_BYTES):
            piece = part[start : start + PIECE_BYTES].tobytes()
            crc32 = zlib.crc32(piece, crc32)
            yield teacher_pb2.OutputHeadReply(piece=piece)
    yield teacher_pb2.OutputHeadReply(trailer=teacher_pb2.OutputHeadTrailer(crc32=crc32))


def tokenizer_replies(facts: ModelFacts) -> Iterator[teacher_pb2.TokenizerMapReply]:
    """Yields the token-to-id map in rising id order; nothing without a tokenizer."""
    tokens = facts.tokens or {}
    names, ids = list(tokens), np.fromiter(tokens.values(), np.int64, len(tokens))
    rising = np.argsort(ids, kind="stable")  # sorting pairs would block the loop five times longer
    for start in range(0, len(names), _MAP_ENTRIES):
        part = rising[start : start + _MAP_ENTRIES]
        yield teacher_pb2.TokenizerMapReply(
            tokens=[names[index].encode("utf-8", "surrogatepass") for index in part],
            ids=ids[part].tolist(),
        )


def head_transform(facts: ModelFacts) -> teacher_pb2.HeadTransform:
    """Returns the head's transform as a message."""
    head = facts.head
    return teacher_pb2.HeadTransform(
        scale=head.scale,
        divisor=head.divisor,
        soft_cap=head.soft_cap or 0.0,
        has_bias=head.has_bias,
    )


def logits_header(
    request: teacher_pb2.LogitsForBatchRequest, scoring: ScoringRequest, facts: ModelFacts
) -> teacher_pb2.LogitsForBatchReply:
    """Returns what a client needs to parse the pieces."""
    asked = scoring.asks[0].representation  # the same in every ask
    widths = facts.widths(request.vocab_size)
    row_bytes = asked.header_row_bytes(widths)
    header = teacher_pb2.LogitsHeader(
        fingerprint=facts.fingerprint,
        kind=asked.format.enum,
        dtype=DTYPES[asked.dtype(widths)],
        num_rows=scoring.num_rows,
        row_bytes=row_bytes,
        total_bytes=scoring.num_rows * row_bytes,
        vocab_size=request.vocab_size,
    )
    return teacher_pb2.LogitsForBatchReply(header=header)


def logits_trailer(cutter: PieceCutter, ticket: Ticket) -> teacher_pb2.LogitsForBatchReply:
    """Returns the checksum, the size, and how the answer was computed."""
    trailer = teacher_pb2.LogitsTrailer(
        crc32=cutter.crc32,
        total_bytes=cutter.total_bytes,
        queue_seconds=ticket.queue_seconds,
        compute_seconds=ticket.compute_seconds,
        cache_hits=ticket.cache_hits,
    )
    return teacher_pb2.LogitsForBatchReply(trailer=trailer)


def model(facts: ModelFacts, limits: Limits) -> teacher_pb2.Model:
    """Returns what clients may know about the model and the server."""
    return teacher_pb2.Model(
        protocol_version=PROTOCOL_VERSION,
        model_id=facts.model_id,
        revision=facts.revision,
        weights_sha256=facts.weights_sha256,
        fingerprint=facts.fingerprint,
        logit_width=facts.logit_width,
        num_tokens=facts.num_tokens,
        tokenizer_sha256=facts.tokenizer_sha256,
        max_positions=facts.max_positions or limits.max_sequence_tokens,
        hidden_size=facts.hidden_size,
        hidden_dtype=DTYPES[facts.hidden_dtype],
        dtype=facts.dtype,
        quantization=facts.quantization,
        device=facts.device,
        head_transform=head_transform(facts),
        representations=[
            teacher_pb2.RepresentationOffer(
                kind=form.enum,
                offered=facts.why_not(name) is None,
                reason=facts.why_not(name) or "",
            )
            for name, form in FORMATS.items()
        ],
        limits=teacher_pb2.Limits(**dataclasses.asdict(limits)),
        engine=facts.engine,
        mode=facts.mode,
        num_parameters=facts.num_parameters,
        tensor_parallel=facts.tensor_parallel,
        measured_tokens_per_second=facts.measured_tokens_per_second,
        text_beginning=None
        if facts.tokens_before_text is None
        else teacher_pb2.TextBeginning(token_ids=facts.tokens_before_text),
    )


def stats(
    facts: ModelFacts,
    batcher: Batcher,
    accounting: Accounting,
    device_utilization: float | None = None,
) -> teacher_pb2.Stats:
    """Returns the counters; `device_utilization` is 0 .. 1, None if the device does not say."""
    return teacher_pb2.Stats(
        fingerprint=facts.fingerprint,
        uptime_seconds=accounting.uptime_seconds,
        queued_requests=batcher.queued_requests,
        queued_tokens=batcher.queued_tokens,
        running_requests=batcher.running_requests,
        scored_tokens=accounting.scored_tokens,
        scored_sequences=accounting.scored_sequences,
        sent_bytes=accounting.sent_bytes,
        compute_seconds=accounting.compute_seconds,
        tokens_per_second=accounting.tokens_per_second(),
        refused_requests=accounting.refused_requests,
        failed_requests=accounting.failed_requests,
        cache=_cache_stats(batcher.cache),
        runs=[
            teacher_pb2.RunStats(
                run_id=run_id,
                weight=batcher.fair_share.weight(run_id),
                **{**dataclasses.asdict(run), "tokens": round(run.tokens)},
            )
            for run_id, run in accounting.runs.items()
        ],
        device=facts.device,
        device_utilization=device_utilization,
        dtype=facts.dtype,
        quantization=facts.quantization,
        mode=facts.mode,
        measured_tokens_per_second=facts.measured_tokens_per_second,
        forwards=accounting.forwards,
        padding_tokens=accounting.padding_tokens,
    )


def _cache_stats(cache: Cache) -> teacher_pb2.CacheStats:
    disk = cache.disk
    return teacher_pb2.CacheStats(
        hits=cache.hits,
        misses=cache.misses,
        evictions=cache.evictions,
        used_bytes=cache.used_bytes,
        capacity_bytes=cache.capacity_bytes,
        disk_hits=cache.disk_hits,
        disk_used_bytes=0 if disk is None else disk.used_bytes,
        disk_capacity_bytes=0 if disk is None else disk.capacity_bytes,
    )
