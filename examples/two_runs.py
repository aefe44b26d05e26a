"""Two runs over REST that share one teacher: created, awaited, compared.

    python examples/two_runs.py --spec examples/hidden.yaml

Needs `lectern up --model teacher` in another terminal. The runs differ in the temperature only, so
both ask about the same rows, and the teacher computes each row once. The client needs no torch and
may be on another machine; then set `--url`, and LECTERN_TOKEN to the control plane's token.
"""

import argparse
import os
from pathlib import Path

from lectern import Client, RunSpec, load_spec

TEMPERATURES = (1.0, 4.0)


def main() -> None:
    """Creates the runs, waits until both rest, and prints their validation losses."""
    options = _options()
    spec = load_spec(options.spec)
    specs = [at_temperature(spec, temperature) for temperature in TEMPERATURES]
    with Client(options.url, token=os.environ.get("LECTERN_TOKEN")) as client:
        created = [client.create_run(spec).id for spec in specs]
        runs = client.wait(created)
        print(f"{'run':<24}{'state':<12}{'before':>8}{'after':>8}{'val/kl':>8}")
        for run in runs:
            evaluations = [record for record in client.metrics(run.id) if "loss/val" in record]
            before, after = evaluations[0], evaluations[-1]
            print(
                f"{run.id:<24}{run.state:<12}{before['loss/val']:8.3f}{after['loss/val']:8.3f}"
                f"{after['val/kl']:8.3f}"
            )


def at_temperature(spec: RunSpec, temperature: float) -> RunSpec:
    """Returns the same spec with another temperature, and a name that says so."""
    fields = spec.model_dump()
    fields["name"] = f"{spec.name}-t{temperature:g}"
    fields["objective"]["temperature"] = temperature
    return RunSpec.model_validate(fields)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compares two temperatures over REST.")
    parser.add_argument("--spec", type=Path, default=Path(__file__).with_name("hidden.yaml"))
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the control plane")
    return parser.parse_args()


if __name__ == "__main__":
    main()
