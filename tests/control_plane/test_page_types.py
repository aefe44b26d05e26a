"""The types of the page are those of the REST interface."""

import json
import re
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from control_plane.api.app import WEB
from lectern_common.wire.formats import FORMATS
from tests.control_plane.conftest import ROOT

# Interfaces that only the page has.
OWN = {"Window", "ShownRun", "MetricsRecord"}
MODEL_OF = {"HistoryEntry": "HistoryView", "TeacherRecord": "RecordView"}
# Types that the page knows more precisely than the schema.
SPELLED = {
    "Metrics.metrics": "MetricsRecord[]",
    "RunDetail.spec": "Record<string, any>",
    "SpecCheck.spec": "Record<string, any>",
    "Dataset.holds": '"text" | "chats" | "prompts" | null',
    "Rollout.kl": "(number | null)[]",
    "Check.outcome": '"pass" | "warn" | "fail" | "skip"',
    "Run.stop_at": '"checkpoint" | null',
    "RunDetail.stop_at": '"checkpoint" | null',
    "Alert.kind": "AlertKind",
    "Alert.state": "RunState | null",
    "SweepSummary.goal": '"min" | "max"',
    "Sweep.goal": '"min" | "max"',
}


def interfaces() -> dict[str, dict[str, str]]:
    """Returns the type of every field, inherited ones included, by interface of types.d.ts."""
    text = re.sub(r"/\*\*.*?\*/", "", (WEB / "types.d.ts").read_text(), flags=re.DOTALL)
    found: dict[str, dict[str, str]] = {}
    for name, base, body in re.findall(r"interface (\w+)(?: extends (\w+))? \{(.*?)\}", text, re.S):
        found[name] = {**found.get(base, {}), **dict(re.findall(r"(\w+): (.*?);\n", body))}
    return found


def spelled(schema: dict[str, Any], names: dict[str, str]) -> str:
    """Returns a schema as TypeScript. `names` maps models to interfaces."""
    if "$ref" in schema:
        model: str = schema["$ref"].rpartition("/")[2]
        return names.get(model, model)
    if "anyOf" in schema:
        return " | ".join(spelled(one, names) for one in schema["anyOf"])
    if schema["type"] == "array":
        return f"{spelled(schema['items'], names)}[]"
    if schema["type"] == "object":
        values = schema["additionalProperties"]
        return f"Record<string, {'any' if values is True else spelled(values, names)}>"
    kind: str = schema["type"]
    return {"integer": "number"}.get(kind, kind)


def test_the_interfaces_of_the_page_have_the_fields_of_the_responses(client: TestClient) -> None:
    models = client.get("/openapi.json").json()["components"]["schemas"]
    sent = {name: fields for name, fields in interfaces().items() if name not in OWN}
    model_of = {
        name: MODEL_OF.get(name) or (f"{name}View" if f"{name}View" in models else name)
        for name in sent
    }
    names = {model: name for name, model in model_of.items()}
    assert {"Run", "Teacher", "Metrics", "Sample", "HistoryEntry", "Problem"} <= sent.keys()
    for name, fields in sent.items():
        expected = {
            field: SPELLED.get(f"{name}.{field}") or spelled(schema, names)
            for field, schema in models[model_of[name]]["properties"].items()
        }
        assert fields == expected, name


def test_the_page_knows_the_states_of_a_run_that_are_sent(client: TestClient) -> None:
    models = client.get("/openapi.json").json()["components"]["schemas"]
    text = (WEB / "types.d.ts").read_text()
    for name in ("RunState", "Wanted"):
        union = re.search(rf"export type {name} =(.*?);", text, re.DOTALL)
        assert union is not None
        assert re.findall(r'"(\w+)"', union[1]) == models[name]["enum"]


def test_the_types_of_every_module_of_the_page_are_checked() -> None:
    modules = [path for path in WEB.rglob("*.js") if path.parent.name != "vendor"]
    assert len(modules) > 10
    for path in modules:
        assert path.read_text().startswith("// @ts-check\n"), path


def test_the_types_of_uplot_are_those_of_the_copy_in_vendor() -> None:
    pinned = json.loads((ROOT / "package.json").read_text())["devDependencies"]["uplot"]
    assert f"(v{pinned})" in (WEB / "vendor" / "uPlot.iife.min.js").read_text()[:100]


def test_every_imported_module_is_served(client: TestClient) -> None:
    seen: set[Path] = set()
    waiting = [WEB / "app.js"]
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = client.get(f"/web/{path.relative_to(WEB).as_posix()}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/javascript")
        found = re.findall(r'^(?:import .*|\} )from "(\.[^"]+)";$', answer.text, re.MULTILINE)
        waiting += {(path.parent / name).resolve() for name in found} - seen
    assert seen == {path for path in WEB.rglob("*.js") if path.parent.name != "vendor"}


def test_the_page_marks_the_representations_whose_divergence_is_not_exact() -> None:
    source = (WEB / "charts" / "metrics.js").read_text()
    table = re.search(r"^const INEXACT = \{\n(.*?)^\};", source, re.DOTALL | re.MULTILINE)
    assert table is not None
    marked = set(re.findall(r"^  (\w+):", table[1], re.MULTILINE))
    assert marked == {name for name, form in FORMATS.items() if form.kd_is != "exact"}
