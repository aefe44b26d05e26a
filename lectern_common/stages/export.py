"""What the stage `export` is asked: the trained student of a run, in a format, under a name."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lectern_common.spec.sections import RelativePath, Section

ExportFormat = Literal["safetensors", "gguf"]
GgufType = Literal["f16", "q8_0"]


def _run_id(value: str) -> str:
    if value in (".", "..") or "/" in value or "\\" in value or not value.isprintable():
        raise ValueError("expected the id of a run: the name of its folder under the runs root")
    return value


RunId = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_run_id)]


class ExportRequest(Section):
    """Writes the student of a run that has succeeded for other programs."""

    run: RunId
    """The run: the name of its folder under the runs root."""
    format: ExportFormat = "safetensors"
    """safetensors: a folder that transformers loads. gguf: one file for llama.cpp."""
    type: GgufType | None = None
    """With `format: gguf`, what matrices are stored as (f16). q8_0: 8 bits, and a scale for each 32
    numbers."""
    output: RelativePath | None = None
    """Name of a new folder under the models root. null: in the run's own folder, where `lectern
    publish` finds it."""

    @model_validator(mode="after")
    def _only_gguf_has_types(self) -> Self:
        if self.format != "gguf" and self.type is not None:
            raise ValueError("type has no effect without format gguf")
        if self.format == "gguf" and self.type is None:
            object.__setattr__(self, "type", "f16")
        return self
