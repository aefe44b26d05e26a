"""Early stopping on the validation loss: how patience counts, and how whole runs end."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from student_trainer.evaluation.best import Best
from student_trainer.journal.checkpoint import CheckpointStore
from tests.support.training.runs import Home, curve, events_of, lines_of, status_of, trained


def after(*losses: float) -> Best:
    best = Best()
    for index, loss in enumerate(losses):
        best = best.after(100 * index, loss)
    return best


def test_the_best_is_the_lowest_loss_and_the_first_on_a_tie() -> None:
    assert after(3.0, 2.0, 2.5, 2.0) == Best(2.0, 100, 2)
    assert after(3.0, 2.0, 2.5, 1.5) == Best(1.5, 300, 0)


def test_patience_counts_evaluations_in_a_row_without_a_lower_loss() -> None:
    assert not after(3.0, 3.1).is_over(2)
    assert after(3.0, 3.1, 3.0).is_over(2)
    assert not after(3.0, 3.1, 2.9, 3.0).is_over(2)
    assert after(3.0, 3.1, 2.9, 3.0, 4.0).is_over(2)


def test_without_patience_a_run_is_never_over() -> None:
    assert not after(1.0, *[2.0] * 50).is_over(None)
    assert not Best().is_over(1)


def test_a_loss_that_is_not_finite_is_never_the_best() -> None:
    assert after(math.nan, 3.0) == Best(3.0, 100, 0)
    assert after(3.0, math.nan, -math.inf) == Best(3.0, 0, 2)
    assert after(math.nan, math.inf).step is None


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (after(3.0, 2.0, 2.5, 2.25), ["in 2 evaluations in a row", "2.0000, was at step 100"]),
        (after(3.0, 3.5), ["in one evaluation", "below the 3.0000", "nothing improved"]),
        (after(math.nan, math.nan), ["no validation loss was finite in 2 evaluations"]),
    ],
)
def test_the_sentence_names_the_best_and_the_wait(best: Best, words: list[str]) -> None:
    for word in words:
        assert word in best.sentence()


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


def drifting(steps: int = 30, **evaluation: Any) -> dict[str, Any]:
    """A learning rate that rises until it is too high: the loss falls, then climbs."""
    return {
        "schedule": {"steps": steps, "warmup_steps": steps, "decay": "constant"},
        "optimizer": {"learning_rate": 1.0},
        "evaluation": {"every_steps": 2, **evaluation},
        "checkpoint": {"every_steps": 100, "keep_last": 1, "keep_best": 1},
    }


def exported(folder: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the exported tensors by name, and the metadata."""
    metadata = json.loads((folder.export_path / "distillation_metadata.json").read_text())
    return load_file(folder.export_path / "model.safetensors"), metadata


def require_exported(folder: RunFolder, step: int) -> None:
    """Asserts that the export is bit-equal to the checkpoint of `step`."""
    tensors, metadata = exported(folder)
    saved = load_file(folder.checkpoints_path / f"step-{step:08d}" / "model.safetensors")
    assert {f"model.{name}" for name in tensors} <= saved.keys()
    assert all(tensor.equal(saved[f"model.{name}"]) for name, tensor in tensors.items())
    assert metadata["step"] == step
    losses = {line["step"]: line["loss/val"] for line in lines_of(folder) if "loss/val" in line}
    assert metadata["validation_loss"] == losses[step]


def lowest(folder: RunFolder) -> int:
    losses = [(line["loss/val"], line["step"]) for line in lines_of(folder) if "loss/val" in line]
    return int(min(losses)[1])


def test_a_run_whose_loss_no_longer_falls_succeeds_early_with_its_best_weights(home: Home) -> None:
    folder = home.run(**drifting(patience=2))
    assert trained(home, folder) == 0
    status, best = status_of(folder), lowest(folder)
    assert (status.state, status.reason) == (RunState.SUCCEEDED, "early_stopped")
    assert status.step == best + 4 < 30
    assert f"at step {best}, and its weights are exported" in str(status.message)
    require_exported(folder, best)
    assert exported(folder)[1]["steps_made"] == best + 4
    [event] = events_of(folder, "exported")
    assert event["step"] == best


def test_with_patience_the_best_is_exported_even_after_all_steps(home: Home) -> None:
    whole = home.run(**drifting(steps=12, patience=50))
    assert trained(home, whole) == 0
    status = status_of(whole)
    assert (status.state, status.reason, status.step) == (RunState.SUCCEEDED, None, 12)
    assert lowest(whole) < 12
    require_exported(whole, lowest(whole))
    without = home.run(**drifting(steps=12))
    assert trained(home, without) == 0
    require_exported(without, 12)
    assert curve(without, "loss/val") == curve(whole, "loss/val")


def test_a_resumed_early_stop_ends_the_same(home: Home) -> None:
    folder = home.run(**drifting(patience=1))
    assert trained(home, folder) == 0
    before, status = exported(folder), status_of(folder)
    assert trained(home, folder, resume=True) == 0
    after, again = exported(folder), status_of(folder)
    assert after[1] == before[1]
    assert all(after[0][name].equal(tensor) for name, tensor in before[0].items())
    assert (again.reason, again.message, again.step) == (status.reason, status.message, status.step)


def test_patience_added_at_a_resume_uses_the_saved_checkpoints(home: Home) -> None:
    """The best evaluation so far may have no checkpoint, so that its weights are lost."""
    folder = home.run(**{**drifting(steps=12), "checkpoint": {"every_steps": 6, "keep_last": 9}})
    assert trained(home, folder) == 0
    losses = {line["step"]: line["loss/val"] for line in lines_of(folder) if "loss/val" in line}
    assert lowest(folder) not in (6, 12)
    saved = min((6, 12), key=lambda step: losses[step])
    changed = home.spec(folder.run_id, **drifting(steps=14, patience=9))
    kept = home.spec(folder.run_id, **drifting(steps=12)).model_dump()
    wanted = changed.model_dump()
    wanted["schedule"] = {**kept["schedule"], "steps": 14}
    folder.write_spec(type(changed).model_validate(wanted))
    assert trained(home, folder, resume=True) == 0, status_of(folder).message
    losses |= {line["step"]: line["loss/val"] for line in lines_of(folder) if "loss/val" in line}
    assert losses[14] > losses[saved]
    require_exported(folder, saved)


def test_a_lost_best_checkpoint_fails_and_says_so(home: Home, tmp_path: Path) -> None:
    folder = home.run(**drifting(steps=12, patience=50))
    assert trained(home, folder) == 0
    best = folder.checkpoints_path / f"step-{lowest(folder):08d}" / "model.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    assert trained(home, folder, resume=True) == 1
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.FAILED, "corrupt_data")
    assert best.parent.name in str(status.message)


def test_other_validation_rows_are_refused_while_patience_compares_them(home: Home) -> None:
    folder = home.run(**drifting(steps=4, patience=5))
    assert trained(home, folder) == 0
    folder.write_spec(home.spec(folder.run_id, **drifting(steps=4, patience=5, max_sequences=7)))
    assert trained(home, folder, resume=True) == 1
    assert "evaluation.max_sequences: was 200, is 7" in str(status_of(folder).message)


def test_the_store_returns_its_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=9, keep_best=0)
    assert store.best() is None
    for step, loss in ((1, None), (2, 3.0), (3, 2.0), (4, 2.0)):
        store.save(step, {}, {}, {"val_loss": loss})
    assert store.best() == (2.0, 3)
    assert store.at(3).step == 3
