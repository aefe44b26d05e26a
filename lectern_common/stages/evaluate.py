"""What is asked of an evaluation: the body of a request, and what `lectern evaluate` is made of."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lectern_common.errors import InvalidSpec
from lectern_common.spec.refusals import Misfit
from lectern_common.spec.sections import RelativePath, Section
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
from lectern_common.teacher.address import checked_address
from lectern_common.teacher.secrets import SecretFiles, require_whole

ModelName = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$")]


class EvaluateRequest(Section):
    """One evaluation of one model."""

    model: ModelName
    """What is evaluated: the id of a run, a folder under the models root, a hub id, or host:port of
    a teacher server. On the command line, also a model folder anywhere."""
    weights: Literal["export", "initial"] | Annotated[int, Field(ge=0)] | None = None
    """Which weights of a run: export (default), initial (as they were before training), or the step
    of a checkpoint."""
    revision: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Hub commit, tag or branch of a hub id."""
    against: ModelName | None = None
    """The teacher that `agreement` compares with, named like `model`."""
    token_file: RelativePath | None = None
    """File under the secrets root with the bearer token of the teacher server, if one is named."""
    tls_ca_file: RelativePath | None = None
    """File under the secrets root with the CA of its certificate; turns TLS on."""
    tls_cert_file: RelativePath | None = None
    """File under the secrets root with the client's certificate, if the server requires one."""
    tls_key_file: RelativePath | None = None
    """File under the secrets root with the private key of `tls_cert_file`."""
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
    def _secrets_are_for_a_server(self) -> Self:
        secrets = SecretFiles.of(self)
        require_whole(secrets)
        if secrets != SecretFiles() and not any(
            is_address(name) for name in (self.model, self.against)
        ):
            raise Misfit(
                "token_file and tls_... have no effect unless model or against is the host:port of "
                "a teacher server",
                "model",
                "against",
            )
        return self

    @model_validator(mode="after")
    def _a_server_never_generates(self) -> Self:
        if not is_address(self.model):
            return self
        generating = [one for one in self.suites if one == CODE or one.startswith(HARNESS)]
        if generating:
            raise Misfit(
                f"{generating[0]} needs the model itself, and a teacher server never generates: "
                "name its folder or hub id instead of its address",
                "model",
                "suites",
            )
        for name in ("weights", "revision"):
            if getattr(self, name) is not None:
                raise Misfit(f"{name} has no effect on a teacher server", name, "model")
        return self

    @property
    def tasks(self) -> list[str]:
        """The tasks of lm-evaluation-harness."""
        return harness_tasks(self.suites)


def require_harmless(asked: EvaluateRequest) -> None:
    """Raises InvalidSpec if a request from elsewhere asks for what only this machine's user may.

    That is a folder outside the models root, and programs outside the sandbox.
    """
    require_sandbox(asked.code, "code.sandbox")
    if asked.against is not None and asked.against.startswith("/"):
        why = "must be a run, a folder under the models root, a hub id or host:port; folders "
        why += "elsewhere are only for the command line of their own machine"
        raise InvalidSpec([("against", why)])


def require_sandbox(code: CodeOptions, field: str) -> None:
    """Raises InvalidSpec, naming the field, if programs are to run outside the sandbox."""
    if not code.sandbox:
        why = "must be true here: programs outside the sandbox are only for the command line of "
        raise InvalidSpec([(field, f"{why}their own machine")])


def is_address(name: str | None) -> bool:
    """Returns True for what names a teacher server: host:port, several of them, or dns:///..."""
    if name is None or name.startswith(("/", ".")):
        return False
    try:
        checked_address(name)
    except ValueError:
        return False
    return True
