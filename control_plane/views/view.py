"""The base of every response's model."""

from pydantic import BaseModel, ConfigDict


class View(BaseModel):
    """A model whose fields are described by the text below them, and which has no others."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")
