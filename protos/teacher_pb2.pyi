from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_UINT32: _ClassVar[DType]

class RepresentationKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPRESENTATION_UNSPECIFIED: _ClassVar[RepresentationKind]
    REPRESENTATION_DENSE: _ClassVar[RepresentationKind]
    REPRESENTATION_HIDDEN: _ClassVar[RepresentationKind]
    REPRESENTATION_TOP_K: _ClassVar[RepresentationKind]
    REPRESENTATION_SAMPLED: _ClassVar[RepresentationKind]

class PositionSelection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POSITIONS_UNSPECIFIED: _ClassVar[PositionSelection]
    POSITIONS_ALL: _ClassVar[PositionSelection]
    POSITIONS_LAST: _ClassVar[PositionSelection]
    POSITIONS_MASK: _ClassVar[PositionSelection]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT16: DType
DTYPE_BFLOAT16: DType
DTYPE_UINT32: DType
REPRESENTATION_UNSPECIFIED: RepresentationKind
REPRESENTATION_DENSE: RepresentationKind
REPRESENTATION_HIDDEN: RepresentationKind
REPRESENTATION_TOP_K: RepresentationKind
REPRESENTATION_SAMPLED: RepresentationKind
POSITIONS_UNSPECIFIED: PositionSelection
POSITIONS_ALL: PositionSelection
POSITIONS_LAST: PositionSelection
POSITIONS_MASK: PositionSelection

class GetModelRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("protocol_version", "model_id", "revision", "weights_sha256", "fingerprint", "logit_width", "num_tokens", "tokenizer_sha256", "max_positions", "hidden_size", "hidden_dtype", "dtype", "quantization", "device", "head_transform", "representations", "limits", "engine", "mode", "num_parameters", "measured_tokens_per_second", "text_beginning", "tensor_parallel")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LOGIT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_DTYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HEAD_TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    REPRESENTATIONS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TEXT_BEGINNING_FIELD_NUMBER: _ClassVar[int]
    TENSOR_PARALLEL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    model_id: str
    revision: str
    weights_sha256: str
    fingerprint: str
    logit_width: int
    num_tokens: int
    tokenizer_sha256: str
    max_positions: int
    hidden_size: int
    hidden_dtype: DType
    dtype: str
    quantization: str
    device: str
    head_transform: HeadTransform
    representations: _containers.RepeatedCompositeFieldContainer[RepresentationOffer]
    limits: Limits
    engine: str
    mode: str
    num_parameters: int
    measured_tokens_per_second: float
    text_beginning: TextBeginning
    tensor_parallel: int
    def __init__(self, protocol_version: _Optional[int] = ..., model_id: _Optional[str] = ..., revision: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., fingerprint: _Optional[str] = ..., logit_width: _Optional[int] = ..., num_tokens: _Optional[int] = ..., tokenizer_sha256: _Optional[str] = ..., max_positions: _Optional[int] = ..., hidden_size: _Optional[int] = ..., hidden_dtype: _Optional[_Union[DType, str]] = ..., dtype: _Optional[str] = ..., quantization: _Optional[str] = ..., device: _Optional[str] = ..., head_transform: _Optional[_Union[HeadTransform, _Mapping]] = ..., representations: _Optional[_Iterable[_Union[RepresentationOffer, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., engine: _Optional[str] = ..., mode: _Optional[str] = ..., num_parameters: _Optional[int] = ..., measured_tokens_per_second: _Optional[float] = ..., text_beginning: _Optional[_Union[TextBeginning, _Mapping]] = ..., tensor_parallel: _Optional[int] = ...) -> None: ...

class TextBeginning(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RepresentationOffer(_message.Message):
    __slots__ = ("kind", "offered", "reason")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OFFERED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: RepresentationKind
    offered: bool
    reason: str
    def __init__(self, kind: _Optional[_Union[RepresentationKind, str]] = ..., offered: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class HeadTransform(_message.Message):
    __slots__ = ("scale", "divisor", "soft_cap", "has_bias")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    DIVISOR_FIELD_NUMBER: _ClassVar[int]
    SOFT_CAP_FIELD_NUMBER: _ClassVar[int]
    HAS_BIAS_FIELD_NUMBER: _ClassVar[int]
    scale: float
    divisor: float
    soft_cap: float
    has_bias: bool
    def __init__(self, scale: _Optional[float] = ..., divisor: _Optional[float] = ..., soft_cap: _Optional[float] = ..., has_bias: _Optional[bool] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_sequences", "max_tokens", "max_sequence_tokens", "max_top_k", "max_draws", "max_reply_bytes", "max_request_bytes", "max_queued_requests")
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOP_K_FIELD_NUMBER: _ClassVar[int]
    MAX_DRAWS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    max_sequences: int
    max_tokens: int
    max_sequence_tokens: int
    max_top_k: int
    max_draws: int
    max_reply_bytes: int
    max_request_bytes: int
    max_queued_requests: int
    def __init__(self, max_sequences: _Optional[int] = ..., max_tokens: _Optional[int] = ..., max_sequence_tokens: _Optional[int] = ..., max_top_k: _Optional[int] = ..., max_draws: _Optional[int] = ..., max_reply_bytes: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_queued_requests: _Optional[int] = ...) -> None: ...

class Representation(_message.Message):
    __slots__ = ("kind", "top_k", "num_draws", "seed")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    NUM_DRAWS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    kind: RepresentationKind
    top_k: int
    num_draws: int
    seed: int
    def __init__(self, kind: _Optional[_Union[RepresentationKind, str]] = ..., top_k: _Optional[int] = ..., num_draws: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class LogitsForBatchRequest(_message.Message):
    __slots__ = ("protocol_version", "run_id", "request_id", "expected_fingerprint", "token_ids", "sequence_lengths", "positions", "position_mask", "vocab_size", "representation", "temperature", "comes_once")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    POSITION_MASK_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    REPRESENTATION_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    COMES_ONCE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    run_id: str
    request_id: str
    expected_fingerprint: str
    token_ids: bytes
    sequence_lengths: _containers.RepeatedScalarFieldContainer[int]
    positions: PositionSelection
    position_mask: bytes
    vocab_size: int
    representation: Representation
    temperature: float
    comes_once: bool
    def __init__(self, protocol_version: _Optional[int] = ..., run_id: _Optional[str] = ..., request_id: _Optional[str] = ..., expected_fingerprint: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., sequence_lengths: _Optional[_Iterable[int]] = ..., positions: _Optional[_Union[PositionSelection, str]] = ..., position_mask: _Optional[bytes] = ..., vocab_size: _Optional[int] = ..., representation: _Optional[_Union[Representation, _Mapping]] = ..., temperature: _Optional[float] = ..., comes_once: _Optional[bool] = ...) -> None: ...

class LogitsForBatchReply(_message.Message):
    __slots__ = ("header", "piece", "trailer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    header: LogitsHeader
    piece: LogitsPiece
    trailer: LogitsTrailer
    def __init__(self, header: _Optional[_Union[LogitsHeader, _Mapping]] = ..., piece: _Optional[_Union[LogitsPiece, _Mapping]] = ..., trailer: _Optional[_Union[LogitsTrailer, _Mapping]] = ...) -> None: ...

class LogitsHeader(_message.Message):
    __slots__ = ("fingerprint", "kind", "dtype", "num_rows", "row_bytes", "total_bytes", "vocab_size")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    kind: RepresentationKind
    dtype: DType
    num_rows: int
    row_bytes: int
    total_bytes: int
    vocab_size: int
    def __init__(self, fingerprint: _Optional[str] = ..., kind: _Optional[_Union[RepresentationKind, str]] = ..., dtype: _Optional[_Union[DType, str]] = ..., num_rows: _Optional[int] = ..., row_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., vocab_size: _Optional[int] = ...) -> None: ...

class LogitsPiece(_message.Message):
    __slots__ = ("first_row", "num_rows", "payload", "row_lengths")
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    ROW_LENGTHS_FIELD_NUMBER: _ClassVar[int]
    first_row: int
    num_rows: int
    payload: bytes
    row_lengths: bytes
    def __init__(self, first_row: _Optional[int] = ..., num_rows: _Optional[int] = ..., payload: _Optional[bytes] = ..., row_lengths: _Optional[bytes] = ...) -> None: ...

class LogitsTrailer(_message.Message):
    __slots__ = ("crc32", "total_bytes", "queue_seconds", "compute_seconds", "cache_hits")
    CRC32_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    crc32: int
    total_bytes: int
    queue_seconds: float
    compute_seconds: float
    cache_hits: int
    def __init__(self, crc32: _Optional[int] = ..., total_bytes: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., cache_hits: _Optional[int] = ...) -> None: ...

class GetOutputHeadRequest(_message.Message):
    __slots__ = ("protocol_version", "vocab_size", "expected_fingerprint")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    vocab_size: int
    expected_fingerprint: str
    def __init__(self, protocol_version: _Optional[int] = ..., vocab_size: _Optional[int] = ..., expected_fingerprint: _Optional[str] = ...) -> None: ...

class OutputHeadReply(_message.Message):
    __slots__ = ("header", "piece", "trailer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    header: OutputHeadHeader
    piece: bytes
    trailer: OutputHeadTrailer
    def __init__(self, header: _Optional[_Union[OutputHeadHeader, _Mapping]] = ..., piece: _Optional[bytes] = ..., trailer: _Optional[_Union[OutputHeadTrailer, _Mapping]] = ...) -> None: ...

class OutputHeadHeader(_message.Message):
    __slots__ = ("fingerprint", "dtype", "vocab_size", "hidden_size", "transform", "total_bytes")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    dtype: DType
    vocab_size: int
    hidden_size: int
    transform: HeadTransform
    total_bytes: int
    def __init__(self, fingerprint: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., vocab_size: _Optional[int] = ..., hidden_size: _Optional[int] = ..., transform: _Optional[_Union[HeadTransform, _Mapping]] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class OutputHeadTrailer(_message.Message):
    __slots__ = ("crc32",)
    CRC32_FIELD_NUMBER: _ClassVar[int]
    crc32: int
    def __init__(self, crc32: _Optional[int] = ...) -> None: ...

class GetTokenizerMapRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class TokenizerMapReply(_message.Message):
    __slots__ = ("tokens", "ids")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[bytes]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, tokens: _Optional[_Iterable[bytes]] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ("protocol_version",)
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    def __init__(self, protocol_version: _Optional[int] = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("fingerprint", "uptime_seconds", "queued_requests", "queued_tokens", "running_requests", "scored_tokens", "scored_sequences", "sent_bytes", "compute_seconds", "tokens_per_second", "refused_requests", "failed_requests", "cache", "runs", "device", "device_utilization", "dtype", "quantization", "mode", "measured_tokens_per_second", "forwards", "padding_tokens")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SCORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REFUSED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    CACHE_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MEASURED_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    FORWARDS_FIELD_NUMBER: _ClassVar[int]
    PADDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    uptime_seconds: float
    queued_requests: int
    queued_tokens: int
    running_requests: int
    scored_tokens: int
    scored_sequences: int
    sent_bytes: int
    compute_seconds: float
    tokens_per_second: float
    refused_requests: int
    failed_requests: int
    cache: CacheStats
    runs: _containers.RepeatedCompositeFieldContainer[RunStats]
    device: str
    device_utilization: float
    dtype: str
    quantization: str
    mode: str
    measured_tokens_per_second: float
    forwards: int
    padding_tokens: int
    def __init__(self, fingerprint: _Optional[str] = ..., uptime_seconds: _Optional[float] = ..., queued_requests: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., running_requests: _Optional[int] = ..., scored_tokens: _Optional[int] = ..., scored_sequences: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., compute_seconds: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., refused_requests: _Optional[int] = ..., failed_requests: _Optional[int] = ..., cache: _Optional[_Union[CacheStats, _Mapping]] = ..., runs: _Optional[_Iterable[_Union[RunStats, _Mapping]]] = ..., device: _Optional[str] = ..., device_utilization: _Optional[float] = ..., dtype: _Optional[str] = ..., quantization: _Optional[str] = ..., mode: _Optional[str] = ..., measured_tokens_per_second: _Optional[float] = ..., forwards: _Optional[int] = ..., padding_tokens: _Optional[int] = ...) -> None: ...

class CacheStats(_message.Message):
    __slots__ = ("hits", "misses", "evictions", "used_bytes", "capacity_bytes", "disk_hits", "disk_used_bytes", "disk_capacity_bytes")
    HITS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_HITS_FIELD_NUMBER: _ClassVar[int]
    DISK_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    hits: int
    misses: int
    evictions: int
    used_bytes: int
    capacity_bytes: int
    disk_hits: int
    disk_used_bytes: int
    disk_capacity_bytes: int
    def __init__(self, hits: _Optional[int] = ..., misses: _Optional[int] = ..., evictions: _Optional[int] = ..., used_bytes: _Optional[int] = ..., capacity_bytes: _Optional[int] = ..., disk_hits: _Optional[int] = ..., disk_used_bytes: _Optional[int] = ..., disk_capacity_bytes: _Optional[int] = ...) -> None: ...

class RunStats(_message.Message):
    __slots__ = ("run_id", "requests", "tokens", "sent_bytes", "compute_seconds", "queue_seconds", "cache_hits", "weight", "cache_misses", "asked_tokens")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CACHE_MISSES_FIELD_NUMBER: _ClassVar[int]
    ASKED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    requests: int
    tokens: int
    sent_bytes: int
    compute_seconds: float
    queue_seconds: float
    cache_hits: int
    weight: float
    cache_misses: int
    asked_tokens: int
    def __init__(self, run_id: _Optional[str] = ..., requests: _Optional[int] = ..., tokens: _Optional[int] = ..., sent_bytes: _Optional[int] = ..., compute_seconds: _Optional[float] = ..., queue_seconds: _Optional[float] = ..., cache_hits: _Optional[int] = ..., weight: _Optional[float] = ..., cache_misses: _Optional[int] = ..., asked_tokens: _Optional[int] = ...) -> None: ...
