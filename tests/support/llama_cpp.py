"""llama.cpp itself, as the npm package node-llama-cpp brings it: `make llama-cpp` installs it."""

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lectern_common.stages.export import GgufType
from lectern_common.tokens.weights import safetensors_files
from student_trainer.exporting.gguf_export import config_of, stored_tensors
from student_trainer.exporting.tensors import ModelTensors, decoded, planned_tensors

ROOT = Path(__file__).parents[2]
INSTALLED = Path(os.environ.get("LECTERN_LLAMA_CPP") or ROOT / ".llama-cpp")
# llama.cpp rounds activations to 16 bits, with q8_0 to 8: closer logits may change places.
MARGINS = {"f16": 0.05, "q8_0": 0.5}


@dataclass(frozen=True)
class Continuation:
    """The ids that llama.cpp gave a text, and those that it made greedily after them."""

    ids: list[int]
    made: list[int]


def require_llama_cpp() -> None:
    """Skips the test, saying what it needs, where node or the package is missing."""
    if shutil.which("node") is None or not (INSTALLED / "node_modules/node-llama-cpp").is_dir():
        pytest.skip("needs llama.cpp: install Node.js 20 and run `make llama-cpp`")


@dataclass(frozen=True)
class Job:
    """What to do with a GGUF file.

    Attributes:
        path: the file.
        prompts: texts to continue.
        tokens: how many tokens to make after each; with 0 only the vocabulary is loaded.
        begins: an id to put before each text.
        special: texts that look like control tokens are such.
    """

    path: Path
    prompts: list[str]
    tokens: int = 0
    begins: int | None = None
    special: bool = False


@dataclass(frozen=True)
class Answer:
    """What llama.cpp made of a file's texts, and the file's chat template."""

    continuations: list[Continuation]
    chat_template: str | None

    @property
    def ids(self) -> list[list[int]]:
        return [one.ids for one in self.continuations]


def asked(*jobs: Job) -> list[Answer]:
    """Returns what one process of llama.cpp makes of each job."""
    require_llama_cpp()
    listed = [{**asdict(job), "model": str(job.path), "path": None} for job in jobs]
    done = subprocess.run(
        ["node", str(Path(__file__).with_suffix(".mjs"))],
        input=json.dumps({"installed": str(INSTALLED.resolve()), "jobs": listed}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [
        Answer([Continuation(**one) for one in said["answers"]], said["chat_template"])
        for said in json.loads(done.stdout)
    ]


def model_of_file(folder: Path, path: Path, gguf_type: GgufType) -> PreTrainedModel:
    """Returns transformers' model of a folder, with the numbers of a GGUF file made from it."""
    config = config_of(folder)
    plan = planned_tensors(ModelTensors(safetensors_files(folder)).shapes, config, gguf_type)
    stored = stored_tensors(path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        state = model.state_dict()
        for one in plan:
            state[one.source].copy_(torch.tensor(decoded(stored[one.name], one, config)))
    return cast(PreTrainedModel, model.eval())


def compared(
    model: PreTrainedModel, continuation: Continuation, margin: float, begins: int | None = None
) -> int:
    """Returns how many of the made tokens were compared: those that are clearly the best.

    Asserts that transformers makes each of these as well.
    """
    start = [*([] if begins is None else [begins]), *continuation.ids]
    with torch.no_grad():
        logits = model(torch.tensor([start + continuation.made])).logits[0, len(start) - 1 : -1]
    best = logits.topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > margin
    made = torch.tensor(continuation.made)
    assert torch.equal(best.indices[clear, 0], made[clear])
    return int(clear.sum())
