"""Runs of several sources, each with its own teacher, a record or none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.checks.preflight import startable
from lectern_common.errors import (
    Incompatible,
    InvalidSpec,
    LecternError,
    SameWeights,
    WrongModel,
)
from lectern_common.run.folder import RunFolder
from lectern_common.spec.load import parse_spec
from lectern_common.stages.precompute import PrecomputeRequest
from lectern_common.teacher.identity import TeacherIdentity
from student_trainer.objective.reference import kd_loss
from student_trainer.record.stage import precompute
from student_trainer.run.loop import train
from student_trainer.stop import Stop
from tests.support.servers import teacher_of
from tests.support.training.runs import (
    VOCAB_SIZE,
    Home,
    assembled,
    curve,
    events_of,
    lines_of,
    status_of,
    trained,
)
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import Serving, WireTeacher

WIDE, NARROW = 50, 36


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Serving, Serving]]:
    """Two teachers, one with more ids than the student, one with fewer."""
    padded = WireTeacher(vocab_size=WIDE, seed=1)
    padded.model.num_tokens = NARROW
    with (
        Serving(padded) as wide,
        Serving(WireTeacher(vocab_size=NARROW, hidden_size=12, seed=2)) as narrow,
    ):
        yield wide, narrow


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return filled(Home(tmp_path))


def filled(home: Home) -> Home:
    draw = np.random.default_rng(7)
    for name, tokens in (("code", 900), ("maths", 400), ("plain", 300)):
        ids = draw.integers(0, NARROW, tokens)
        write_shards(home.path / "data" / name, ids, vocab_size=VOCAB_SIZE)
    return home


def mixing(served: tuple[Serving, Serving], **sections: Any) -> dict[str, Any]:
    wide, narrow = served
    sources = [
        {"path": "code", "weight": 2, "teacher": "wide"},
        {"path": "maths", "teacher": "narrow"},
        {"path": "plain"},
    ]
    return {
        "teachers": {
            "wide": {"address": wide.address, "prefetch_steps": 2},
            "narrow": {"address": narrow.address, "representation": "top_k", "top_k": 8},
        },
        "data": {"path": None, "sources": sources},
        "objective": {"alpha": 0.25, "temperature": 2.0},
        "batch": {"sequences_per_step": 8, "micro_batch_sequences": 4},
        **sections,
    }


def same_run(one: RunFolder, other: RunFolder) -> None:
    weights = [folder.export_path / "model.safetensors" for folder in (one, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for name in ("loss/total", "loss/kd", "loss/kd/wide", "loss/val", "val/kl/narrow"):
        assert curve(one, name) == curve(other, name), name


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, served: tuple[Serving, Serving]
) -> tuple[Home, RunFolder]:
    """An undisturbed mixed run."""
    home = filled(Home(tmp_path_factory.mktemp("whole")))
    folder = home.run(**mixing(served))
    assert trained(home, folder) == 0, status_of(folder)
    return home, folder


def test_losses_are_the_float64_references_position_by_position(
    home: Home, served: tuple[Serving, Serving]
) -> None:
    # The first step of this seed has rows of each source.
    folder = home.run(**mixing(served, seed=1, schedule={"steps": 1, "warmup_steps": 0}))
    with assembled(home, folder) as run:
        batch = run.parts.batches.batch_at(0)
        with torch.no_grad():
            model = run.student.model.double()
            logits_BSV = model(torch.from_numpy(batch.inputs_BS)).logits.numpy()
        model.float()
    sums = {name: [0.0, 0] for name in ("wide", "narrow", None)}
    assert batch.sources_B is not None
    for source, ids, labels, rows in zip(
        batch.sources_B, batch.inputs_BS, batch.labels_BS, logits_BSV, strict=True
    ):
        name, top_k = (("wide", None), ("narrow", 8), (None, None))[source]
        teacher = served[1 if name == "narrow" else 0].teacher
        theirs = teacher.logits(teacher.hidden(ids), min(teacher.vocab_size, VOCAB_SIZE))
        theirs = np.pad(
            theirs.astype(np.float64),
            ((0, 0), (0, VOCAB_SIZE - theirs.shape[1])),
            constant_values=-np.inf,
        )
        alpha = 1.0 if name is None else 0.25
        for s, t, label in zip(rows, theirs, labels, strict=True):
            t = s if name is None else t
            loss = kd_loss(s, t, int(label), 2.0, alpha, top_k=top_k)
            sums[name][0] += loss
            sums[name][1] += 1
    assert trained(home, folder) == 0, status_of(folder)
    [line] = [line for line in lines_of(folder) if line["step"] == 1]
    assert [line[f"data/valid_tokens/{name}"] for name in ("code", "maths", "plain")] == [
        count for _, count in sums.values()
    ]
    total = sum(loss for loss, _ in sums.values()) / sum(count for _, count in sums.values())
    assert line["loss/total"] == pytest.approx(total, rel=2e-6)
    for name, source in (("wide", "code"), ("narrow", "maths")):
        loss, count = sums[name]
        own = 0.25 * line[f"loss/ce/{source}"] + 0.75 * 4 * line[f"loss/kd/{name}"]
        assert own == pytest.approx(loss / count, rel=2e-6)


def test_each_teacher_is_asked_only_about_rows_of_its_sources(
    whole: tuple[Home, RunFolder], served: tuple[Serving, Serving]
) -> None:
    home, _ = whole
    for serving, name in zip(served, ("code", "maths"), strict=True):
        held = {bytes(row.tobytes()) for row in rows_of(home, name)}
        asked = [request for request in serving.teacher.requests if request.run_id == "run-1"]
        assert asked
        for request in asked:
            for row in np.frombuffer(request.token_ids, "<u4").reshape(-1, 8):
                assert row.tobytes() in held or len(row) < 8


def rows_of(home: Home, name: str) -> list[Any]:
    tokens = np.fromfile(next((home.path / "data" / name).glob("*.bin")), "<u4")
    return [tokens[first : first + 8] for first in range(0, len(tokens) - 8, 8)]


def test_validation_is_by_source_and_teacher_and_over_all(whole: tuple[Home, RunFolder]) -> None:
    _, folder = whole
    [last] = [line for line in lines_of(folder) if line["step"] == 6]
    events = events_of(folder, "assembled")[0]
    assert events["validation_rows"] == 20 and list(events["sources"]) == ["code", "maths", "plain"]
    weights = {"code": 11, "maths": 5, "plain": 4}  # held-out rows, all of 8 positions
    mean = sum(count * last[f"loss/val/{name}"] for name, count in weights.items()) / 20
    assert last["loss/val"] == pytest.approx(mean, rel=1e-12)
    kl = (11 * last["val/kl/wide"] + 5 * last["val/kl/narrow"]) / 16
    assert last["val/kl"] == pytest.approx(kl, rel=1e-12)


def test_a_stopped_run_goes_on_bit_for_bit(
    whole: tuple[Home, RunFolder], served: tuple[Serving, Serving]
) -> None:
    home, undisturbed = whole
    folder = home.run(**mixing(served))
    with assembled(home, folder) as run:
        stop = run.parts.stop
        record = run.parts.recorder.record

        def stopping(step: int, metrics: dict[str, float]) -> None:
            record(step, metrics)
            if step == 3:
                stop.request("test")

        run.parts.recorder.record = stopping  # type: ignore[method-assign]
        assert not train(run.parts, run.settings, run.progress)
    assert trained(home, folder, resume=True) == 0, status_of(folder)
    same_run(folder, undisturbed)


def test_prefetching_and_micro_batches_of_the_teachers_change_no_rows(
    whole: tuple[Home, RunFolder], served: tuple[Serving, Serving]
) -> None:
    home, undisturbed = whole
    sections = mixing(served)
    for teacher in sections["teachers"].values():
        teacher["prefetch_steps"] = 0
    folder = home.run(**sections)
    assert trained(home, folder) == 0, status_of(folder)
    same_run(folder, undisturbed)


@pytest.mark.parametrize("change", ["weight", "teacher", "path", "more"])
def test_a_resume_with_other_sources_is_refused_by_name(
    whole: tuple[Home, RunFolder], served: tuple[Serving, Serving], change: str
) -> None:
    home, undisturbed = whole
    folder = RunFolder(undisturbed.path.with_name(f"changed-{change}"))
    shutil.copytree(undisturbed.path, folder.path)
    data = undisturbed.read_spec().model_dump(mode="json")
    data["schedule"]["steps"] = 9
    first = data["data"]["sources"][0]
    first["weight"] = 3.0 if change == "weight" else first["weight"]
    first["path"] = "text" if change == "path" else first["path"]
    if change == "teacher":
        first["teacher"] = None
        del data["teachers"]["wide"]
    if change == "more":
        data["data"]["sources"].append({"path": "text"})
    folder.write_spec(parse_spec(data))
    assert trained(home, folder, resume=True) == 1
    status = status_of(folder)
    assert status.reason == "invalid_spec" and "data.sources: was" in str(status.message)


def test_another_model_at_one_address_is_refused_by_its_name(
    home: Home, served: tuple[Serving, Serving]
) -> None:
    folder = home.run(**mixing(served))
    wide, narrow = (TeacherIdentity.of(one.teacher.model) for one in served)
    folder.write_teachers({"wide": wide, "narrow": TeacherIdentity("other", "f" * 64)})
    with (
        pytest.raises(WrongModel, match=r"source maths: .* but the run was accepted with other"),
        assembled(home, folder),
    ):
        pass
    folder.write_teachers({"wide": wide, "narrow": narrow})
    with assembled(home, folder) as run:
        assert run.parts.checkpoint_facts["teachers"]["wide"]["teacher_fingerprint"] == (
            wide.fingerprint
        )


def test_a_source_that_uses_ids_its_teacher_lacks_is_refused(
    home: Home, served: tuple[Serving, Serving]
) -> None:
    ids = np.random.default_rng(1).integers(0, VOCAB_SIZE, 400)
    shutil.rmtree(home.path / "data" / "maths")
    write_shards(home.path / "data" / "maths", ids, vocab_size=VOCAB_SIZE)
    with (
        pytest.raises(Incompatible, match=r"source maths: id 3[6-9] is beyond the logits of the"),
        assembled(home, home.run(**mixing(served))),
    ):
        pass


def test_preflight_names_the_source_and_its_fields(
    home: Home, served: tuple[Serving, Serving]
) -> None:
    sections = mixing(served)
    found = startable(home.spec("a", **sections), home.roots)
    assert {name: own.rows.training for name, own in found.sources.items() if own.rows} == {
        "code": 101,
        "maths": 44,
        "plain": 33,
    }
    assert found.accepted == {
        name: TeacherIdentity.of(serving.teacher.model)
        for name, serving in zip(("wide", "narrow"), served, strict=True)
    }
    sections["data"]["sources"][1]["path"] = "nowhere"
    with pytest.raises(InvalidSpec) as raised:
        startable(home.spec("a", **sections), home.roots)
    assert raised.value.problems[0][0] == "data.sources.1.path"
    sections["data"]["sources"][1]["path"] = "maths"
    sections["teachers"]["narrow"]["model"] = "other"
    with pytest.raises(WrongModel, match=r"source maths: teachers\.narrow\.model is other"):
        startable(home.spec("a", **sections), home.roots)


def test_validation_rows_of_one_source_are_not_trained_on_in_another(
    home: Home, served: tuple[Serving, Serving]
) -> None:
    code = np.concatenate(rows_of(home, "code"))
    draw = np.random.default_rng(3)
    # Rows 32 to 35 are held out; the first two of them are rows 0 and 1 of code.
    plain = np.concatenate([draw.integers(0, NARROW, 256), code[:17], draw.integers(0, NARROW, 16)])
    shutil.rmtree(home.path / "data" / "plain")
    write_shards(home.path / "data" / "plain", plain, vocab_size=VOCAB_SIZE)
    with assembled(home, home.run(**mixing(served))) as run:
        assert run.data.validation_duplicates == 2


def test_cross_entropy_alone_needs_no_teachers(home: Home) -> None:
    sources = [{"path": "code", "weight": 3}, {"path": "plain"}]
    folder = home.run(data={"path": None, "sources": sources})
    assert trained(home, folder) == 0, status_of(folder)
    line = lines_of(folder)[-1]
    assert line["loss/total"] == pytest.approx(line["loss/ce"])
    assert "loss/kd" not in line and "loss/val/plain" in line


def test_a_record_of_a_source_teaches_as_its_server_does(
    whole: tuple[Home, RunFolder], served: tuple[Serving, Serving]
) -> None:
    home, undisturbed = whole
    single = {
        "teacher": {"address": served[1].address, "representation": "top_k", "top_k": 8},
        "data": {"path": "maths"},
        "objective": {"alpha": 0.25, "temperature": 2.0},
        "batch": {"sequences_per_step": 8, "micro_batch_sequences": 4},
    }
    asked = PrecomputeRequest(spec=home.spec("recording", **single), output="answers")
    work = home.path / "work"
    work.mkdir()
    precompute(asked, home.roots, work, stop=Stop(), report=lambda *_: None)
    sections = mixing(served)
    sections["teachers"]["narrow"] = {"record": "answers", "representation": "top_k", "top_k": 8}
    folder = home.run(**sections)
    assert trained(home, folder) == 0, status_of(folder)
    # A record of top_k rounds its logits.
    for name in ("loss/kd/narrow", "val/kl/narrow", "loss/val"):
        np.testing.assert_allclose(curve(folder, name), curve(undisturbed, name), rtol=2e-3)
    # It is of maths; code has other rows.
    sections["data"]["sources"][2]["teacher"] = "narrow"
    with pytest.raises(LecternError, match="source plain: "), assembled(home, home.run(**sections)):
        pass


def test_a_record_of_several_sources_is_not_made(
    home: Home, served: tuple[Serving, Serving]
) -> None:
    asked = PrecomputeRequest(spec=home.spec("recording", **mixing(served)), output="answers")
    with pytest.raises(InvalidSpec, match=r"data\.sources: a record is of one dataset"):
        precompute(asked, home.roots, home.path, stop=Stop(), report=lambda *_: None)


def test_a_student_that_matches_one_of_its_teachers_is_refused(home: Home) -> None:
    home.model("same", seed=5)
    with teacher_of(home.roots.models / "same") as teacher:
        sources = [{"path": "code", "teacher": "own"}, {"path": "maths"}]
        sections: dict[str, Any] = {
            "student": {"init": "same", "config": None},
            "teachers": {"own": {"address": teacher.address}},
            "data": {"path": None, "sources": sources},
            "objective": {"alpha": 0.5},
        }
        with (
            pytest.raises(SameWeights, match=r"teachers\.own\.allow_same_weights"),
            assembled(home, home.run(**sections)),
        ):
            pass
        # Its hash does not tell: the loss of the first step does.
        sections["student"] = {"init": "same", "config": None, "lora": {"rank": 2}}
        folder = home.run(**sections)
        assert trained(home, folder) == 1
        assert status_of(folder).reason == "same_weights"
