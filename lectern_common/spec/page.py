"""docs/run-spec.md, made of the schema: `python -m lectern_common.spec.page > docs/run-spec.md`.

One list of a run's settings, for people; the same that YAML files, REST bodies and the page's form
are held to.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lectern_common.spec.run_spec import RESUME_MAY_CHANGE, RunSpec

_HEAD = """# What a run is described by

One specification describes a run: the YAML file that `lectern train` and `lectern runs create`
read, the body of `POST /runs`, and what the page shows. A field that is not here is refused, and so
is a value that would have no effect. `lectern train SPEC.yaml --dry-run` prints all of it, defaults
filled in, with what the run will come to.

`null` stands for what is off, or follows from another field; the default that is then in force is
in parentheses. Paths are relative to the folders that the processes were started with. Fields with
a * may be changed when a run is resumed.

This page is made of the schema: `python -m lectern_common.spec.page > docs/run-spec.md`.
"""
_TYPES = {"integer": "int", "number": "float", "boolean": "bool", "string": "text"}
_BOUNDS = (
    ("exclusiveMinimum", ">"),
    ("minimum", ">="),
    ("exclusiveMaximum", "<"),
    ("maximum", "<="),
)


@dataclass(frozen=True)
class Field:
    """One setting: its dotted name, what it takes, its default, and what it does."""

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Table:
    """The settings of one section, without those of sections within it; `name` "" is the run."""

    name: str
    words: str
    fields: list[Field]


def tables(schema: dict[str, Any] | None = None) -> list[Table]:
    """Returns a table for each section of a JSON schema of RunSpec (its own), in order."""
    schema = RunSpec.model_json_schema() if schema is None else schema
    return list(_tables("", "", schema, schema.get("$defs", {})))


def page() -> str:
    """Returns the whole page."""
    parts = [_HEAD]
    for table in tables():
        lines = [f"## {f'`{table.name}`' if table.name else 'The run'}", ""]
        if table.words:
            lines += [table.words, ""]
        lines += ["| field | takes | default | what it does |", "|---|---|---|---|"]
        lines += [_line(field) for field in table.fields]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _tables(name: str, words: str, schema: dict[str, Any], defs: dict[str, Any]) -> Iterator[Table]:
    found, within = [], []
    for key, property_ in schema["properties"].items():
        dotted = f"{name}.{key}".lstrip(".")
        reference = _reference(property_)
        if reference is None:
            default = _words(property_["default"]) if "default" in property_ else "required"
            meaning = " ".join(property_.get("description", "").split())
            found.append(Field(dotted, _kind(property_), default, meaning))
            continue
        said = [defs[reference].get("description"), property_.get("description")]
        joined = " ".join(" ".join(part.split()) for part in said if part)
        if "default" in property_ and property_["default"] is None and "Absent" not in joined:
            joined += " Absent (`null`) unless it is given."
        within.append((dotted, joined, defs[reference]))
    yield Table(name, words, found)
    for section in within:
        yield from _tables(*section, defs)


def _reference(property_: dict[str, Any]) -> str | None:
    """Returns the section that a property is, optional or not; None: a setting."""
    for option in (property_, *property_.get("anyOf", ()), *property_.get("allOf", ())):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None


def _kind(property_: dict[str, Any]) -> str:
    if "anyOf" in property_:
        return " or ".join(_kind(option) for option in property_["anyOf"])
    if "enum" in property_:
        return ", ".join(f"`{value}`" for value in property_["enum"])
    if "const" in property_:
        return f"`{property_['const']}`"
    kind = property_.get("type", "")
    if kind == "null":
        return "`null`"
    if kind == "array":
        inside = property_.get("prefixItems") or [property_["items"]]
        kinds = dict.fromkeys(_kind(item) for item in inside)
        number = f"{len(inside)} of " if "prefixItems" in property_ else "list of "
        return number + ", ".join(kinds)
    bounds = [f"{sign} {property_[key]:,}" for key, sign in _BOUNDS if key in property_]
    return f"{_TYPES.get(kind, kind)} {', '.join(bounds)}".strip()


def _words(default: Any) -> str:
    if isinstance(default, bool) or default is None:
        return f"`{str(default).lower().replace('none', 'null')}`"
    if isinstance(default, list | tuple):
        return f"`[{', '.join(str(value) for value in default)}]`"
    return f"`{default}`"


def _line(field: Field) -> str:
    star = "*" if _may_change(field.name) else ""
    cells = (f"`{field.name}`{star}", field.kind, field.default, field.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _may_change(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in RESUME_MAY_CHANGE)


if __name__ == "__main__":
    sys.stdout.write(page())
