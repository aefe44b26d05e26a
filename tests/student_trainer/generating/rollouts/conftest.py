"""A home with a student, a teacher server and their data, for on-policy runs."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lectern_common.run.folder import RunFolder
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.servers import teacher_thread
from tests.support.training.runs import Home

OnPolicy = Callable[..., RunFolder]


@pytest.fixture(scope="package")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("teacher", hidden=32, layers=2, seed=7, spread=0.3)
    home.model("init", seed=3, eos_token_id=5)
    return home


@pytest.fixture(scope="package")
def teacher(home: Home) -> Iterator[str]:
    engine = transformers_engine.load(
        str(home.path / "models" / "teacher"), EngineSettings(dtype="float32", device="cpu")
    )
    with teacher_thread(engine) as address:
        yield address


@pytest.fixture
def on_policy(home: Home, teacher: str) -> OnPolicy:
    """Makes the folder of a run whose student writes every row; `sections` change its spec."""

    def make(name: str | None = None, **sections: Any) -> RunFolder:
        rollout = {"fraction": 1, "prompt_tokens": 4, "max_new_tokens": 6}
        run: dict[str, Any] = {
            "student": {"init": "init", "config": None},
            "teacher": {"address": teacher},
            "objective": {"alpha": 0, "temperature": 1.0, "divergence": "reverse_kl"},
        }
        for section, values in sections.items():
            run[section] = {**run.get(section, {}), **values} if section != "rollout" else values
        return home.run(name, **{**run, "rollout": {**rollout, **sections.get("rollout", {})}})

    return make
