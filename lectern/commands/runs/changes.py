"""`--set FIELD=VALUE`: changes of a run's spec on the command line."""

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    pass


def as_mapping(changes: list[str]) -> dict[str, Any]:
    """Returns {"schedule": {"steps": 2000}} for "schedule.steps=2000"; values are YAML."""
    result: dict[str, Any] = {}
    for change in changes:
        field, _, value = change.partition("=")
        *sections, name = field.split(".")
        try:
            section = result
            for key in sections:
                section = section.setdefault(key, {})
            section[name] = _json_value(value)
            usable = "=" in change and all([*sections, name])
        except (AttributeError, TypeError, ValueError):
            usable = False  # the section is a value already, or JSON cannot hold the value
        if not usable:
            raise typer.BadParameter(f"{change!r} is not FIELD=VALUE", param_hint="--set")
    return result


def _json_value(text: str) -> Any:
    """Returns the value that the YAML stands for. Raises ValueError if JSON cannot hold it."""
    import yaml

    try:
        value = yaml.safe_load(text)
        json.dumps(value, allow_nan=False)
    except (yaml.YAMLError, RecursionError, KeyError, AttributeError, TypeError) as error:
        # Not only YAMLError: `!!bool x` is a KeyError; a date, which JSON lacks, a TypeError.
        raise ValueError(f"{text!r} is not a JSON value") from error
    return value
