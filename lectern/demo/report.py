"""The demo's results: the summary, the table, and what each student writes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lectern import console
from lectern_common.errors import LecternError
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.spec.run_spec import RunSpec

if TYPE_CHECKING:
    from lectern.client import Client, RunStatus

PROMPT = "def read(self, size=-1):\n    "
CONTINUATION_TOKENS = 32
METADATA_NAME = "distillation_metadata.json"


def served_teacher(client: "Client", address: str) -> dict[str, Any]:
    """Returns the summary's facts about a teacher that is served now."""
    served = next(entry for entry in client.teachers() if entry.address == address)
    return {
        "parameters": served.num_parameters,
        "weights_sha256": served.weights_sha256,
        "fingerprint": served.fingerprint,
    }


def summarise(
    teacher: dict[str, Any], runs: Sequence["RunStatus"], specs: Sequence[RunSpec], runs_root: Path
) -> dict[str, Any]:
    """Returns summary.json: the teacher and one entry per run, from the runs' own files.

    Losses are nats per token on the validation set; teacher_wait_share is the share of the steps'
    wall time; wire_bytes_per_token counts received replies, without the head and the requests, and
    is null for a run that asks no server.
    """
    return {
        "teacher": teacher,
        "runs": [
            _run_entry(RunFolder(runs_root / run.id), spec)
            for run, spec in zip(runs, specs, strict=True)
        ],
    }


def _run_entry(folder: RunFolder, spec: RunSpec) -> dict[str, Any]:
    lines = read_json_lines(folder.metrics_path)
    steps = [line for line in lines if "time/step_seconds" in line]
    validation = [line["loss/val"] for line in lines if "loss/val" in line]
    metadata = json.loads((folder.export_path / METADATA_NAME).read_text())
    seconds = sum(line["time/step_seconds"] for line in steps)
    waited = sum(line["time/teacher_wait_seconds"] for line in steps)
    received = sum(line.get("wire/received_bytes", 0) for line in steps)
    asked = sum(line.get("wire/positions", 0) for line in steps)
    return {
        "id": folder.run_id,
        "name": spec.name,
        "alpha": spec.objective.alpha,
        "temperature": spec.objective.temperature,
        "representation": spec.teacher.representation if spec.teacher else None,
        "steps": spec.schedule.steps,
        "learning_rate": spec.optimizer.learning_rate,
        "record": spec.teacher.record if spec.teacher else None,
        "initial_weights_sha256": metadata["initial_weights_sha256"],
        "weights_sha256": metadata["student_weights_sha256"],
        "val_loss_start": validation[0],
        "val_loss_end": validation[-1],
        "tokens_per_second": steps[-1]["data/tokens_seen"] / seconds,
        "teacher_wait_share": waited / seconds,
        "wire_bytes_per_token": received / asked if asked else None,
        "export": str(folder.export_path),
    }


def continuations(summary: dict[str, Any], runs_root: Path) -> dict[str, str]:
    """Returns, for each run id, what its exported student writes after PROMPT (greedy).

    Raises:
        LecternError: a student cannot be loaded.
    """
    ids = [run["id"] for run in summary["runs"]]
    exports = [str(runs_root / run_id / "export") for run_id in ids]
    options = ["--prompt", PROMPT, "--tokens", str(CONTINUATION_TOKENS)]
    done = subprocess.run(
        [sys.executable, "-m", "lectern_models.continuation", *exports, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LecternError(f"cannot run the exported students: {done.stderr.strip()}")
    return dict(zip(ids, json.loads(done.stdout.splitlines()[-1]), strict=True))


def show(summary: dict[str, Any], written: dict[str, str]) -> None:
    """Prints the table of the runs and a sample of what each student writes."""
    from rich.table import Table
    from rich.text import Text

    teacher = summary["teacher"]
    table = Table(
        title=f"teacher: {teacher['parameters'] / 1e6:.1f} M parameters, validation loss "
        f"{teacher['val_loss']:.3f} nats per token"
    )
    table.add_column("run", no_wrap=True)
    for name in ("loss\nbefore", "loss\nafter", "tokens/s", "teacher\nwait", "bytes/\ntoken"):
        table.add_column(name, justify="right")
    best = min(run["val_loss_end"] for run in summary["runs"])
    for run in summary["runs"]:
        after = Text(f"{run['val_loss_end']:.3f}")
        if run["val_loss_end"] == best:
            after.stylize("bold green")
        bytes_per_token = run["wire_bytes_per_token"]
        table.add_row(
            run["name"],
            f"{run['val_loss_start']:.3f}",
            after,
            f"{run['tokens_per_second']:,.0f}",
            f"{run['teacher_wait_share']:.0%}" if run["representation"] else "",
            "" if bytes_per_token is None else f"{bytes_per_token:,.0f}",
        )
    screen = console.out()
    screen.print(table)
    for run in summary["runs"]:
        if run["record"] is not None:
            screen.print(
                Text(f"\n{run['name']} had no teacher: {_compared(run, summary['runs'])}.")
            )
    screen.print(Text(f"\nAfter {PROMPT!r} each student writes:"))
    for run in summary["runs"]:
        screen.print(Text(f"  {run['name']:<18}{written[run['id']]!r}"))


def _compared(run: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """Returns how a recorded run's weights compare with those of the run that it repeats."""
    names = [
        other["name"]
        for other in runs
        if other is not run and other["weights_sha256"] == run["weights_sha256"]
    ]
    said = f"from the record {run['record']} it has"
    if names:
        return f"{said} the weights of {', '.join(names)}, bit by bit"
    return f"{said} weights of its own"
