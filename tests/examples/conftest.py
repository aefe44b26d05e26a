"""What examples/README.md has its reader prepare, made tiny: data, teacher, a server for it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.spec.load import parse_spec
from lectern_data.prepare import prepare
from lectern_data.settings import PrepareSettings
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.servers import ROOT, teacher_thread
from tests.support.training.runs import Home, status_of, trained

EXAMPLES = ROOT / "examples"
STEPS = 8
TEACHER_STEPS = 30
# What the tests make smaller; all else of an example is as it stands.
_TINY_CONFIG = {"vocab_size": 320, "intermediate_size": 32, "max_position_embeddings": 64}
_TINY_SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"seq_len": 16},
    "schedule": {"warmup_steps": 2},
    "batch": {"sequences_per_step": 4},
    "evaluation": {"every_steps": STEPS, "max_sequences": 16},
    "device": {"kind": "cpu", "threads": 1},
}


class TinyHome(Home):
    """A home as examples/README.md makes one; `teacher_address` is where its teacher answers."""

    teacher_address = ""

    def __post_init__(self) -> None:
        _prepare_text(self.path / "data" / "stdlib")
        for config in EXAMPLES.glob("models/*/config.json"):
            fields = json.loads(config.read_text())
            fields |= _TINY_CONFIG | {"hidden_size": fields["hidden_size"] // 4}
            folder = self.path / "models" / config.parent.name
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(json.dumps(fields))

    def example(self, name: str, steps: int = STEPS) -> dict[str, Any]:
        """Returns examples/NAME.yaml with fewer and shorter rows and `steps` steps."""
        return self.shrunk(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()), steps)

    def shrunk(self, fields: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
        """Returns the spec with fewer and shorter rows and `steps` steps; changes its argument."""
        for section, values in _TINY_SECTIONS.items():
            fields[section] = fields.get(section, {}) | values
        fields["schedule"]["steps"] = steps
        if "teacher" in fields:
            fields["teacher"]["address"] = self.teacher_address
        if "top_k" in fields.get("teacher", {}):
            fields["teacher"]["top_k"] = 16
        return fields

    def learned(self, name: str, steps: int = STEPS) -> RunFolder:
        """Trains the example in this process; returns the folder of the run, which succeeded."""
        spec = parse_spec(self.example(name, steps))
        folder = RunFolder.create(self.roots.runs, spec.name, spec)
        assert trained(self, folder) == 0, folder.log_path.read_text()
        assert status_of(folder).state is RunState.SUCCEEDED
        return folder

    def publish(self, folder: RunFolder) -> None:
        """Copies a run's export to models/, as the page has its reader do."""
        shutil.copytree(folder.export_path, self.path / "models" / folder.run_id)


def _prepare_text(output: Path) -> None:
    source = ROOT / "lectern_common" / "wire"
    prepare(
        PrepareSettings(
            [source],
            output,
            train_vocab_size=_TINY_CONFIG["vocab_size"],
            eos_token="<|endoftext|>",
            validation_fraction=0.3,
            include=["*.py"],
            workers=1,
        )
    )


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyHome]:
    """Data, shapes, a teacher that was trained by examples/teacher.yaml, and a server for it."""
    home = TinyHome(tmp_path_factory.mktemp("home"))
    taught = home.learned("teacher", TEACHER_STEPS)
    home.publish(taught)
    settings = EngineSettings(dtype="float32", device="cpu")
    engine = transformers_engine.load(str(home.path / "models" / "teacher"), settings)
    with teacher_thread(engine) as address:
        home.teacher_address = address
        yield home


@pytest.fixture(scope="session")
def labels_only(home: TinyHome) -> RunFolder:
    """The run of examples/labels-only.yaml; its student is in models/, as lora.yaml needs it."""
    folder = home.learned("labels-only")
    home.publish(folder)
    return folder
