"""Grid search for the demo's learning rate, on cross entropy only, to be a fair baseline.

    .venv/bin/python -m benchmarks.trainer.demo_learning_rate demo \
      > benchmarks/trainer/demo_learning_rate.json

takes a finished demo's data and trains its student on labels only, once per seed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lectern.demo.specs import STUDENT_STEPS, student_specs
from lectern_common.json_lines import read_json_lines
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec

GRID = (2e-3, 3.5e-3, 5e-3, 7e-3, 1e-2)
SEEDS = (0, 1, 2)


def validation_loss(roots: Roots, runs_root: Path, learning_rate: float, seed: int) -> float:
    """Returns the validation loss after the demo's steps, in nats per token."""
    body = student_specs("127.0.0.1:1", seed, STUDENT_STEPS)[0].model_dump(mode="json")
    body["optimizer"]["learning_rate"] = learning_rate
    folder = RunFolder.create(runs_root, f"rate-{learning_rate}-seed-{seed}", parse_spec(body))
    subprocess.run(
        [sys.executable, "-m", "student_trainer", str(folder.path)],
        check=True,
        env={**roots.environment(), "PATH": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    lines = reversed(read_json_lines(folder.metrics_path))
    return float(next(line["loss/val"] for line in lines if "loss/val" in line))


def main() -> None:
    """Prints the grid and its best learning rate as JSON."""
    roots = Roots.of_home(Path(sys.argv[1]))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for rate in GRID:
            losses = [validation_loss(roots, Path(scratch), rate, seed) for seed in SEEDS]
            rows.append({"learning_rate": rate, "val_loss_end": losses})
            print(rows[-1], file=sys.stderr, flush=True)
    best = min(rows, key=lambda row: sum(row["val_loss_end"]))
    json.dump(
        {"steps": STUDENT_STEPS, "seeds": SEEDS, "grid": rows, "best": best["learning_rate"]},
        sys.stdout,
        indent=2,
    )
    print()


if __name__ == "__main__":
    main()
