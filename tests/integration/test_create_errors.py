"""`lectern runs create` with impossible specs: one clear message, and nothing left behind."""

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from lectern.client import Client
from lectern_common.run.status import RunState
from lectern_common.tokens.tokenizer_map import read_tokenizer_map, tokenizer_sha256
from tests.support.fakes import NOBODY
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_process
from tests.support.stack import MARK, Ended, control_plane, lectern, marked_processes
from tests.support.training.runs import Home

VOCAB_SIZE = 300


@dataclass(frozen=True)
class Service:
    """A real teacher and a real control plane over `home`, and a spec that they accept."""

    home: Home
    plane: Client
    spec: dict[str, Any]
    mark: str

    def create(self, folder: Path, changes: dict[str, Any]) -> Ended:
        """Runs `lectern runs create`; `changes` are merged into the sections of the spec."""
        spec = copy.deepcopy(self.spec)
        for section, values in changes.items():
            merges = isinstance(values, dict) and section in spec
            spec[section] = {**spec[section], **values} if merges else values
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(spec))
        return lectern("runs", "create", path, "--url", self.plane.url)

    def processes(self) -> set[psutil.Process]:
        return set(marked_processes(self.mark))

    def run_folders(self) -> list[Path]:
        return [path for path in self.home.roots.runs.iterdir() if path.is_dir()]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = Home(tmp_path_factory.mktemp("home"))
    teacher_folder = write_models(home)
    spec = {
        "name": "good",
        "student": {"config": "student"},
        "data": {"path": "text", "seq_len": 16, "validation_fraction": 0.2},
        "schedule": {"steps": 100_000, "warmup_steps": 0},
        "device": {"kind": "cpu", "threads": 1},
    }
    mark = "test_create_errors"
    options = ("--model", str(teacher_folder), "--threads", "1")
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(MARK, mark)
            teacher = stack.enter_context(teacher_process(home.path, *options))
            plane = stack.enter_context(control_plane(home))
        spec["teacher"] = {"address": teacher.address, "representation": "top_k"}
        yield Service(home, plane, spec, mark)


def write_models(home: Home) -> Path:
    """Writes the teacher, students of every kind, and their data; returns the teacher's folder."""
    import torch
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "hidden": 32, "tokenizer": True}
    teacher = write_tiny_model(home.path / "teacher", seed=1, **settings)
    models = home.roots.models
    home.model("student", vocab_size=VOCAB_SIZE, tokenizer=True, weights=False)
    shutil.copytree(teacher, models / "own")
    shutil.copytree(teacher, models / "own-bf16")
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    model.save_pretrained(models / "own-bf16")

    home.tokenized("text")
    student = home.model("stranger", vocab_size=VOCAB_SIZE, tokenizer=True, weights=False)
    data = home.tokenized("stranger")
    for folder in (student, data):
        swap_a_and_b(folder / "tokenizer.json")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["tokenizer_sha256"] = tokenizer_sha256(read_tokenizer_map(data / "tokenizer.json"))
    (data / "manifest.json").write_text(json.dumps(manifest))
    return teacher


def swap_a_and_b(path: Path) -> None:
    """Makes another tokenizer of the same size and with the same tokens."""
    tokenizer = json.loads(path.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(tokenizer))


@dataclass(frozen=True)
class Case:
    changes: dict[str, Any]
    code: int
    says: tuple[str, ...]


CASES = {
    "misspelt": Case(
        {"optimizer": {"learning_rat": 0.1}},
        2,
        ("optimizer.learning_rat: unknown field; did you mean learning_rate?",),
    ),
    "temperature-0": Case(
        {"objective": {"temperature": 0}}, 2, ("objective.temperature: ", "more than 0, got 0")
    ),
    "no-data": Case(
        {"data": {"path": "nowhere"}},
        2,
        ("data.path: no dataset 'nowhere' under the data root", "lectern data prepare"),
    ),
    "no-student": Case(
        {"student": {"config": "nowhere"}},
        2,
        ("student.config: no model folder 'nowhere' under the models root",),
    ),
    "teacher-down": Case(
        {"teacher": {"address": NOBODY}}, 7, (f"no teacher at {NOBODY}", "lectern teacher serve")
    ),
    "another-tokenizer": Case(
        {"student": {"config": "stranger"}, "data": {"path": "stranger"}},
        6,
        ("tokenizers differ", 'id 65: teacher "a", student "b"', 'id 66: teacher "b", student "a"'),
    ),
    "own-weights": Case(
        {"student": {"config": None, "init": "own"}},
        6,
        ("own has the teacher's own weights", "teacher.allow_same_weights"),
    ),
    "own-weights-in-bf16": Case(
        {"student": {"config": None, "init": "own-bf16"}},
        6,
        ("own-bf16 has the teacher's own weights", "teacher.allow_same_weights"),
    ),
    "top-k-too-large": Case(
        {"teacher": {"top_k": VOCAB_SIZE + 1}}, 6, ("teacher.top_k 301 exceeds 300",)
    ),
    "representation-unknown": Case(
        {"teacher": {"representation": "hiden"}}, 2, ("teacher.representation: ", "'hidden'")
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_impossible_spec_gives_one_message_and_leaves_nothing(
    service: Service, tmp_path: Path, case: Case
) -> None:
    """TEACHER-DIVERGENCE: the teacher's own weights are refused, whatever their dtype."""
    processes = service.processes()
    ended = service.create(tmp_path, case.changes)
    assert ended.code == case.code, ended
    assert ended.out == ""
    [line] = ended.err.splitlines()
    assert line.startswith("error: ")
    for words in case.says:
        assert words in line
    assert service.plane.list_runs() == []
    assert service.run_folders() == []
    assert service.processes() == processes
    assert len(processes) == 2  # the teacher server and the control plane


def test_each_problem_of_a_spec_has_its_own_message(service: Service, tmp_path: Path) -> None:
    changes = {"objective": {"temperature": 0, "alpah": 1}, "batch": {"sequences_per_step": 0}}
    ended = service.create(tmp_path, changes)
    assert ended.code == 2
    first, *problems = ended.err.splitlines()
    assert first == "error: 3 problems in the run spec"
    assert [problem.split()[0] for problem in problems] == [
        "objective.temperature",
        "objective.alpah",
        "batch.sequences_per_step",
    ]
    assert service.plane.list_runs() == []


def test_without_any_of_these_mistakes_the_run_is_accepted(
    service: Service, tmp_path: Path
) -> None:
    ended = service.create(tmp_path, {})
    assert ended.code == 0, ended
    run_id = ended.out.strip()
    assert [run.id for run in service.plane.list_runs()] == [run_id]
    service.plane.stop_run(run_id)
    [run] = service.plane.wait([run_id], timeout_seconds=60)
    assert run.state is RunState.STOPPED
