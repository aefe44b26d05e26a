"""Whole on-policy runs on tiny models: what is learnt, what is resumed, what is written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.servers import teacher_thread
from tests.support.training.runs import (
    VOCAB_SIZE,
    Home,
    events_of,
    lines_of,
    status_of,
    trained,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("teacher", hidden=32, layers=2, seed=7, spread=0.3)
    home.model("init", seed=3, eos_token_id=5)
    return home


@pytest.fixture(scope="module")
def teacher(home: Home) -> Iterator[str]:
    engine = transformers_engine.load(
        str(home.path / "models" / "teacher"), EngineSettings(dtype="float32", device="cpu")
    )
    with teacher_thread(engine) as address:
        yield address


def on_policy(home: Home, teacher: str, **sections: Any) -> RunFolder:
    rollout = {"fraction": 1, "prompt_tokens": 4, "max_new_tokens": 6}
    rollout |= sections.pop("rollout", {})
    run: dict[str, Any] = {
        "student": {"init": "init", "config": None},
        "teacher": {"address": teacher},
        "objective": {"alpha": 0, "temperature": 1.0, "divergence": "reverse_kl"},
        **sections,
    }
    return home.run(**run, rollout=rollout)


def test_a_run(home: Home, teacher: str) -> None:
    folder = on_policy(home, teacher)
    assert trained(home, folder) == 0, status_of(folder).message
    for line in lines_of(folder):
        print(line, file=open("/tmp/rollout_lines.txt", "a"))
    for line in read_json_lines(folder.rollouts_path):
        print(line, file=open("/tmp/rollout_lines.txt", "a"))
    for stale in (0, 1):
        folder = on_policy(
            home,
            teacher,
            rollout={"fraction": 0.5, "stale_steps": stale, "samples_per_prompt": 2},
            objective={"alpha": 0.2},
        )
        assert trained(home, folder) == 0, status_of(folder).message
        for line in lines_of(folder):
            print(line, file=open("/tmp/rollout_lines.txt", "a"))
