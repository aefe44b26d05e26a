"""The example specs of docker/specs, which need no Docker engine to be checked."""

from pathlib import Path

import pytest
import yaml

from lectern_common.spec.load import load_spec
from lectern_common.spec.run_spec import RunSpec
from lectern_common.spec.sweep import parse_sweep

SPECS = Path(__file__).parents[2] / "docker" / "specs"
RUNS = sorted(path for path in SPECS.glob("*.yaml") if path.name != "sweep.yaml")


def assert_learns_from_the_stack(spec: RunSpec) -> None:
    """Raises unless the teacher is a record or the service of docker/compose.yaml."""
    assert spec.teacher is not None
    if spec.teacher.record is None:
        assert spec.teacher.address == "teacher:50051"
        assert spec.teacher.token_file == "teacher"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_an_example_spec_is_valid_for_the_stack(path: Path) -> None:
    assert_learns_from_the_stack(load_spec(path))


def test_the_example_sweep_makes_a_valid_run_of_each_rate() -> None:
    sweep = parse_sweep(yaml.safe_load((SPECS / "sweep.yaml").read_text()))
    assert len(sweep.specs) == 3
    for spec in sweep.specs:
        assert_learns_from_the_stack(spec)


def test_the_examples_show_two_gpus_a_record_and_on_policy() -> None:
    assert load_spec(SPECS / "two-gpus.yaml").device.count == 2
    recorded = load_spec(SPECS / "from-a-record.yaml").teacher
    assert recorded is not None and recorded.record == "answers"
    assert load_spec(SPECS / "on-policy.yaml").rollout is not None
