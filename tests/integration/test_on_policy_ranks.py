"""On-policy runs on two ranks over gloo: each writes its own rows, of unequal lengths."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.spec.load import dump_spec, parse_spec
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.student_trainer.test_main import process
from tests.support.servers import teacher_thread, wait_for
from tests.support.training.runs import Home, compared, events_of, lines_of, status_of, trained

pytestmark = pytest.mark.long
TWO = {"kind": "cpu", "threads": 1, "count": 2}
STEPS = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("teacher", hidden=32, layers=2, seed=7, spread=0.3)
    home.model("init", seed=3, layers=2, eos_token_id=5)
    return home


@pytest.fixture(scope="module")
def teacher(home: Home) -> Iterator[str]:
    engine = transformers_engine.load(
        str(home.path / "models" / "teacher"), EngineSettings(dtype="float32", device="cpu")
    )
    with teacher_thread(engine) as address:
        yield address


def run_of(home: Home, address: str, **rollout: Any) -> RunFolder:
    return home.run(
        student={"init": "init", "config": None},
        teacher={"address": address},
        objective={"alpha": 0.3, "temperature": 1.0},
        rollout={"fraction": 0.5, "prompt_tokens": 4, "max_new_tokens": 12, **rollout},
        schedule={"steps": STEPS, "warmup_steps": 1, "decay": "constant"},
        batch={"sequences_per_step": 8, "micro_batch_sequences": 2},
        device=TWO,
    )


def ran(home: Home, folder: RunFolder, *options: str) -> None:
    with process(home, folder, *options) as trainer:
        assert trainer.wait(500) == 0, folder.log_path.read_text()[-3000:]


def weights(folder: RunFolder) -> bytes:
    return Path(folder.export_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("stale_steps", [0, 1])
def test_ranks_write_their_own_rows_and_resume_exactly(
    home: Home, teacher: str, stale_steps: int
) -> None:
    whole = run_of(home, teacher, stale_steps=stale_steps)
    ran(home, whole)
    lines = lines_of(whole)[1:]
    assert {line["rollout/rows"] for line in lines} - {4.0}  # uneven
    first = read_json_lines(whole.rollouts_path)
    assert {line["row"] for line in first} <= set(range(4))  # of the first rank

    folder = run_of(home, teacher, stale_steps=stale_steps)
    with process(home, folder) as trainer:
        wait_for(lambda: len(lines_of(folder)) > 3, 400)
        os.kill(trainer.pid, signal.SIGTERM)
        assert trainer.wait(400) == 0, folder.log_path.read_text()[-3000:]
    assert status_of(folder).state in (RunState.STOPPED, RunState.SUCCEEDED)
    ran(home, folder, "--resume")
    assert compared(folder) == compared(whole)
    assert weights(folder) == weights(whole)


def test_one_process_goes_on_with_the_rollouts_that_two_wrote(home: Home, teacher: str) -> None:
    folder = run_of(home, teacher, stale_steps=1, fraction=0.7)
    spec = folder.read_spec().model_dump(mode="json")
    spec["schedule"]["steps"] = 3
    folder.spec_path.write_text(dump_spec(parse_spec(spec)))
    ran(home, folder)
    spec["schedule"]["steps"] = 5
    spec["device"] = {"kind": "cpu", "threads": 1}
    folder.spec_path.write_text(dump_spec(parse_spec(spec)))
    assert trained(home, folder, resume=True) == 0, status_of(folder).message
    assert [event["ranks"] for event in events_of(folder, "assembled")] == [2, 1]
    assert [line["step"] for line in lines_of(folder)] == list(range(6))
