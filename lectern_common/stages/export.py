"""What the stage `export` is asked: the trained student of a run, in a format, under a name."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from lectern_common.spec.sections import RelativePath

GGUF = "gguf"
SAFETENSORS = "safetensors"
ExportFormat = Literal["safetensors", "gguf"]
GgufType = Literal["f16", "q8_0"]
DEFAULT_GGUF_TYPE: GgufType = "f16"


class ExportRequest(BaseModel):
    """Writes the student of a run that has succeeded as a folder or a file for other programs."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    run: Annotated[str, Field(min_length=1, max_length=512)]
    """The run: its id, under the runs root."""

    format: ExportFormat = "safetensors"
    """`safetensors`: a model folder that transformers loads. `gguf`: one file for llama.cpp."""

    type: GgufType | None = None
    """What a GGUF file stores matrices as: `f16` (the default) or `q8_0`, 8 bits with a scale for
    each 32 numbers. Only for `format: gguf`."""

    output: RelativePath | None = None
    """Name of the new folder under the models root. Default: a folder in the run's own, which
    `lectern publish` finds there."""

    @field_validator("run")
    @classmethod
    def _one_name(cls, value: str) -> str:
        return run_name(value)

    @property
    def gguf_type(self) -> GgufType:
        return self.type or DEFAULT_GGUF_TYPE

    def model_post_init(self, _context: object) -> None:
        if self.type is not None and self.format != GGUF:
            raise ValueError(f"type {self.type} is for format gguf, not for {self.format}")


def run_name(value: str) -> str:
    """Returns a run's id. Raises ValueError if it would lead out of the runs root."""
    if value in (".", "..") or "/" in value or "\\" in value or not value.isprintable():
        raise ValueError("expected the id of a run, the name of its folder under the runs root")
    return value
