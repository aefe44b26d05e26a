"""The names of all fields of a run spec, read off its classes."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from lectern_common.spec.run_spec import RunSpec


def spec_fields(model: type[BaseModel] = RunSpec, prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every one that is no section; also of those of a listed section."""
    for name, info in model.model_fields.items():
        kinds = getattr(info.annotation, "__args__", None) or (info.annotation,)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        listed = [one for kind in kinds for one in _listed(kind)]
        if listed:
            yield prefix + name
            yield from spec_fields(listed[0], f"{prefix}{name}.")
        elif inner:
            yield from spec_fields(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name


def _listed(kind: Any) -> list[type[BaseModel]]:
    """Returns the section of which a type is a list, if it is one."""
    while hasattr(kind, "__metadata__"):  # Annotated
        kind = kind.__origin__
    parts = get_args(kind) if get_origin(kind) is list else ()
    return [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
