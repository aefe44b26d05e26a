"""A teacher is recorded and switched off, and runs learn from the record."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.checks.preflight import startable
from lectern_common.errors import Conflict, CorruptData, Incompatible, InvalidSpec
from lectern_common.run.folder import RunFolder
from lectern_common.spec.run_spec import RunSpec
from lectern_common.stages.precompute import PrecomputeRequest, RecordOptions
from lectern_common.teacher.record.manifest import RecordManifest, read_record_manifest
from lectern_common.teacher.record.reader import RecordReader, require_intact_record
from lectern_common.wire.formats import Representation
from student_trainer.record.stage import precompute
from student_trainer.stop import Stop, StopRequested
from student_trainer.targets import HiddenTargets, SampledTargets
from student_trainer.teacher.recorded import RecordedTeacher
from student_trainer.teacher.remote import connect_teacher
from tests.support.models import write_tiny_model
from tests.support.servers import TeacherThread, teacher_of
from tests.support.training.runs import VOCAB_SIZE, Home, curve, status_of, trained
from tests.support.training.shards import write_shards

AT_TWO = {"alpha": 0.2, "temperature": 2}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherThread]:
    folder = tmp_path_factory.mktemp("served")
    model = write_tiny_model(folder / "teacher", vocab_size=VOCAB_SIZE, hidden=32, seed=1)
    with teacher_of(model) as teacher:
        yield teacher


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def online(served: TeacherThread, **teacher: Any) -> dict[str, Any]:
    return {"objective": AT_TWO, "teacher": {"address": served.address, **teacher}}


def recorded(home: Home, name: str = "answers", **sections: Any) -> RecordManifest:
    options = RecordOptions(**sections.pop("options", {}))
    made(home, home.spec("recording", **sections), name, options)
    return read_record_manifest(home.roots.data / name)


def made(
    home: Home,
    spec: RunSpec,
    name: str = "answers",
    options: RecordOptions = RecordOptions(),  # noqa: B008
    stop: Stop | None = None,
) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    """Makes a record; returns the stage's result, and what it reported."""
    asked, said = PrecomputeRequest(spec=spec, output=name, options=options), list[Any]()
    work = home.path / "work" / name
    work.mkdir(parents=True, exist_ok=True)
    result = precompute(
        asked, home.roots, work, stop=stop or Stop(), report=lambda *of: said.append(of)
    )
    assert json.loads(json.dumps(result)) == result
    return result, said


def from_record(record: str = "answers", **teacher: Any) -> dict[str, Any]:
    return {"objective": AT_TWO, "teacher": {"record": record, **teacher}}


def exported(folder: RunFolder) -> str:
    return hashlib.sha256((folder.export_path / "model.safetensors").read_bytes()).hexdigest()


def test_a_run_from_hidden_states_is_the_run_with_the_teacher(home, served):
    """FALSIFY-TRAIN-006: a run uses the record that is there, and says so."""
    whole = home.run(**online(served))
    assert trained(home, whole) == 0
    manifest = recorded(home, **online(served))
    assert [part.format.name for part in manifest.parts] == ["hidden"]
    folder = home.run(**from_record())
    assert trained(home, folder) == 0
    assert curve(folder, "loss/kd") == curve(whole, "loss/kd")
    assert curve(folder, "val/kl") == curve(whole, "val/kl")
    assert exported(folder) == exported(whole)
    events = [json.loads(line) for line in folder.events_path.read_text().splitlines()]
    [said] = [event["message"] for event in events if event["kind"] == "taught_by_record"]
    assert said == f"taught by the record answers of {manifest.model_id}"


def test_another_order_seed_and_number_of_epochs_find_every_row(home, served):
    recorded(home, **online(served))
    for seed, steps, rows in ((1, 6, 4), (2, 70, 5)):
        folder = home.run(
            seed=seed,
            schedule={"steps": steps, "warmup_steps": 2},
            batch={"sequences_per_step": rows},
            evaluation={"every_steps": steps},
            checkpoint={"every_steps": steps},
            **from_record(),
        )
        assert trained(home, folder) == 0


@pytest.mark.parametrize(("bits", "at_most"), [(16, 1e-3), (8, 0.05)])
def test_a_run_from_the_likeliest_ids_is_nearly_the_run_with_the_teacher(
    home, served, bits, at_most
):
    top_k: dict[str, Any] = {"representation": "top_k", "top_k": 8}
    whole = home.run(**online(served, **top_k))
    assert trained(home, whole) == 0
    manifest = recorded(home, options={"log_prob_bits": bits}, **online(served, **top_k))
    assert [(part.name, part.temperature) for part in manifest.parts] == [
        ("training", 2.0),
        ("validation", 1.0),
    ]
    folder = home.run(**from_record(**top_k))
    assert trained(home, folder) == 0
    for key in ("loss/kd", "val/kl"):
        np.testing.assert_allclose(curve(folder, key), curve(whole, key), rtol=at_most)


def test_fewer_of_the_likeliest_ids_may_be_asked_for_and_not_more(home, served):
    top_k: dict[str, Any] = {"representation": "top_k", "top_k": 8}
    recorded(home, **online(served, **top_k))
    fewer: dict[str, Any] = {"representation": "top_k", "top_k": 3}
    whole, folder = home.run(**online(served, **fewer)), home.run(**from_record(**fewer))
    assert trained(home, whole) == trained(home, folder) == 0
    np.testing.assert_allclose(curve(folder, "loss/kd"), curve(whole, "loss/kd"), rtol=1e-3)
    more = home.run(**from_record(representation="top_k", top_k=9))
    assert trained(home, more) == 1
    assert "set teacher.top_k to at most 8" in str(status_of(more).message)


def test_draws_are_recorded_in_sets_that_are_used_in_turn(home, served):
    sampled: dict[str, Any] = {"representation": "sampled", "num_draws": 20}
    manifest = recorded(home, options={"draw_sets": 2}, **online(served, **sampled))
    assert [part.name for part in manifest.parts] == [
        "training-0",
        "training-1",
        "validation",
        "likeliest",
    ]
    folder = home.run(**from_record(**sampled))
    assert trained(home, folder) == 0
    assert len(curve(folder, "val/top1_agreement")) > 0
    record = RecordedTeacher(
        home.roots.data / "answers", vocab_size=VOCAB_SIZE, device=torch.device("cpu")
    )
    ids, asked = first_row(home)
    with connect_teacher(served.address, VOCAB_SIZE, cache_root=home.roots.cache) as teacher:
        for epoch in range(4):
            question = Representation("sampled", num_draws=20, seed=epoch)
            kept = record.score([ids], [asked], question, 2.0)
            same = Representation("sampled", num_draws=20, seed=epoch % 2)
            drawn = teacher.score([ids], [asked], same, 2.0)
            assert isinstance(kept, SampledTargets)
            assert isinstance(drawn, SampledTargets)
            assert torch.equal(kept.ids_R, drawn.ids_R)
            assert torch.equal(kept.counts_R, drawn.counts_R)
            torch.testing.assert_close(kept.log_probs_R, drawn.log_probs_R, rtol=0, atol=2.5e-4)


def first_row(home: Home) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.fromfile(home.roots.data / "text" / "shard-00000.bin", "<u4")[: home.seq_len]
    return tokens, np.ones(home.seq_len, bool)


def test_recorded_answers_are_those_of_a_forward_now(home, served):
    """F-DISTILL-PREP-001: 100 random batches; their bytes are equal, so the cosine is 1."""
    recorded(home, **online(served))
    record = RecordedTeacher(
        home.roots.data / "answers", vocab_size=VOCAB_SIZE, device=torch.device("cpu")
    )
    data = [home.roots.data / "text" / f"shard-0000{n}.bin" for n in (0, 1)]
    tokens = np.concatenate([np.fromfile(path, "<u4") for path in data])
    draw = np.random.default_rng(5)
    with connect_teacher(served.address, VOCAB_SIZE, cache_root=home.roots.cache) as teacher:
        for _ in range(100):
            rows = [tokens[8 * row :][:8] for row in draw.integers(0, 200, 4)]
            asked = [np.ones(8, bool) for _ in rows]
            found = record.score(rows, asked, Representation("hidden"), 1.0)
            now = teacher.score(rows, asked, Representation("hidden"), 1.0)
            assert isinstance(found, HiddenTargets)
            assert isinstance(now, HiddenTargets)
            kept, computed = (
                targets.head.logits(targets.hidden_ND.float()) for targets in (found, now)
            )
            cosine = torch.nn.functional.cosine_similarity(kept, computed, dim=-1)
            assert float(cosine.min()) >= 0.999
            assert torch.equal(found.hidden_ND, now.hidden_ND)


def bytes_of(record: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(record)): path.read_bytes()
        for path in sorted(record.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "teacher",
    [
        {},
        {"representation": "top_k", "top_k": 5},
        {"representation": "sampled", "num_draws": 9},
    ],
    ids=["hidden", "top_k", "sampled"],
)
def test_two_recordings_are_equal_byte_for_byte(home, served, teacher):
    """FALSIFY-TRAIN-005"""
    for name in ("one", "two"):
        recorded(home, name, **online(served, **teacher))
    assert bytes_of(home.roots.data / "one") == bytes_of(home.roots.data / "two")


class StopAfter(Stop):
    """A stop that is requested at the n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def check(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.request()
        super().check()


@pytest.mark.parametrize("looks", [1, 3, 20, 45])
def test_what_was_stopped_goes_on_to_the_same_bytes(home, served, looks):
    spec = home.spec("recording", **online(served))
    with pytest.raises(StopRequested):
        made(home, spec, "cut", stop=StopAfter(looks))
    assert not (home.roots.data / "cut").exists()
    with pytest.raises(InvalidSpec, match="no record 'cut'"):
        startable(home.spec("early", **from_record("cut")), home.roots)
    left = home.roots.data / ".cut.recording" / "record" / "training" / "rows.bin"
    left.write_bytes(left.read_bytes() + b"half a row")  # as a killed process leaves it
    recorded(home, "cut", **online(served))
    recorded(home, "whole", **online(served))
    assert bytes_of(home.roots.data / "cut") == bytes_of(home.roots.data / "whole")


def test_a_recording_that_was_begun_otherwise_is_refused(home, served):
    with pytest.raises(StopRequested):
        spec = home.spec("recording", **online(served))
        made(home, spec, "cut", stop=StopAfter(9))
    with pytest.raises(Conflict, match="begun with another options"):
        recorded(home, "cut", options={"eight_bit_hidden": True}, **online(served))
    recorded(home, "cut", **online(served))
    shutil.rmtree(home.path / "work")
    with pytest.raises(Conflict, match="is there already"):
        recorded(home, "cut", **online(served))


def test_a_stage_that_was_killed_once_its_record_had_its_name_has_made_it(home, served):
    spec = home.spec("recording", **online(served))
    result, _ = made(home, spec)
    assert made(home, spec) == (result, [])
    with pytest.raises(Conflict, match="is there already"):
        made(home, home.spec("other", **online(served)))


def rewritten(record: Path, path: str, data: bytes, **part: Any) -> None:
    """Puts other bytes into a record, and a manifest that says so."""
    (record / path).write_bytes(data)
    manifest = json.loads((record / "manifest.json").read_bytes())
    for file in manifest["files"]:
        if file["path"] == path:
            file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for one in manifest["parts"]:
        if one["name"] == path.split("/")[0]:
            one |= part
    (record / "manifest.json").write_text(json.dumps(manifest))


def test_a_row_that_a_later_set_of_draws_lacks_is_named_before_the_first_step(home, served):
    sampled: dict[str, Any] = {"representation": "sampled", "num_draws": 20}
    manifest = recorded(home, options={"draw_sets": 2}, **online(served, **sampled))
    record, part = home.roots.data / "answers", manifest.parts[1]
    index = (record / "training-1" / "index.bin").read_bytes()[48:]
    there = {"sequences": part.sequences - 1, "rows": part.rows - 8}
    rewritten(record, "training-1/index.bin", index, **there)
    two_epochs = {"steps": 114, "warmup_steps": 2}
    folder = home.run(schedule=two_epochs, **from_record(**sampled))
    assert trained(home, folder) == 1
    assert "of the training set, which begins [" in str(status_of(folder).message)
    assert status_of(folder).step == 0
    # The second set of draws is that of the second epoch, which a shorter run does not reach.
    assert trained(home, home.run(**from_record(**sampled))) == 0


def test_the_same_rows_in_another_dataset_are_found(home, served):
    recorded(home, **online(served))
    tokens = np.concatenate(
        [np.fromfile(path, "<u4") for path in sorted((home.path / "data/text").glob("shard*"))]
    )
    rows = tokens[:1600].reshape(200, 8)
    order = np.random.default_rng(0).permutation(200)
    shuffled = np.concatenate([rows[order].ravel(), tokens[1600:]])
    write_shards(home.path / "data" / "shuffled", shuffled, vocab_size=VOCAB_SIZE)
    folder = home.run(data={"path": "shuffled"}, **from_record())
    assert trained(home, folder) == 0, status_of(folder).message
    write_shards(home.path / "data" / "others", tokens[::-1], vocab_size=VOCAB_SIZE)
    folder = home.run(data={"path": "others"}, **from_record())
    assert trained(home, folder) == 1
    assert "was made of text with other contents" in str(status_of(folder).message)


def test_a_record_is_not_recorded_again(home, served):
    recorded(home, **online(served))
    with pytest.raises(InvalidSpec, match=r"teacher.record: is a record already"):
        recorded(home, "again", **from_record())


def test_another_teacher_than_the_spec_names_is_refused_with_the_records_name(home, served):
    recorded(home, **online(served))
    spec = home.spec("refused", **from_record(model="other"))
    with pytest.raises(Incompatible, match="is other, but record answers is of"):
        startable(spec, home.roots)


def test_a_flipped_bit_is_named_and_never_trained_on(home, served):
    recorded(home, **online(served))
    folder = home.roots.data / "answers"
    rows = folder / "training" / "rows.bin"
    data = bytearray(rows.read_bytes())
    data[len(data) // 2] ^= 4
    rows.write_bytes(data)
    with pytest.raises(CorruptData, match=r"rows\.bin is not what the record's manifest says"):
        require_intact_record(folder, read_record_manifest(folder))
    run = home.run(schedule={"steps": 60, "warmup_steps": 2}, **from_record())
    assert trained(home, run) == 1
    assert "training/rows.bin are damaged" in str(status_of(run).message)


@pytest.mark.parametrize("name", ["index.bin", "masks.bin"])
def test_a_damaged_index_is_noticed_when_the_record_is_opened(home, served, name):
    recorded(home, **online(served))
    path = home.roots.data / "answers" / "training" / name
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptData, match=name):
        RecordReader(home.roots.data / "answers")


@pytest.mark.parametrize("name", ["training/rows.bin", "head.safetensors", "teacher.binpb"])
def test_a_file_that_was_cut_short_is_named(home, served, name):
    recorded(home, **online(served))
    path = home.roots.data / "answers" / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptData, match=name):
        RecordReader(home.roots.data / "answers")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"seq_len": 7}}, "give tokens another context"),
        ({"objective": {"alpha": 0.2, "temperature": 3}}, "at temperature 3"),
        ({"teacher": {"record": "answers", "representation": "hidden"}}, "has no hidden"),
        ({"teacher": {"record": "answer"}}, "no record 'answer' .* there: answers"),
        ({"data": {"validation_fraction": 0.2}}, None),
    ],
)
def test_a_run_that_a_record_cannot_teach_is_refused_before_its_first_step(
    home, served, changes, said
):
    """FALSIFY-TRAIN-006: a record that is missing is refused beside those that are there."""
    top_k: dict[str, Any] = {"representation": "top_k", "top_k": 8}
    recorded(home, **online(served, **top_k))
    sections = {**from_record(**top_k), **changes}
    if said is None:  # rows moved from training to validation, which was asked at temperature 1
        run = home.run(**sections)
        assert trained(home, run) == 1
        assert re.search(
            r"of the validation set, which begins \[.*\], is not in the record answers: it was "
            "made of text with data.seq_len 8, and another data.validation_fraction",
            str(status_of(run).message),
        )
        return
    with pytest.raises((Incompatible, InvalidSpec), match=said):
        startable(home.spec("refused", **sections), home.roots)


@pytest.mark.long
def test_the_record_of_another_teacher_does_not_continue_a_run(home, served, tmp_path):
    recorded(home, **online(served))
    run = home.run(**from_record())
    assert trained(home, run) == 0
    other = write_tiny_model(tmp_path / "other", vocab_size=VOCAB_SIZE, hidden=32, seed=2)
    with teacher_of(other) as teacher:
        recorded(home, "others", **online(teacher))
    (home.roots.data / "answers").rename(home.roots.data / "away")
    (home.roots.data / "others").rename(home.roots.data / "answers")
    run.write_spec(home.spec(run.run_id, schedule={"steps": 9}, **from_record()))
    assert trained(home, run, resume=True) == 1
    assert "teacher.record answers is of" in str(status_of(run).message)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"record": "a", "address": "127.0.0.1:1"}, "address has no effect with record"),
        ({"record": "a", "deadline_seconds": 3}, "deadline_seconds has no effect with record"),
        ({"record": "a", "representation": "dense"}, "dense is never recorded"),
        ({"address": ""}, "address must not be empty"),
        ({"record": "../a"}, "relative path"),
    ],
)
def test_a_teacher_is_a_server_or_a_record(home, teacher, said):
    with pytest.raises(InvalidSpec, match=said):
        home.spec("both", objective=AT_TWO, teacher=teacher)


@pytest.mark.parametrize(
    ("teacher", "options", "bytes_per_token", "kl", "gradient"),
    [
        ({}, {}, 32 * 4, 1e-12, 1e-6),
        ({}, {"eight_bit_hidden": True}, 32 + 1, 0.05, 0.2),
        ({"representation": "top_k", "top_k": 8}, {}, 6 + 16 + 4, 1e-6, None),
        ({"representation": "top_k", "top_k": 8}, {"log_prob_bits": 8}, 6 + 8 + 4, 1e-3, None),
        ({"representation": "top_k", "top_k": VOCAB_SIZE}, {}, 30 + 80 + 4, 1e-6, 1e-3),
    ],
    ids=["hidden", "hidden_fp8", "top_k", "top_k in 8 bits", "all ids"],
)
def test_what_recording_costs_is_said_before_it_begins(
    home, served, teacher, options, bytes_per_token, kl, gradient
):
    spec = home.spec("recording", **online(served, **teacher))
    result, said = made(home, spec, options=RecordOptions(**options))
    [words, *qualities] = [text for text, done, of in said if of == 0]
    assert re.fullmatch(r"the record takes about .*; .* are free", words)
    quality = result["quality"][0]
    assert f"training: {bytes_per_token:.1f} bytes a token, KL to the teacher" in qualities[0]
    assert quality["bytes_per_token"] == bytes_per_token
    assert quality["positions"] == 64
    assert -1e-12 <= quality["kl"] <= kl
    if gradient is None:  # what top_k leaves out is most of what is wrong
        assert 0 < quality["gradient_error"] < 1
    else:
        assert quality["gradient_error"] <= gradient
    what, done, of = said[-1]
    assert (what, done) == ("batches", of)


def test_draws_have_no_kl_and_take_few_bytes_an_id(home, served):
    sampled: dict[str, Any] = {"representation": "sampled", "num_draws": 50}
    result, _ = made(home, home.spec("recording", **online(served, **sampled)))
    quality = result["quality"][0]
    assert quality["kl"] is None
    assert 1 < quality["distinct_ids"] <= VOCAB_SIZE
    assert quality["bytes_per_token"] / quality["distinct_ids"] <= 5.5
    tokens = np.fromfile(home.roots.data / "text" / "shard-00000.bin", "<u4")[:64]
    with connect_teacher(served.address, VOCAB_SIZE, cache_root=home.roots.cache) as teacher:
        logits = teacher.logits_per_position(tokens.reshape(8, 8).tolist())
    p = torch.softmax(torch.from_numpy(np.concatenate(logits)).double() / 2, -1)
    # The variance of a share of n draws is p (1 - p) / n.
    expected = float((p * (1 - p) / 50).sum().sqrt() / (1 / VOCAB_SIZE - p).norm())
    assert quality["gradient_error"] == pytest.approx(expected, rel=0.2)
