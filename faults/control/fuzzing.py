"""C13: calls that schemathesis makes up over every operation of the committed description."""

import itertools
import json
from collections import Counter
from typing import Any

from faults.control.plane import Plane, new_home, plane
from faults.processes import ROOT
from faults.row import Tally
from faults.stage import Stage

_TOKEN = "the-token-of-this-row-alone"  # noqa: S105 - not a secret
_STREAMS = ("/events", "/runs/{run_id}/events")
_PUBLIC = ("/healthz", "/readyz", "/")
_WRONG = ("", "Bearer x", "Basic x", f"Basic {_TOKEN}", f"Bearer {_TOKEN}x")


def fuzzed(stage: Stage) -> Tally:
    """C13: 10,000 calls over every operation, and every tenth once more without its token."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    tally, home = Tally(), new_home(stage)
    token = stage.new_folder() / "token"
    token.write_text(_TOKEN)
    calls = stage.tries(10_000, 500)
    schema = schemathesis.openapi.from_dict(json.loads((ROOT / "docs/openapi.json").read_text()))
    count = len(list(schema.get_all_operations()))
    bounds = settings(
        max_examples=-(-calls // count),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )
    options = ("--token-file", str(token), "--max-running-runs", "2")
    with plane(stage, home, *options, token=_TOKEN) as service:
        served = service.client.get("/openapi.json").json()
        tally.require(served == schema.raw_schema, "it serves another description than docs/ has")
        schema = schemathesis.openapi.from_dict(schema.raw_schema)
        schema.config.update(base_url=f"http://{service.address}")
        fuzz = _Fuzz(service, tally)
        for found in schema.get_all_operations():
            operation = found.ok()  # type: ignore[union-attr]  # its types leave out Err.ok
            stage.say(operation.label)
            bounds(given(case=operation.as_strategy())(fuzz.call))()
        tally.require(service.client.get("/healthz").status_code == 200, "it is not healthy")
    told = ", ".join(f"{status}: {count}" for status, count in sorted(fuzz.counts.items()))
    tally.figure = (
        f"{count} operations; {told}; none 5xx, each as described, and none without the token"
    )
    return tally


class _Fuzz:
    """Makes calls and counts what is wrong with their answers."""

    def __init__(self, service: Plane, tally: Tally) -> None:
        from schemathesis.checks import not_a_server_error
        from schemathesis.specs.openapi import checks

        self.counts: Counter[int] = Counter()
        self._service, self._tally = service, tally
        self._numbers = itertools.count()
        self._known = ""
        self._checks = [
            not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
        ]

    def call(self, case: Any) -> None:
        number = next(self._numbers)
        if number % 2 and "run_id" in (case.path_parameters or {}):
            case.path_parameters["run_id"] = self._run()  # else nearly all are of no run
        problem = self._problem_of(case)
        if not problem and number % 10 == 0 and case.operation.path not in _PUBLIC:
            problem = self._problem_without_token(case, _WRONG[number // 10 % len(_WRONG)])
        self._tally.count(not problem, f"{case.operation.label}: {problem}")

    def _run(self) -> str:
        """Returns the id of a run; a new one if the last was deleted."""
        client = self._service.client
        if not self._known or client.get(f"/runs/{self._known}").status_code == 404:
            self._known = self._service.create("steady", 5)
        return self._known

    def _problem_of(self, case: Any) -> str:
        from schemathesis.core.failures import Failure, FailureGroup

        if case.operation.path in _STREAMS:
            return self._problem_of_stream(case)
        response = case.call(headers=self._service.headers)
        self.counts[response.status_code] += 1
        try:
            case.validate_response(response, checks=self._checks, headers=self._service.headers)
        except (Failure, FailureGroup) as error:
            told = getattr(error, "exceptions", [error])
            return "; ".join(str(one).partition("\n")[0] for one in told)[:300]
        return ""

    def _problem_of_stream(self, case: Any) -> str:
        """Looks only at the head of a stream, which has no end."""
        status, kind = self._head_of(case, self._service.headers)
        self.counts[status] += 1
        described = case.operation.definition.raw["responses"].get(str(status))
        if status >= 500 or described is None:
            return f"{status} is not described"
        return "" if kind in described["content"] else f"{status} as {kind}"

    def _problem_without_token(self, case: Any, wrong: str) -> str:
        status, kind = self._head_of(case, {"Authorization": wrong})
        self.counts[status] += 1
        # A path or header that is no HTTP is refused before its token is looked at.
        right = status in (401, 400) and kind == "application/problem+json"
        return "" if right else f"{status} as {kind} without the token"

    def _head_of(self, case: Any, headers: dict[str, str]) -> tuple[int, str]:
        """Returns the status and content type of an answer."""
        import requests

        sent = case.as_transport_kwargs(headers=headers)
        sent["headers"] = {
            name: value
            for name, value in sent["headers"].items()
            if name.lower() != "authorization" or value in headers.values()
        }
        with requests.request(**sent, stream=True, timeout=30) as answer:
            return answer.status_code, answer.headers.get("content-type", "").partition(";")[0]
