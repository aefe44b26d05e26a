"""What the stage `publish` is asked: the student of a run, as a repository on the model hub."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from lectern_common.spec.refusals import Misfit
from lectern_common.spec.sections import Section
from lectern_common.stages.export import RunId

MAX_LICENSE_CHARACTERS = 200_000
_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"


class PublishRequest(Section):
    """Plans a repository of a run's student, and uploads it if that is asked."""

    run: RunId
    """The run, which has succeeded: the name of its folder under the runs root."""
    to: Annotated[str, Field(max_length=200, pattern=rf"^{_NAME}/{_NAME}$")]
    """OWNER/NAME of the repository on the model hub."""
    private: bool = False
    """Only its owner and those that they let may see the repository."""
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")] | None = None
    """Licence of the student, as the hub names it, such as apache-2.0. Only if it does not start
    from a model whose licence is known: it inherits that one."""
    license_text: Annotated[str, Field(max_length=MAX_LICENSE_CHARACTERS)] | None = None
    """Text of that licence, for a file LICENSE."""
    upload: bool = False
    """False only plans: every file, its size and hash, and the card."""
    plan_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Upload only if the plan still has this hash."""

    @model_validator(mode="after")
    def _a_plan_is_for_an_upload(self) -> Self:
        if self.plan_sha256 is not None and not self.upload:
            raise Misfit("plan_sha256 has no effect without upload", "plan_sha256", "upload")
        if self.license_text is not None and self.license is None:
            raise Misfit("license_text is the text of `license`, which is not set", "license")
        return self
