"""The stages by name, and what each is asked: a pydantic model, which REST and the page use too."""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ValidationError

from lectern_common.errors import InvalidSpec
from lectern_common.spec.refusals import problems_of

# Each imports the class when it is asked for.
REQUESTS: dict[str, Callable[[], type[BaseModel]]] = {
    "evaluate": lambda: import_module("lectern_common.stages.evaluate").EvaluateRequest,
    "export": lambda: import_module("lectern_common.stages.export").ExportRequest,
    "publish": lambda: import_module("lectern_common.stages.publish").PublishRequest,
    "precompute": lambda: import_module("lectern_common.stages.precompute").PrecomputeRequest,
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
