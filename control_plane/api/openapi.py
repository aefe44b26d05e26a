"""The OpenAPI document, as strict as the code; docs/openapi.json is its committed copy.

    python -m control_plane.api.openapi > docs/openapi.json

FastAPI describes what the routes declare. What stands around them is added here: the tokens, the
refusals of the guard, and the one media type of errors.
"""

import copy
import json
import sys
from typing import Any, get_args

from control_plane.api.guard import PUBLIC
from control_plane.api.problems import MEDIA_TYPE, WITH_BODY, WRITE
from control_plane.tasks.record import SUBJECTS
from lectern_common.spec.run_spec import NAME_PATTERN
from lectern_common.spec.sweep import DEFAULT_METRIC, MAX_NAME, MAX_RUNS, METRIC_PATTERN, Goal
from lectern_common.stages.requests import REQUESTS

FULL, READ_ONLY = "token", "readOnlyToken"
CHANGES = "RunSpecChanges"
SWEEP = "SweepSpec"
# By stage, the body that makes a task of it.
TASK_BODIES = {
    "evaluate": "EvaluationBody",
    "export": "ExportBody",
    "publish": "PublicationBody",
    "precompute": "RecordBody",
}
_SCHEMES = {
    FULL: {"type": "http", "scheme": "bearer", "description": "Allows everything"},
    READ_ONLY: {"type": "http", "scheme": "bearer", "description": "Allows GET only"},
}
_HEADERS = {"401": "WWW-Authenticate", "405": "Allow", "503": "Retry-After"}
_METHODS = ("get", "post", "put", "patch", "delete")


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """Returns FastAPI's document with what it does not know; changes and returns its argument."""
    components = document["components"]
    components["securitySchemes"] = copy.deepcopy(_SCHEMES)
    _add_partial(components["schemas"], "RunSpec")
    _add_sweep(components["schemas"])
    for stage in TASK_BODIES:
        _add_task_body(components["schemas"], stage)
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                _complete(path, method, methods[method])
    return document


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    if path in PUBLIC:
        operation["security"] = []
        del responses["401"]
    else:
        allowed = [FULL, READ_ONLY] if method == "get" else [FULL]
        operation["security"] = [{name: []} for name in allowed]
    further = {
        **(WRITE if method != "get" else {}),
        **(WITH_BODY if "requestBody" in operation else {}),
    }
    for status, response in further.items():
        responses[str(status)] = {"description": response["description"], "content": {}}
    for status, response in responses.items():
        if int(status) >= 400:
            schema = {"$ref": "#/components/schemas/Problem"}
            response["content"] = {MEDIA_TYPE: {"schema": schema}}
            if status in _HEADERS:
                response["headers"] = {_HEADERS[status]: {"schema": {"type": "string"}}}
        elif len(response.get("content", {})) > 1:
            # FastAPI adds JSON to what a route declares, although it may answer with none.
            json_answer = response["content"].get("application/json", {})
            if "$ref" not in json_answer.get("schema", {}):
                response["content"].pop("application/json", None)
            response["content"].pop("text/plain" if path.endswith("/spec") else "", None)
    operation["responses"] = dict(sorted(responses.items()))


def _add_partial(schemas: dict[str, Any], name: str) -> str:
    """Adds the schema of an object of which any part may be given; returns its name."""
    partial = f"{name.removesuffix('Spec')}SpecChanges"
    if partial not in schemas:
        schema = schemas[partial] = copy.deepcopy(schemas[name])
        schema.pop("required", None)
        schema["title"] = partial
        for field in schema["properties"].values():
            field.pop("default", None)
            for part in (field, *field.get("anyOf", ())):
                target = str(part.get("$ref", "")).rpartition("/")[2]
                if schemas.get(target, {}).get("type") == "object":
                    part["$ref"] = f"#/components/schemas/{_add_partial(schemas, target)}"
    return partial


def _add_task_body(schemas: dict[str, Any], stage: str) -> None:
    """Adds the schema of what makes a task: the stage's request without what the path says."""
    schema = REQUESTS[stage]().model_json_schema(ref_template="#/components/schemas/{model}")
    for name, definition in schema.pop("$defs", {}).items():
        schemas.setdefault(name, definition)
    said = {"stage", SUBJECTS.get(stage)}
    schema["title"] = TASK_BODIES[stage]
    schema["properties"] = {k: v for k, v in schema["properties"].items() if k not in said}
    schema["required"] = [name for name in schema.get("required", ()) if name not in said]
    if not schema["required"]:
        del schema["required"]
    schemas[TASK_BODIES[stage]] = schema


def _add_sweep(schemas: dict[str, Any]) -> None:
    """Adds the schema of what POST /sweeps takes."""
    base = copy.deepcopy(schemas["RunSpec"])
    base["title"] = "SweepBaseSpec"
    base["description"] = "The run spec that all runs begin with. Its name is not used."
    base["required"] = [name for name in base["required"] if name != "name"]
    schemas["SweepBaseSpec"] = base
    schemas[SWEEP] = {
        "title": SWEEP,
        "description": "Runs of one base spec that differ in some settings, named by dotted paths.",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "base"],
        "oneOf": [{"required": ["grid"]}, {"required": ["list"]}],
        "properties": {
            "name": {"type": "string", "pattern": NAME_PATTERN, "maxLength": MAX_NAME},
            "base": {"$ref": "#/components/schemas/SweepBaseSpec"},
            "grid": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {"type": "array", "minItems": 1, "items": {}},
                "description": "Values by dotted path; all combinations, the last path fastest.",
            },
            "list": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_RUNS,
                "items": {"type": "object"},
                "description": "For each run its values by dotted path.",
            },
            "metric": {"type": "string", "pattern": METRIC_PATTERN, "default": DEFAULT_METRIC},
            "goal": {"type": "string", "enum": list(get_args(Goal)), "default": "min"},
        },
    }


def text_of(document: dict[str, Any]) -> str:
    """Returns the document as the file holds it."""
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    from control_plane.api.app import document

    sys.stdout.write(text_of(document()))
