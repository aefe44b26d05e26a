"""What is asked of an evaluation: the body of a request, and what `lectern evaluate` is made of."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lectern_common.spec.refusals import Misfit
from lectern_common.spec.sections import Address, RelativePath, Section
from lectern_common.spec.suites import (
    AGREEMENT,
    CODE,
    HARNESS,
    PERPLEXITY,
    AgreementOptions,
    CodeOptions,
    HarnessOptions,
    Suites,
    TextOptions,
    harness_tasks,
)
from lectern_common.teacher.secrets import SecretFiles, require_whole

_SECRETS = ("token_file", "tls_ca_file", "tls_cert_file", "tls_key_file")


class ModelRef(Section):
    """A model: of a run, from a folder, from the hub, or behind a teacher server."""

    run: RelativePath | None = None
    """Id of a run."""
    weights: Literal["export", "initial"] | Annotated[int, Field(ge=0)] | None = None
    """Which weights of the run: export (default), initial (as they were before training), or the
    step of a checkpoint."""
    model: RelativePath | None = None
    """Folder under the models root, or a hub id."""
    revision: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Hub commit, tag or branch of `model`."""
    folder: Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^/[^\0]*$")] | None = None
    """A model folder anywhere on this machine; only from its own command line."""
    address: Annotated[Address, Field(min_length=1)] | None = None
    """host:port of a teacher server, or of several, as in a run's teacher.address."""
    token_file: RelativePath | None = None
    """File under the secrets root with the server's bearer token."""
    tls_ca_file: RelativePath | None = None
    """File under the secrets root with the CA of the server's certificate; turns TLS on."""
    tls_cert_file: RelativePath | None = None
    """File under the secrets root with the client's certificate, if the server requires one."""
    tls_key_file: RelativePath | None = None
    """File under the secrets root with the private key of `tls_cert_file`."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        named = [name for name in ("run", "model", "folder", "address") if getattr(self, name)]
        if len(named) != 1:
            raise ValueError("set exactly one of run, model, folder and address")
        if self.run is not None and self.weights is None:
            object.__setattr__(self, "weights", "export")
        for name, needs in (
            ("weights", "run"),
            ("revision", "model"),
            *((secret, "address") for secret in _SECRETS),
        ):
            if getattr(self, name) is not None and getattr(self, needs) is None:
                raise Misfit(f"{name} has no effect without {needs}", name, needs)
        require_whole(SecretFiles.of(self))
        return self

    @property
    def words(self) -> str:
        """What it is, in a few words."""
        if self.run is not None:
            which = f"step {self.weights}" if isinstance(self.weights, int) else self.weights
            return f"run {self.run} ({which})"
        if self.address is not None:
            return f"the teacher at {self.address}"
        return str(self.model or self.folder)


class EvaluateRequest(Section):
    """One evaluation of one model."""

    stage: Literal["evaluate"] = "evaluate"
    """The stage."""
    model: ModelRef
    """What is evaluated."""
    against: ModelRef | None = None
    """The teacher that `agreement` compares with."""
    suites: Annotated[Suites, Field(min_length=1)]
    """What is measured: perplexity, agreement, code, lm-eval:TASK."""
    text: TextOptions = TextOptions()
    agreement: AgreementOptions = AgreementOptions()
    code: CodeOptions = CodeOptions()
    lm_eval: HarnessOptions = HarnessOptions()
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Seeds the draws of sampled answers, each a function of (seed, problem, sample)."""
    batch_sequences: Annotated[int, Field(ge=1, le=1 << 12)] = 16
    """Sequences that are computed at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype (auto: float32 on CPU, bfloat16 on CUDA)."""

    @model_validator(mode="after")
    def _options_belong_to_suites(self) -> Self:
        suites = self.suites
        for section, used, needs in (
            ("text", {PERPLEXITY, AGREEMENT} & set(suites), "perplexity or agreement"),
            ("agreement", AGREEMENT in suites, "agreement"),
            ("code", CODE in suites, "code"),
            ("lm_eval", self.tasks, "lm-eval:TASK"),
        ):
            if not used and getattr(self, section) != type(self).model_fields[section].default:
                raise Misfit(f"{section} has no effect without the suite {needs}", section)
        return self

    @model_validator(mode="after")
    def _agreement_is_with_a_teacher(self) -> Self:
        if (AGREEMENT in self.suites) != (self.against is not None):
            raise Misfit(
                "the suite agreement compares with a teacher, and nothing else does: set both "
                "`against` and agreement, or neither",
                "against",
                "suites",
            )
        return self

    @model_validator(mode="after")
    def _a_server_never_generates(self) -> Self:
        generating = [one for one in self.suites if one == CODE or one.startswith(HARNESS)]
        if self.model.address is not None and generating:
            raise Misfit(
                f"{generating[0]} needs the model itself, and a teacher server never generates: "
                "name its folder or hub id instead of its address",
                "model.address",
                "suites",
            )
        return self

    @model_validator(mode="after")
    def _there_is_text(self) -> Self:
        reads = {PERPLEXITY, AGREEMENT} & set(self.suites)
        if reads and self.text.data is None and self.model.run is None:
            raise Misfit(
                "text.data is required: only a run has validation rows of its own", "text.data"
            )
        return self

    @property
    def tasks(self) -> list[str]:
        """The tasks of lm-evaluation-harness."""
        return harness_tasks(self.suites)
