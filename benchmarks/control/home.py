"""A home with many finished runs, and one very long one."""

import json
import os
import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from control_plane.runs.commands import RunCommands
from control_plane.runs.store import DATABASE_NAME, Store
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec

# Metrics of a step besides the losses, as many as a trainer with a teacher writes.
_OTHERS = (
    *("optim/grad_norm", "optim/learning_rate", "optim/skipped_steps", "data/tokens_seen"),
    *("data/epoch", "data/valid_tokens", "perf/tokens_per_second", "time/step_seconds"),
    *("time/teacher_wait_seconds", "time/teacher_wait_share", "memory/rss_bytes"),
    *("wire/received_bytes", "wire/positions", "wire/bytes_per_token"),
)
_BLOCK = 5000  # different lines; later ones repeat their values
_EVALUATE_EVERY = 500


def spec_body(name: str, steps: int = 100) -> dict[str, Any]:
    """Returns a spec that needs neither teacher nor data."""
    return {
        "name": name,
        "student": {"config": "tiny"},
        "data": {"kind": "synthetic", "seq_len": 16},
        "objective": {"alpha": 1},
        "schedule": {"steps": steps, "warmup_steps": 0},
        "device": {"kind": "cpu", "threads": 1},
    }


def make_home(
    folder: Path, num_runs: int, num_lines: int, num_long_lines: int
) -> tuple[Roots, str]:
    """Makes finished runs; returns the roots, and the id of the long one, which is the newest.

    Args:
        folder: of the home.
        num_runs: besides the long one; their metrics.jsonl are links to one file.
        num_lines: of their metrics.
        num_long_lines: of the long one's.
    """
    roots = Roots.of_home(folder)
    write_model(roots.models / "tiny")
    store = Store.open(roots.runs / DATABASE_NAME)
    commands = RunCommands(store, time.time, max_queued=num_runs + 1)
    first: Path | None = None
    run_id = ""
    for number in range(num_runs + 1):
        is_long = number == num_runs
        run = commands.create(parse_spec(spec_body("long" if is_long else f"run-{number}")))
        run_id = run.id
        created = RunFolder.create(roots.runs, run_id, run.run_spec)
        if first is None or is_long:
            write_metrics(created.metrics_path, num_long_lines if is_long else num_lines)
            first = created.metrics_path
        else:
            os.link(first, created.metrics_path)
    store.close()
    # They have ended; no trainer of theirs need ever have lived.
    with closing(sqlite3.connect(roots.runs / DATABASE_NAME)) as database, database:
        database.execute("UPDATE runs SET state = 'succeeded'")
    return roots, run_id


def write_model(folder: Path) -> None:
    """Writes the config of a small model."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_metrics(path: Path, num_lines: int) -> None:
    """Writes the lines of that many steps."""
    draw = random.Random(0)  # noqa: S311 - not a secret
    block = []
    for _ in range(min(_BLOCK, num_lines)):
        losses = {name: draw.gauss(2, 0.2) for name in ("loss/total", "loss/ce", "loss/kd")}
        values = {**losses, **{name: draw.uniform(0, 1e6) for name in _OTHERS}}
        block.append(json.dumps(values)[1:])
    with path.open("w") as file:
        for step in range(num_lines):
            evaluated = "" if step % _EVALUATE_EVERY else f'"loss/val": {2 + 100 / (step + 50)}, '
            file.write(
                f'{{"step": {step}, "time": {1.7e9 + step / 4}, "progress/tokens": {4096 * step}, '
                f'"progress/seconds": {step / 4}, {evaluated}{block[step % _BLOCK]}\n'
            )
