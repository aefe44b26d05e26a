"""What the README and docs/training.md show works: the Python runs, bodies and specs are specs."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from lectern_common.spec.load import parse_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TRAINING = (ROOT / "docs/training.md").read_text()


def block(language: str) -> str:
    """The first fenced block of a language; "" is none."""
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_python_of_the_readme_runs_and_its_loss_falls() -> None:
    done = subprocess.run(
        [sys.executable, "-c", block("python")], capture_output=True, text=True, check=True
    )
    losses = [float(word) for word in done.stdout.strip("[]\n").split(",")]
    assert len(losses) == 4
    assert losses[-1] < 1.0 < losses[0]


def test_the_python_of_the_readme_is_ten_lines() -> None:
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 10


def test_the_body_that_curl_sends_is_a_spec() -> None:
    import json

    body = re.search(r"-d '(\{.*?\n\})'", README, re.DOTALL)
    assert body is not None
    assert parse_spec(json.loads(body[1])).distils


def test_the_specs_of_the_first_run_are_specs_that_belong_together() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", TRAINING, re.DOTALL | re.MULTILINE)
    teacher, student, on_policy, mixed = (parse_spec(yaml.safe_load(block)) for block in blocks)
    assert list(mixed.teachers or ()) == ["coder", "maths"]
    assert not teacher.distils
    assert student.distils
    assert student.student.init == teacher.name
    assert on_policy.rollout is not None
    assert on_policy.data.path == student.data.path
    assert f"~/.lectern/models/{teacher.student.config}/config.json" in TRAINING
    assert f"runs/{teacher.name}/export ~/.lectern/models/{student.student.init}" in TRAINING
