"""Whole runs of one family whose heads and tokenizers differ in ids that the data does not use."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_models.loading import load_causal_lm
from student_trainer.objective.reference import kd_loss
from student_trainer.run.dry_run import look
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.models import write_tiny_model, write_tiny_tokenizer
from tests.support.servers import teacher_thread
from tests.support.training.runs import Home, assembled, curve, events_of, status_of, trained
from tests.support.training.shards import write_shards

TEACHER_WIDTH, STUDENT_WIDTH = 306, 312
NUM_TOKENS = 300


def named(folder: Path, token: str) -> Path:
    """Writes a tokenizer of 300 tokens and one more into a model's folder; returns the folder."""
    path = write_tiny_tokenizer(folder, NUM_TOKENS)
    tokenizer = Tokenizer.from_file(str(path))
    assert tokenizer.get_vocab_size() == NUM_TOKENS
    tokenizer.add_special_tokens([token])
    tokenizer.save(str(path))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.tokenized("free", NUM_TOKENS)
    student = home.path / "models" / "student"
    named(write_tiny_model(student, vocab_size=STUDENT_WIDTH, layers=1), "<mine>")
    return home


@pytest.fixture(scope="module")
def teacher(home: Home) -> Iterator[tuple[str, Path]]:
    folder = home.path / "teacher"
    named(write_tiny_model(folder, vocab_size=TEACHER_WIDTH, seed=7), "<think>")
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    with teacher_thread(engine) as address:
        yield address, folder


def sections(address: str, representation: str, **more: Any) -> dict[str, Any]:
    return {
        "student": {"init": "student", "config": None},
        "data": {"path": "free"},
        "teacher": {"address": address, "representation": representation},
        "objective": {"alpha": 0.0, "temperature": 2.0},
        **more,
    }


def first_loss(home: Home, folder: RunFolder, teacher: Path) -> float:
    """Returns D of the first step, from the models' own logits, in float64, a row at a time."""
    with assembled(home, folder) as run:
        batch = run.parts.batches.batch_at(0)
    ids = torch.from_numpy(batch.inputs_BS.astype(np.int64))
    with torch.no_grad():
        ours = load_causal_lm(home.path / "models" / "student", "float32")(ids).logits
        theirs = load_causal_lm(teacher, "float32")(ids).logits
    padded = torch.full_like(ours, -math.inf)
    padded[..., :TEACHER_WIDTH] = theirs
    padded[..., NUM_TOKENS] = -math.inf  # <mine> to one, <think> to the other
    rows = zip(ours.flatten(0, 1).numpy(), padded.flatten(0, 1).numpy(), strict=True)
    return float(np.mean([kd_loss(s, t, 0, 2.0, 0.0) for s, t in rows]))


@pytest.mark.parametrize("representation", ["hidden", "dense", "top_k"])
def test_a_run_learns_from_what_both_have(
    home: Home, teacher: tuple[str, Path], representation: str
) -> None:
    address, folder = teacher
    run = home.run(**sections(address, representation))
    assert trained(home, run) == 0, status_of(run).message
    [event] = events_of(run, "assembled")
    assert "6 ids beyond the teacher's 306 and 1 id at which the tokenizers" in event["vocabulary"]
    assert len(curve(run, "val/kl")) >= 2
    if representation != "top_k":
        again = home.run(**sections(address, representation))
        expected = first_loss(home, again, folder)
        # At T = 2 the formula has T^2, and loss/kd has not.
        assert 4 * curve(run, "loss/kd")[0] == pytest.approx(expected, rel=1e-5)


def test_reverse_kl_is_refused_and_jsd_is_not(home: Home, teacher: tuple[str, Path]) -> None:
    address, _ = teacher
    objective = {"alpha": 0.0, "temperature": 1.0, "divergence": "reverse_kl"}
    run = home.run(**sections(address, "hidden", objective=objective))
    assert trained(home, run) == 1
    assert "reverse_kl is infinite with 6 ids beyond" in str(status_of(run).message)
    objective = {"alpha": 0.0, "temperature": 1.0, "divergence": "jsd", "beta": 0.1}
    run = home.run(**sections(address, "hidden", objective=objective))
    assert trained(home, run) == 0, status_of(run).message


def test_data_that_uses_such_an_id_is_refused(home: Home, teacher: tuple[str, Path]) -> None:
    address, _ = teacher
    tokens = np.arange(4000) % NUM_TOKENS
    tokens[3000] = NUM_TOKENS
    free = home.path / "data" / "free"
    used = write_shards(home.path / "data" / "used", tokens, vocab_size=NUM_TOKENS + 1)
    manifest = (free / "manifest.json").read_text()
    own = (used / "manifest.json").read_text()
    sha256 = manifest.split('"tokenizer_sha256": "')[1][:64]
    (used / "manifest.json").write_text(own.replace("0" * 64, sha256, 1))
    (used / "tokenizer.json").write_bytes((free / "tokenizer.json").read_bytes())
    run = home.run(**sections(address, "hidden", data={"path": "used"}))
    assert trained(home, run) == 1
    status = status_of(run)
    assert (status.state, status.reason) == (RunState.FAILED, "tokenizer_mismatch")
    assert 'id 300: data null, student "<mine>"; the data uses 300' in str(status.message)


def test_the_dry_run_probes_only_the_ids_that_the_teacher_has(
    home: Home, teacher: tuple[str, Path]
) -> None:
    address, _ = teacher
    roots: Roots = home.roots
    spec = home.spec("dry", **sections(address, "dense"))
    checks = {check["subject"]: check for check in look(spec, roots, asks_teacher=True)["checks"]}
    assert checks["answers"]["outcome"] == "pass"
