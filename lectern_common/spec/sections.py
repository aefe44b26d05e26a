"""The sections of a RunSpec: every setting, its default, its bounds and what it does.

A field that depends on another (`teacher.top_k` on `representation: top_k`) is null unless it
applies, and its default is filled in when it does, so the resolved spec shows every value in force.

Paths are relative to the root folders of the process (`lectern_common/roots.py`).
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from lectern_common.teacher.address import MAX_REPLICAS, checked_address
from lectern_common.teacher.secrets import SecretFiles, require_whole
from lectern_common.wire.formats import FORMATS, Representation, RepresentationName

DEFAULT_WARMUP_STEPS = 50
MAX_NAME_BYTES = 255  # of a file or folder, on all common file systems
MODULE_PATTERN = r"^[\w.-]+$"
MODULE_RULE = "letters, digits, dots, hyphens and underscores"


def relative_path(value: str) -> str:
    """Returns a path without `.`; refuses what could leave a root, and empty paths.

    Raises:
        ValueError: it is absolute, or has `..`, backslashes, or control characters in it.
    """
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError("must be a relative path inside its root, without '..'")
    if any(ord(character) < 32 for character in value):
        raise ValueError("must not contain control characters")
    if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.parts):
        raise ValueError(f"must not have a part longer than {MAX_NAME_BYTES} bytes")
    return str(path)


RelativePath = Annotated[str, Field(max_length=512), AfterValidator(relative_path)]
Address = Annotated[
    str,
    Field(max_length=MAX_REPLICAS * (253 + 7)),
    AfterValidator(lambda value: value and checked_address(value)),
]
ModuleName = Annotated[str, Field(min_length=1, max_length=128, pattern=MODULE_PATTERN)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses true and false for numbers, which pydantic takes for 1 and 0."""
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in values):
            types = set(_types(cls.model_fields[str(info.field_name)].annotation))
            if bool not in types and types & {int, float}:
                if values is value:
                    raise ValueError("expected only numbers, got true or false among them")
                raise PydanticKnownError("float_type" if float in types else "int_type")
        return value


def _types(annotation: Any) -> Iterator[Any]:
    """Yields the types that an annotation is made of."""
    if not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _types(part)


# Settings of a TeacherSpec that only a server needs.
OF_SERVERS = (
    "record_to",
    "deadline_seconds",
    "outage_budget_seconds",
    "token_file",
    "tls_ca_file",
    "tls_cert_file",
    "tls_key_file",
)


class TeacherSpec(Section):
    """Which teacher to ask, and how."""

    address: Address = "127.0.0.1:50051"
    """host:port of the teacher server; for replicas, a comma-separated list or dns:///name:port;
    unix:/path for a socket file on this machine. Empty if there is a record."""
    record: RelativePath | None = None
    """Record under the data root to learn from instead of a server: see `lectern precompute`."""
    record_to: RelativePath | None = None
    """Name of a record to make, under the data root, of what the run receives from the server."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Model id that the server must report, or that was recorded; null accepts any."""
    representation: RepresentationName = "hidden"
    """What the teacher sends per token; see protos/teacher.proto."""
    top_k: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Tokens kept with `representation: top_k` (64); all others count as one more outcome."""
    num_draws: Annotated[int, Field(ge=1, le=256)] | None = None
    """Draws per token with `representation: sampled` (50); redrawn every step."""
    prefetch_steps: Annotated[int, Field(ge=0, le=64)] = 4
    """Steps to request ahead while the student computes; 0 turns prefetching off."""
    deadline_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """Longest wait for one answer before the request is retried."""
    outage_budget_seconds: Annotated[float, Field(ge=0)] = 900.0
    """How long the teacher may be unreachable before the run ends as interrupted."""
    token_file: RelativePath | None = None
    """File under the secrets root with the bearer token."""
    tls_ca_file: RelativePath | None = None
    """File under the secrets root with the CA of the server's certificate; turns TLS on."""
    tls_cert_file: RelativePath | None = None
    """File under the secrets root with the client's certificate, if the server requires one."""
    tls_key_file: RelativePath | None = None
    """File under the secrets root with the private key of `tls_cert_file`."""
    vocabulary: Literal["checked", "same"] = "checked"
    """Ids that differ from the student's, or beyond one's logits: `checked` accepts those that a
    search of the data does not find, which then get no teacher probability; `same` accepts none."""
    allow_same_weights: bool = False
    """Allow teacher and student to have the same weights."""

    @model_validator(mode="after")
    def _a_server_or_a_record(self) -> Self:
        if self.representation == "dense" and (self.record or self.record_to):
            raise ValueError("representation dense is never recorded; set hidden")
        if self.record is None:
            if not self.address:
                raise ValueError("address must not be empty; set host:port, or record")
            return self
        if self.address and "address" in self.model_fields_set:
            raise ValueError("address has no effect with record; remove one of the two")
        object.__setattr__(self, "address", "")
        for name in OF_SERVERS:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect with record, which asks no server")
        return self

    @model_validator(mode="after")
    def _tls_files_go_together(self) -> Self:
        require_whole(SecretFiles.of(self))
        return self

    @model_validator(mode="after")
    def _parameters_belong_to_the_representation(self) -> Self:
        for name, default in (("top_k", 64), ("num_draws", 50)):
            taken = name in FORMATS[self.representation].parameters
            if taken and getattr(self, name) is None:
                object.__setattr__(self, name, default)
            if not taken and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with representation {self.representation}")
        return self

    @property
    def asks_for(self) -> Representation:
        """The representation to request; each step sets the seed of its draws."""
        return Representation(self.representation, self.top_k, self.num_draws)


class LoraSpec(Section):
    """Low-rank adapters (Hu et al., 2021)."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of each adapter."""
    alpha: Positive = 32.0
    """Adapter outputs are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on each adapter's input."""
    targets: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = None
    """Names of the linear layers to adapt (q_proj, ...); null: all but the output head."""


class StudentSpec(Section):
    """The model that learns: from pretrained weights (`init`) or from scratch (`config`)."""

    init: RelativePath | None = None
    """Folder under the models root, or a hub id; weights must be safetensors."""
    revision: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Hub commit, tag or branch of `init`."""
    config: RelativePath | None = None
    """Folder under the models root with a config.json; `seed` draws the initial weights."""
    keep_every_nth_layer: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Keep only layers 0, n, 2n, ... of `init`: a shallower student of the same width."""
    lora: LoraSpec | None = None
    """Train only adapters; the weights of `init` stay frozen."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype (auto: float32 on CPU, bfloat16 on CUDA); parameters stay float32."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.init is None) == (self.config is None):
            raise ValueError(
                "set exactly one of init (pretrained weights) and config (from scratch)"
            )
        for name in ("revision", "keep_every_nth_layer", "lora"):
            if getattr(self, name) is not None and self.init is None:
                raise ValueError(f"{name} has no effect without init")
        return self


class ObjectiveSpec(Section):
    """loss = alpha * CE(student, label) + (1 - alpha) * temperature^2 * D(teacher_T, student_T)."""

    alpha: Probability = 0.3
    """Weight of the cross entropy: 1 is only cross entropy, 0 only distillation."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """T: divides teacher and student logits inside D; only with alpha < 1."""
    divergence: DivergenceName = "forward_kl"
    """D: forward_kl is KL(teacher || student), reverse_kl is KL(student || teacher); only with
    alpha < 1."""
    beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The teacher's weight in the mixture of `divergence: jsd` (0.5)."""
    chunk_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens whose logits are in memory at once; any value gives the same result."""

    @model_validator(mode="after")
    def _beta_belongs_to_jsd(self) -> Self:
        if self.divergence == "jsd" and self.beta is None:
            object.__setattr__(self, "beta", 0.5)
        if self.divergence != "jsd" and self.beta is not None:
            raise ValueError(f"beta has no effect with divergence {self.divergence}")
        return self

    @model_validator(mode="after")
    def _distillation_settings_need_distillation(self) -> Self:
        # Compares with the defaults, because a resolved spec states those too.
        for name in ("temperature", "divergence"):
            if self.alpha == 1 and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no effect with objective.alpha 1 (only cross entropy); remove "
                    "it, or lower alpha"
                )
        return self


class OptimizerSpec(Section):
    """AdamW. Weight decay applies to matrices, not to norms and biases."""

    learning_rate: Positive = 1.0e-4
    """Peak learning rate, reached after `schedule.warmup_steps`."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    """Decay rates of the moment estimates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this global L2 norm."""


class ScheduleSpec(Section):
    """Length of the run, and its learning rate over time."""

    steps: Annotated[int, Field(ge=1, le=10**9)] = 1000
    """Optimizer steps."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up from 0 (50; a tenth of the steps in a run of fewer than 50)."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    final_fraction: Probability = 0.1
    """Learning rate at the last step, as a share of the peak (no effect with constant)."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps is None:
            usual = DEFAULT_WARMUP_STEPS
            warmup_steps = usual if self.steps >= usual else self.steps // 10
            object.__setattr__(self, "warmup_steps", warmup_steps)
            self.model_fields_set.discard("warmup_steps")  # see `continuing` in load.py
        elif self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) exceeds steps ({self.steps})")
        return self

    @model_validator(mode="after")
    def _final_fraction_belongs_to_a_decay(self) -> Self:
        default = type(self).model_fields["final_fraction"].default
        if self.decay == "constant" and self.final_fraction != default:
            raise ValueError("final_fraction has no effect with decay constant; remove it")
        return self


class BatchSpec(Section):
    """Sequences per optimizer step, and how many are computed at a time."""

    sequences_per_step: Annotated[int, Field(ge=1, le=1 << 16)] = 8
    """Rows per step; the loss is the mean over all their valid positions."""
    micro_batch_sequences: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Micro-batch size per device (all its rows); must divide the rows per device."""

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        if self.micro_batch_sequences is None:
            object.__setattr__(self, "micro_batch_sequences", self.sequences_per_step)
        micro_batch = self.micro_batch_sequences or 0
        if self.sequences_per_step % micro_batch:
            raise ValueError(
                f"micro_batch_sequences ({micro_batch}) must divide "
                f"sequences_per_step ({self.sequences_per_step})"
            )
        return self


class CheckpointSpec(Section):
    """How often a checkpoint is written, and which ones are kept."""

    every_steps: PositiveInt = 500
    """Steps between checkpoints; one is also written on stop and at the end."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep."""
    keep_best: NonNegativeInt = 1
    """Number of checkpoints to keep that are best by evaluation.metric."""


class DeviceSpec(Section):
    """Which devices train the student."""

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""
    count: Annotated[int, Field(ge=1, le=1024)] = 1
    """GPUs (on the CPU: processes) that share the run's rows and shard its weights (FSDP2). On
    several machines: the number of processes that `torchrun` starts in all."""
    max_restarts: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How often to restart all processes from the last checkpoint if one dies (3); count > 1."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads per student process; null: torch's default, and under a control plane an equal
    share of the cores."""
    compile: bool = False
    """torch.compile the student's body and the elementwise part of the objective."""
    activation_checkpointing: bool = False
    """Recompute each layer's activations in the backward pass: less memory, a third slower."""

    @model_validator(mode="after")
    def _max_restarts_belongs_to_several(self) -> Self:
        if self.count > 1 and self.max_restarts is None:
            object.__setattr__(self, "max_restarts", 3)
        if self.count == 1 and self.max_restarts is not None:
            raise ValueError("max_restarts has no effect with count 1")
        return self
