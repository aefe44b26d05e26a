"""The stages by name, and what each is asked: a pydantic model, which REST and the page use too."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lectern_common.errors import InvalidSpec
from lectern_common.spec.refusals import problems_of


def _evaluate() -> type[BaseModel]:
    from lectern_common.stages.evaluate import EvaluateRequest

    return EvaluateRequest


def _export() -> type[BaseModel]:
    from lectern_common.stages.export import ExportRequest

    return ExportRequest


def _publish() -> type[BaseModel]:
    from lectern_common.stages.publish import PublishRequest

    return PublishRequest


def _precompute() -> type[BaseModel]:
    from lectern_common.stages.precompute import PrecomputeRequest

    return PrecomputeRequest


# Each imports the class when it is asked for.
REQUESTS: dict[str, Callable[[], type[BaseModel]]] = {
    "evaluate": _evaluate,
    "export": _export,
    "publish": _publish,
    "precompute": _precompute,
}
STAGES = tuple(REQUESTS)


def parse_request(
    stage: str,
    asked: Mapping[str, Any],
    requests: Mapping[str, Callable[[], type[BaseModel]]] = REQUESTS,
) -> BaseModel:
    """Returns the request that JSON values hold.

    Args:
        stage: its name.
        asked: the fields.
        requests: the stages that there are.

    Raises:
        InvalidSpec: with a problem for each field that is wrong, or there is no such stage.
    """
    if stage not in requests:
        raise InvalidSpec([("stage", f"expected one of {', '.join(requests)}, got {stage!r}")])
    try:
        # As JSON: strict models take text for an enum only there.
        return requests[stage]().model_validate_json(json.dumps(dict(asked)))
    except ValidationError as error:
        raise InvalidSpec(problems_of(error.errors())) from None
