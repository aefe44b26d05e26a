"""The specs of examples/ pass every check, and a few steps of each bring its loss down."""

import json
import re

import pytest
import yaml

from lectern_common.checks.preflight import require_startable
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import load_spec, parse_spec
from lectern_common.spec.sweep import parse_sweep
from student_trainer.run.dry_run import look
from tests.examples.conftest import EXAMPLES, TinyHome
from tests.support.training.runs import curve

PAGE = (EXAMPLES / "README.md").read_text()
# lora goes on from the student of labels-only.
RECIPES = ["labels-only", "hidden", "top-k", "fewer-layers", "lora"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_passes_the_checks_of_a_dry_run(
    home: TinyHome, labels_only: RunFolder, name: str
) -> None:
    spec = parse_spec(home.example(name))
    identity = require_startable(spec, home.roots)
    assert (identity is None) == (spec.teacher is None)
    checks = look(spec, home.roots, asks_teacher=spec.teacher is not None)["checks"]
    assert [check for check in checks if check["outcome"] == "fail"] == []


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns(home: TinyHome, labels_only: RunFolder, name: str) -> None:
    folder = labels_only if name == "labels-only" else home.learned(name)
    # With alpha 0 the labels have no part in it.
    key = "loss/val" if folder.read_spec().objective.alpha > 0 else "val/kl"
    before, *_, after = curve(folder, key)
    assert after < before


def test_the_teacher_learns(home: TinyHome) -> None:
    before, *_, after = curve(RunFolder(home.roots.runs / "teacher"), "loss/val")
    assert after < before


def test_the_sweep_passes_the_checks_of_its_runs(home: TinyHome) -> None:
    text = (EXAMPLES / "rates.yaml").read_text()
    sweep = parse_sweep(yaml.safe_load(text))
    assert sweep.name == "rates"
    comment = re.match(r"(# .*\n)+", text)
    assert comment is not None and 3 <= comment[0].count("\n") <= 6
    assert len(sweep.specs) == 4
    assert {spec.seed for spec in sweep.specs} == {0}  # one pass of the teacher
    fields = home.shrunk(yaml.safe_load(text)["base"])
    tiny = parse_sweep({**yaml.safe_load(text), "base": fields})
    for spec in tiny.specs:
        assert require_startable(spec, home.roots) is not None


@pytest.mark.parametrize("name", ["teacher", *RECIPES])
def test_a_spec_is_named_as_its_file_and_says_what_it_is_for(name: str) -> None:
    text = (EXAMPLES / f"{name}.yaml").read_text()
    spec = load_spec(EXAMPLES / f"{name}.yaml")
    comment = re.match(r"(# .*\n)+", text)
    assert spec.name == name
    assert comment is not None
    assert 3 <= comment[0].count("\n") <= 6


def test_the_page_has_a_row_of_numbers_for_every_example() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".yaml", ".py")}
    assert files == {f"{name}.yaml" for name in ["teacher", *RECIPES]} | {
        "distil.py",
        "rates.yaml",
        "two_runs.py",
    }
    rows = [line for line in PAGE.splitlines() if line.startswith("|")]
    with_numbers = {row.split("`")[1] for row in rows if re.search(r"\d\.\d\d", row)}
    assert with_numbers == files


def test_every_path_of_the_page_is_there() -> None:
    paths = re.findall(r"\bexamples/[\w./-]*\w", PAGE)
    assert len(paths) >= 8
    for path in paths:
        assert (EXAMPLES.parent / path).exists(), path


def test_the_shapes_have_the_vocabulary_of_the_tokenizer_that_the_page_trains() -> None:
    trained = re.search(r"--train-tokenizer (\d+)", PAGE)
    assert trained is not None
    for config in EXAMPLES.glob("models/*/config.json"):
        assert json.loads(config.read_text())["vocab_size"] == int(trained[1])
