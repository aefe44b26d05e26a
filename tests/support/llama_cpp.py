"""llama.cpp itself, as the npm package node-llama-cpp brings it: `make llama-cpp` installs it."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

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


def continued(
    path: Path,
    prompts: list[str],
    tokens: int = 0,
    *,
    begins: int | None = None,
    special: bool = False,
) -> tuple[list[Continuation], str | None]:
    """Returns what llama.cpp makes of each text, and the file's chat template.

    Args:
        path: a GGUF file.
        prompts: texts.
        tokens: how many to make after each.
        begins: an id to put before the text.
        special: texts that look like control tokens are such.
    """
    require_llama_cpp()
    asked = {
        "installed": str(INSTALLED.resolve()),
        "model": str(path),
        "prompts": prompts,
        "tokens": tokens,
        "begins": begins,
        "special": special,
    }
    script = Path(__file__).with_suffix(".mjs")
    done = subprocess.run(
        ["node", str(script)], input=json.dumps(asked), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    return [Continuation(**answer) for answer in said["answers"]], said["chat_template"]


def model_of_file(folder: Path, path: Path, gguf_type: str) -> PreTrainedModel:
    """Returns transformers' model of a folder, with the numbers of a GGUF file made from it."""
    config = config_of(folder)
    plan = planned_tensors(ModelTensors(safetensors_files(folder)).shapes, config, gguf_type)
    stored = stored_tensors(path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        state = model.state_dict()
        for one in plan:
            state[one.source].copy_(torch.tensor(decoded(stored[one.name], one, config)))
    return model.eval()


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
