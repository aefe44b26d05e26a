"""S7: teachers, students and data with different token ids, and padded heads."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from faults.models import write_model
from faults.processes import Server
from faults.row import Tally
from faults.stage import Stage
from faults.trainer.runs.datasets import NUM_TOKENS, give, prepared, swapped
from faults.trainer.runs.run import Home, Trainer
from lectern_common.json_lines import read_json_lines
from lectern_common.run.status import RunState

# Wider than the number of tokens, like heads padded to a round number.
_TEACHER_WIDTH, _STUDENT_WIDTH = 320, 312
_FIRST, _SECOND = 270, 290
_STEPS = 8


@dataclass(frozen=True)
class _Refusal:
    """A run that must be refused.

    Attributes:
        what: description for people.
        student, data: folders under the models and data roots; data "" means random tokens.
        reason: the reason in the status.
        says: words that its message must contain.
    """

    what: str
    student: str
    data: str
    teacher: str | None
    reason: str
    says: tuple[str, ...]


_REFUSALS = (
    _Refusal(
        "a student with two ids exchanged",
        "swapped",
        "",
        "padded",
        "tokenizer_mismatch",
        (f"id {_FIRST}: teacher", f"id {_SECOND}: teacher"),
    ),
    _Refusal(
        "data with two ids exchanged",
        "right",
        "swapped",
        None,
        "tokenizer_mismatch",
        (f"id {_FIRST}: data", f"id {_SECOND}: data"),
    ),
    _Refusal(
        "a student without a tokenizer, on data of another tokenizer than its teacher's",
        "plain",
        "swapped",
        "padded",
        "tokenizer_mismatch",
        (f"id {_FIRST}: teacher", f"id {_SECOND}: teacher"),
    ),
    _Refusal(
        "a student with fewer ids than tokens",
        "narrow",
        "",
        "padded",
        "incompatible",
        (str(NUM_TOKENS - 1), str(NUM_TOKENS)),
    ),
    _Refusal(
        "a student wider than its teacher",
        "wide",
        "",
        "padded",
        "incompatible",
        (str(_TEACHER_WIDTH + 1), str(_TEACHER_WIDTH)),
    ),
)
_PADDED = ("hidden", "top_k", "dense")


def vocabularies(stage: Stage) -> Tally:
    """S7: tokenizers with two ids exchanged, widths that do not fit, and padded heads."""
    tally = Tally()
    home = Home(stage)
    teachers = _written(home, stage.folder)
    with ExitStack() as stack:
        addresses = {}
        for name, folder in teachers.items():
            words = ("--model", str(folder), "--threads", "1")
            faults = ("unmeasured",)
            server = Server(
                stage.new_folder(), words, faults, stage.sabotage, fork_server=stage.fork_server
            )
            stack.callback(server.kill)
            addresses[name] = server.ready().address
        for refusal in _REFUSALS:
            stage.say(refusal.what)
            problem = _not_refused(stage, home, addresses, refusal)
            tally.count(not problem, f"{refusal.what}: {problem}")
        for representation in _PADDED:
            stage.say(f"padded heads, {representation}")
            losses = [_losses(stage, home, addresses[name], representation) for name in teachers]
            tally.count(
                not isinstance(losses[0], str) and losses[0] == losses[1],
                f"padded heads, {representation}: {losses[0]} and {losses[1]}",
            )
    tally.figure = (
        "each is refused before a step, naming the first ids that differ; a padded teacher gives "
        f"losses bit-equal to one cut to the student's {_STUDENT_WIDTH} rows"
    )
    return tally


def _written(home: Home, scratch: Path) -> dict[str, Path]:
    """Writes datasets, students and two teachers, one of them cut; returns the teachers."""
    right = prepared(home.path, "text") / "tokenizer.json"
    other = swapped(right, scratch / "swapped", _FIRST, _SECOND)
    prepared(home.path, "swapped", other)
    widths = {"narrow": NUM_TOKENS - 1, "wide": _TEACHER_WIDTH + 1}
    for name in ("right", "swapped", "plain", "narrow", "wide"):
        model = write_model(
            home.roots.models / name,
            vocab_size=widths.get(name, _STUDENT_WIDTH),
            layers=1,
            seed=5,
        )
        if name in ("right", "swapped"):
            give(other if name == "swapped" else right, model)
    padded = write_model(scratch / "padded", vocab_size=_TEACHER_WIDTH, hidden=64, seed=1)
    give(right, padded)
    return {"padded": padded, "cut": _cut(padded, scratch / "cut")}


def _cut(teacher: Path, folder: Path) -> Path:
    """Writes the teacher without rows beyond the student's width; returns its folder."""
    folder.mkdir()
    config = json.loads((teacher / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": _STUDENT_WIDTH}))
    tensors = safetensors.numpy.load_file(teacher / "model.safetensors")
    kept = {
        name: tensor[:_STUDENT_WIDTH].copy() if len(tensor) == _TEACHER_WIDTH else tensor
        for name, tensor in tensors.items()
    }
    safetensors.numpy.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    give(teacher / "tokenizer.json", folder)
    return folder


def _sections(student: str, data: str, teacher: dict[str, Any] | None) -> dict[str, Any]:
    shards = {"kind": "shards", "path": data}
    return {
        "student": {"config": None, "init": student},
        "schedule": {"steps": _STEPS, "warmup_steps": 0},
        **({"data": shards} if data else {}),
        **({"teacher": teacher, "objective": {"alpha": 0.25}} if teacher else {}),
    }


def _not_refused(stage: Stage, home: Home, addresses: dict[str, str], refusal: _Refusal) -> str:
    """Returns "" if a run is refused before any step, for the expected reason."""
    teacher = {"address": addresses[refusal.teacher]} if refusal.teacher else None
    folder = home.folder_of(**_sections(refusal.student, refusal.data, teacher))
    trainer = Trainer(stage, home, folder, forked=True)
    try:
        exit_status = trainer.wait(60)
    finally:
        trainer.kill()
    status = trainer.status
    if exit_status != 1 or status is None or trainer.steps():
        return f"it exited with status {exit_status} after {trainer.steps()} steps: {status}"
    if (status.state, status.reason) != (RunState.FAILED, refusal.reason):
        return f"its state is {status.state}, {status.reason}: {status.message}"
    missing = [words for words in refusal.says if words not in str(status.message)]
    return f"it does not say {missing[0]!r}: {status.message}" if missing else ""


def _losses(
    stage: Stage, home: Home, address: str, representation: str
) -> list[tuple[int, float, float]] | str:
    """Returns (step, loss/kd, loss/total) of a run, or why there are none."""
    teacher = {"address": address, "representation": representation}
    folder = home.folder_of(**_sections("right", "text", teacher))
    trainer = Trainer(stage, home, folder, forked=True)
    try:
        problem = trainer.end()
    finally:
        trainer.kill()
    if problem:
        return problem
    lines = read_json_lines(folder.metrics_path)
    return [
        (line["step"], line["loss/kd"], line["loss/total"]) for line in lines if "loss/kd" in line
    ]
