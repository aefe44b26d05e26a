"""The sections of a RunSpec: every setting with its default, its bounds, and what it does.

A field that depends on another (`teacher.top_k` on `representation: top_k`) is null unless it
applies, and its default is filled in when it does, so the resolved spec shows every value in force.

Paths are relative to a root that the processes are started with (`lectern_common/roots.py`).
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from lectern_common.teacher.address import MAX_REPLICAS, checked_address
from lectern_common.teacher.secrets import SecretFiles, require_whole
from lectern_common.wire.formats import FORMATS, Representation, RepresentationName

MAX_NAME_BYTES = 255  # of a file or folder, on every usual file system


def _relative_path(value: str) -> str:
    """Refuses what could leave a root: absolute paths, `..`, NUL, backslashes, empty parts."""
    path = PurePosixPath(value)
    if not value or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError("must be a relative path inside its root, without '..'")
    if any(ord(character) < 32 for character in value):
        raise ValueError("must not contain control characters")
    if any(len(part.encode(errors="replace")) > MAX_NAME_BYTES for part in path.parts):
        raise ValueError(f"must have no part of more than {MAX_NAME_BYTES} bytes")
    return str(path)


RelativePath = Annotated[str, Field(max_length=512), AfterValidator(_relative_path)]
Address = Annotated[
    str, Field(max_length=MAX_REPLICAS * (253 + 7)), AfterValidator(checked_address)
]
ModuleName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[\w.-]+$")]
Prompt = Annotated[str, Field(min_length=1, max_length=4096)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class TeacherSpec(Section):
    """Which teacher answers, and how it is asked. Absent exactly when `objective.alpha` is 1."""

    address: Address = "127.0.0.1:50051"
    """host:port of the teacher server; several with commas, or dns:///name:port, are replicas."""
    model: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Model id the server must report; null takes whatever it serves."""
    representation: RepresentationName = "hidden"
    """What crosses the wire for each token; see protos/teacher.proto."""
    top_k: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    """Outcomes kept with `representation: top_k` (64); the rest is one further outcome."""
    num_draws: Annotated[int, Field(ge=1, le=256)] | None = None
    """Draws a token with `representation: sampled` (50), others in every step."""
    prefetch_steps: Annotated[int, Field(ge=0, le=64)] = 4
    """Steps whose answers are requested while the student computes; 0 asks and waits."""
    deadline_seconds: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    """Longest wait for one answer before the request is made again."""
    outage_budget_seconds: Annotated[float, Field(ge=0)] = 900.0
    """How long the teacher may be away before the run ends as interrupted."""
    token_file: RelativePath | None = None
    """File under the secrets root that holds the bearer token."""
    tls_ca_file: RelativePath | None = None
    """File under the secrets root with the authority of the server's certificate: turns TLS on."""
    tls_cert_file: RelativePath | None = None
    """File there with the client's own certificate, for a server that asks for one."""
    tls_key_file: RelativePath | None = None
    """File there with its private key."""
    allow_same_weights: bool = False
    """Go on although teacher and student are the same weights."""

    @model_validator(mode="after")
    def _tls_files_are_whole(self) -> Self:
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
        """What the teacher is asked for; draws get their seed at each step."""
        return Representation(self.representation, self.top_k, self.num_draws)


class LoraSpec(Section):
    """Low-rank adapters (Hu et al., 2021) are trained, the weights of `init` stay as they are."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of each adapter."""
    alpha: Positive = 32.0
    """Adapters count alpha / rank times."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the input of each adapter."""
    targets: Annotated[list[ModuleName], Field(min_length=1, max_length=64)] | None = None
    """Names of the linear layers that get one (q_proj, ...); null: all but the output head."""


class StudentSpec(Section):
    """The model that learns: from pretrained weights (`init`) or from scratch (`config`)."""

    init: RelativePath | None = None
    """Folder under the models root, or a hub id; safetensors weights only."""
    revision: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Hub commit, tag or branch of `init`."""
    config: RelativePath | None = None
    """Folder under the models root with a config.json; weights are drawn from `seed`."""
    keep_every_nth_layer: Annotated[int, Field(ge=2, le=1024)] | None = None
    """Of the layers of `init` only 0, n, 2n, ... are kept: a shallower student of its width."""
    lora: LoraSpec | None = None
    """Train adapters on `init` instead of its weights."""
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


class DataSpec(Section):
    """What is read. Rows of step s are a pure function of (seed, s)."""

    kind: Literal["shards", "synthetic"] = "shards"
    """shards: token shards with a manifest (`lectern data prepare`). synthetic: random tokens."""
    path: RelativePath | None = None
    """Dataset folder under the data root (kind shards)."""
    seq_len: Annotated[int, Field(ge=2, le=1 << 20)] = 1024
    """Tokens of a row."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the rows, from the end, held out for validation (0.01 without validation_path)."""
    validation_path: RelativePath | None = None
    """Dataset folder of the validation set, instead of a fraction."""
    attention_across_documents: bool = True
    """True: a row is one sequence. False: tokens see those of their own document alone."""
    max_bad_rows_fraction: Probability = 0.001
    """Rows with ids beyond the student's vocabulary are left out and counted up to this share."""

    @model_validator(mode="after")
    def _validation_source(self) -> Self:
        if self.kind == "shards" and self.path is None:
            raise ValueError("path is required with kind shards")
        if self.kind == "synthetic" and (self.path or self.validation_path):
            raise ValueError("path and validation_path have no effect with kind synthetic")
        if self.kind == "synthetic" and not self.attention_across_documents:
            raise ValueError("attention_across_documents has no effect with kind synthetic")
        if self.validation_path is not None and self.validation_fraction is not None:
            raise ValueError("set validation_fraction or validation_path, not both")
        if self.path is not None and self.validation_path == self.path:
            raise ValueError(
                "validation_path is path, so the run would be judged by rows that it learns from; "
                "set another, or validation_fraction"
            )
        if self.validation_path is None and self.validation_fraction is None:
            object.__setattr__(self, "validation_fraction", 0.01)
        return self


class ObjectiveSpec(Section):
    """loss = alpha * CE(student, label) + (1 - alpha) * temperature^2 * D(teacher_T, student_T)."""

    alpha: Probability = 0.3
    """Weight of the cross entropy: 1 is cross entropy alone, 0 distillation alone."""
    temperature: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """T: teacher and student logits are divided by it inside D; alpha < 1."""
    divergence: DivergenceName = "forward_kl"
    """D: forward_kl is KL(teacher || student), reverse_kl KL(student || teacher); alpha < 1."""
    beta: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Weight of the teacher in the mixture of `divergence: jsd` (0.5)."""
    chunk_tokens: PositiveInt | Literal["auto"] = "auto"
    """Tokens whose logits exist at one time; any value gives the same result."""

    @model_validator(mode="after")
    def _beta_belongs_to_jsd(self) -> Self:
        if self.divergence == "jsd" and self.beta is None:
            object.__setattr__(self, "beta", 0.5)
        if self.divergence != "jsd" and self.beta is not None:
            raise ValueError(f"beta has no effect with divergence {self.divergence}")
        return self

    @model_validator(mode="after")
    def _shape_of_distillation_belongs_to_it(self) -> Self:
        # Compared with the defaults, which a resolved spec holds too.
        for name in ("temperature", "divergence"):
            if self.alpha == 1 and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no effect with objective.alpha 1 (cross entropy alone); remove "
                    "it, or lower alpha"
                )
        return self


class OptimizerSpec(Section):
    """AdamW. Weight decay applies to matrices, not to norms and biases."""

    learning_rate: Positive = 1.0e-4
    """Peak, reached after `schedule.warmup_steps`."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.9,
        0.95,
    )
    """Decay rates of the moment estimates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global L2 norm."""


class ScheduleSpec(Section):
    """Length of the run, and the learning rate over it."""

    steps: Annotated[int, Field(ge=1, le=10**9)] = 1000
    """Optimizer steps."""
    warmup_steps: NonNegativeInt = 50
    """Steps of linear rise from 0."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up."""
    final_fraction: Probability = 0.1
    """Learning rate at the last step, as a share of the peak (no effect with constant)."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) exceeds steps ({self.steps})")
        return self

    @model_validator(mode="after")
    def _final_fraction_belongs_to_a_decay(self) -> Self:
        default = type(self).model_fields["final_fraction"].default
        if self.decay == "constant" and self.final_fraction != default:
            raise ValueError("final_fraction has no effect with decay constant; remove it")
        return self


class BatchSpec(Section):
    """Sequences of one optimizer step, and how many are computed at a time."""

    sequences_per_step: Annotated[int, Field(ge=1, le=1 << 16)] = 8
    """Rows of one step; the loss is the mean over all their valid positions."""
    micro_batch_sequences: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Rows that a device computes at a time, at most (all of them); must divide its rows."""

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


class EvaluationSpec(Section):
    """On the validation set: before the first step, every so many steps, and after the last.

    Cross entropy, and for runs that distil the KL to the teacher and how often both agree.
    """

    every_steps: PositiveInt = 100
    """Steps between evaluations."""
    max_sequences: PositiveInt = 200
    """At most so many rows of the validation set, always the same ones."""
    patience: PositiveInt | None = None
    """Evaluations in a row without a new lowest validation loss that end the run early. The weights
    of the lowest are exported, also where all steps are made; null: those of the last step."""
    prompts: Annotated[list[Prompt], Field(max_length=16)] = []
    """Texts that student and teacher go on with at every evaluation, for people to read."""
    prompt_tokens: Annotated[int, Field(ge=1, le=512)] | None = None
    """Tokens written for each prompt, the likeliest ones (48)."""

    @model_validator(mode="after")
    def _prompt_tokens_belong_to_prompts(self) -> Self:
        if self.prompts and self.prompt_tokens is None:
            object.__setattr__(self, "prompt_tokens", 48)
        if not self.prompts and self.prompt_tokens is not None:
            raise ValueError("prompt_tokens has no effect without prompts")
        return self


class CheckpointSpec(Section):
    """What a run can go back to."""

    every_steps: PositiveInt = 500
    """Steps between checkpoints; one is also written on stop and at the end."""
    keep_last: PositiveInt = 2
    """Newest checkpoints kept."""
    keep_best: NonNegativeInt = 1
    """Checkpoints kept for the lowest validation loss."""


class DeviceSpec(Section):
    """Where the student computes."""

    kind: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is one, else the CPU."""
    count: Annotated[int, Field(ge=1, le=1024)] = 1
    """GPUs (on the CPU: processes) that share the run: its rows, and parts of its weights (FSDP2).
    Over several machines it is what `torchrun` is told."""
    max_restarts: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How often all are started again, from the last checkpoint, when one dies (3); count > 1."""
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads of the student (of each of its processes); null leaves torch's choice."""
    compile: bool = False
    """torch.compile the student's body, and the elementwise part of the objective."""
    activation_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass: less memory, a third slower."""

    @model_validator(mode="after")
    def _max_restarts_belongs_to_several(self) -> Self:
        if self.count > 1 and self.max_restarts is None:
            object.__setattr__(self, "max_restarts", 3)
        if self.count == 1 and self.max_restarts is not None:
            raise ValueError("max_restarts has no effect with count 1")
        return self
