"""The charts alone, in a page whose server is this file: it answers as the control plane does."""

import json
import math
from typing import Any
from urllib.parse import parse_qs, urlsplit

from control_plane.api.app import WEB
from control_plane.api.guard import _HEADERS

ORIGIN = "http://127.0.0.1:9"
HTML = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Charts</title>
<link rel="icon" href="/web/favicon.svg"><link rel="stylesheet" href="/web/vendor/uPlot.min.css">
<link rel="stylesheet" href="/web/style.css"><link rel="stylesheet" href="/web/charts/charts.css">
<script src="/web/vendor/uPlot.iife.min.js" defer></script></head>
<body><main><section id="charts" class="card curves"></section></main></body></html>"""
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
COLUMNS = ("step", "first_step", "mean", "min", "max", "count", "non_finite")
AXES = {"tokens": "progress/tokens", "seconds": "progress/seconds", "time": "time"}

Record = dict[str, Any]


def run_view(run_id: str, index: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "id": run_id,
        "name": run_id,
        "index": index,
        "state": "running",
        "step": 0,
        "steps": 1000,
        "attempt": 1,
        "checkpoint_step": None,
        "alpha": 0.5,
        "temperature": 2,
        "representation": "hidden",
        **fields,
    }


class ChartPage:
    """Serves runs to the charts of one browser page.

    Attributes:
        records: lines of metrics.jsonl, by run; a test appends to them.
        marks: by run.
        asked: the parameters of each request for series, in order.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.records: dict[str, list[Record]] = {}
        self.marks: dict[str, list[Record]] = {}
        self.asked: list[dict[str, str]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        page.context.route(f"{ORIGIN}/**", self._answer)

    def add(
        self, run_id: str, records: list[Record], settings: Record | None = None, **fields: Any
    ) -> None:
        step = records[-1]["step"] if records else 0
        self.runs[run_id] = run_view(run_id, len(self.runs), step=step, **fields)
        self.records[run_id] = records
        if settings is not None:
            self.settings[run_id] = settings

    def open(self, kind: str = "Overview", **options: Any) -> None:
        """Opens the page with the charts of all runs in it."""
        self.page.goto(f"{ORIGIN}/")
        self.page.evaluate(
            """async ([kind, options]) => {
                const charts = await import("/web/charts/charts.js");
                window.params = [];
                window.charts = new charts[kind](document.querySelector("#charts"), {
                    ...options, onParams: (params) => window.params.push(params)});
            }""",
            [kind, options],
        )
        self.update(kind)

    def update(self, kind: str = "Overview") -> None:
        """Tells the charts of the runs as they are now."""
        for run_id, records in self.records.items():
            self.runs[run_id]["step"] = records[-1]["step"] if records else 0
        entries = [
            {"run": run, "name": run["name"]}
            | ({"settings": self.settings[run["id"]]} if run["id"] in self.settings else {})
            for run in self.runs.values()
        ]
        self.page.evaluate(
            "([entries, isOne]) => window.charts.update(isOne ? entries[0] : entries)",
            [entries, kind == "RunCharts"],
        )

    def shown(self, expression: str) -> Any:
        """Returns an expression over `grid`, the charts' state in the page."""
        return self.page.evaluate(
            f"() => {{ const grid = window.charts.grid; return {expression} }}"
        )

    def _answer(self, route: Any) -> None:
        parts = urlsplit(route.request.url)
        headers = dict(_HEADERS)
        if parts.path == "/":
            route.fulfill(body=HTML, content_type="text/html", headers=headers)
        elif parts.path.startswith("/web/"):
            path = WEB / parts.path.removeprefix("/web/")
            route.fulfill(body=path.read_bytes(), content_type=TYPES[path.suffix], headers=headers)
        else:
            _, _, run_id, what = parts.path.split("/")
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            answer = self._series(run_id, asked) if what == "series" else self._new(run_id, asked)
            route.fulfill(body=json.dumps(answer), content_type="application/json")

    def _series(self, run_id: str, asked: dict[str, str]) -> dict[str, Any]:
        self.asked.append(asked)
        records = self.records[run_id]
        keys = {key for record in records for key in record} - {"step", *AXES.values()}
        first, last = int(asked.get("from_step", 0)), int(asked.get("to_step", 10**12))
        inside = [record for record in records if first <= record["step"] <= last]
        wanted = [key for key in asked["keys"].split(",") if key]
        return {
            "run_id": run_id,
            "revision": str(len(records)),
            "last_step": records[-1]["step"] if records else None,
            "keys": sorted(keys),
            "series": {key: columns(inside, key, int(asked["max_points"])) for key in wanted},
            "marks": self.marks.get(run_id, []),
            "cursor": str(len(records)),
        }

    def _new(self, run_id: str, asked: dict[str, str]) -> dict[str, Any]:
        records, start = self.records[run_id], int(asked["cursor"])
        return {
            "run_id": run_id,
            "metrics": records[start:] if start <= len(records) else records,
            "cursor": str(len(records)),
            "rewound": start > len(records),
            "more": False,
        }


def columns(records: list[Record], key: str, max_points: int) -> dict[str, list[Any]]:
    """Returns the buckets of one metric; a value that is None was not finite."""
    having = [record for record in records if key in record]
    width = max(1, math.ceil(len(having) / max_points))
    found: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, *AXES)}
    for start in range(0, len(having), width):
        bucket = having[start : start + width]
        values = [record[key] for record in bucket if record[key] is not None]
        row = [
            bucket[-1]["step"],
            bucket[0]["step"],
            sum(values) / len(values) if values else None,
            min(values, default=None),
            max(values, default=None),
            len(values),
            len(bucket) - len(values),
        ]
        for name, value in zip(COLUMNS, row, strict=True):
            found[name].append(value)
        for name, source in AXES.items():
            found[name].append(bucket[-1].get(source))
    return found
