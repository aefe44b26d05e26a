"""The names of all fields of a run spec, read off its classes."""

from collections.abc import Iterator

from pydantic import BaseModel

from lectern_common.spec.run_spec import RunSpec


def spec_fields(model: type[BaseModel] = RunSpec, prefix: str = "") -> Iterator[str]:
    """Yields the dotted name of every one that is no section."""
    for name, info in model.model_fields.items():
        kinds = getattr(info.annotation, "__args__", None) or (info.annotation,)
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            yield from spec_fields(inner[0], f"{prefix}{name}.")
        else:
            yield prefix + name
