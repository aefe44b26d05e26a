"""TRL's own trainer, unmodified, learns from our teacher; its loss is that of a local forward.

Its client class wants the package vllm to be there, though it only sends HTTP: an empty stand-in of
it is put on the path.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from teacher_server.http import app, vllm
from tests.support.models import write_tiny_model
from tests.support.servers import ROOT, TeacherThread, http_teacher

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None,
        reason="needs the package trl: pip install 'lectern[bench]'",
    ),
]

TOKEN = "0123456789abcdef" * 2
STEPS = 20
STAND_IN = {
    "__init__": '__version__ = "0.27.0"\n\nclass LLM: ...\n\nclass RequestOutput: ...\n\n'
    "class SamplingParams: ...\n",
    "sampling_params": "class StructuredOutputsParams: ...\n",
    "utils/__init__": "",
    "utils/network_utils": "def get_ip(): ...\n",
    "distributed/__init__": "",
    "distributed/weight_transfer/__init__": "",
    "distributed/weight_transfer/nccl_engine": "class NCCLTrainerSendWeightsArgs: ...\n\n"
    "class NCCLWeightTransferEngine: ...\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trl")
    for name, seed in (("teacher", 1), ("student", 2)):
        write_tiny_model(folder / name, vocab_size=300, seed=seed, spread=0.3, tokenizer=True)
    for name, text in STAND_IN.items():
        path = folder / "path" / "vllm" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Iterator[TeacherThread]:
    engine = transformers_engine.load(str(folder / "teacher"), EngineSettings(device="cpu"))
    with http_teacher(engine, token=TOKEN) as teacher:
        yield teacher


def trained(folder: Path, url: str, *runs: dict[str, Any]) -> list[list[tuple[float, float]]]:
    """(TRL's loss, the one of a local forward) of each step of each run."""
    asked = [{"top_k": 8, "beta": 0.0, "steps": STEPS, **run, "url": url} for run in runs]
    script = Path(__file__).with_name("trl_student.py")
    path = os.pathsep.join([str(folder / "path"), str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [
            *(sys.executable, str(script)),
            *(str(folder / "student"), str(folder / "teacher"), json.dumps(asked)),
        ],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("[[")]
    assert len(lines) == len(runs)
    return [[tuple(step) for step in json.loads(line)] for line in lines]


def off(steps: list[tuple[float, float]]) -> float:
    """The largest relative error of a step."""
    return max(abs(loss / expected - 1) for loss, expected in steps)


def test_its_loss_is_that_of_a_local_forward(folder: Path, teacher: TeacherThread) -> None:
    url = teacher.url.replace("://", f"://trl-run:{TOKEN}@")
    found = trained(
        folder,
        url,
        {"temperature": 1.0},
        {"temperature": 2.0},
        {"temperature": 2.0, "beta": 1.0, "top_k": 1, "steps": 3},
    )
    assert [len(steps) for steps in found] == [STEPS, STEPS, 3]
    assert all(off(steps) < 1e-4 for steps in found)
    # Of two outcomes, the token and the rest, little is left to learn: only the others are large.
    assert all(expected > 0.1 for steps in found[:2] for _, expected in steps)
    # It learns: the last five steps have less loss than the first.
    losses = [loss for loss, _ in found[0]]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_log_probabilities_at_1_would_be_noticed_at_2(
    folder: Path, teacher: TeacherThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM and SGLang answer, unless told otherwise at their start."""
    route, *others = app.ROUTES

    def at_1(*arguments: Any) -> Any:
        return dataclasses.replace(vllm.completion(*arguments), temperature=1.0)

    wrong = dataclasses.replace(route, asked=at_1)
    monkeypatch.setattr(app, "ROUTES", (wrong, *others))
    engine = transformers_engine.load(str(folder / "teacher"), EngineSettings(device="cpu"))
    with http_teacher(engine) as sabotaged:
        (steps,) = trained(folder, sabotaged.url, {"temperature": 2.0, "steps": 2})
    assert off(steps) > 0.01
