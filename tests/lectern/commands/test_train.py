import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lectern.local.foreground import MetricsReader, run_trainer
from lectern.local.processes import wait_until
from lectern_common.roots import Roots
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState, Status
from lectern_common.spec.load import load_spec
from tests.support.fakes import FakeTeacher, serving
from tests.support.no_locks import refuse_locks
from tests.support.training.shards import write_shards

DEADLINE_SECONDS = 30.0
SUCCEEDS, FAILS, GOES_ON, DIES, DIES_MUTE, INTERRUPTED = range(6)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose models root has a student's config."""
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/config.json").write_text(json.dumps({"vocab_size": 8}))
    return tmp_path


def write_spec(home: Path, how: int = SUCCEEDS, **changes: str) -> Path:
    path = home / "spec.yaml"
    sections = {
        "name": "run",
        "seed": how,
        "student": "{config: tiny}",
        "data": "{kind: synthetic, seq_len: 8}",
        "objective": "{alpha: 1}",
        "schedule": "{steps: 3, warmup_steps: 1}",
        **changes,
    }
    path.write_text("".join(f"{key}: {value}\n" for key, value in sections.items()))
    return path


def test_a_run_that_succeeds_ends_with_0_and_names_its_export(lectern, home, stand_ins):
    ended = lectern("train", write_spec(home), "--home", home)

    assert ended.code == 0, ended
    assert f"succeeded at step 3 of 3, {home}/runs/run/export" in ended.err
    assert "loss/total 1.0000" in ended.out


def test_chats_that_are_cut_or_left_out_are_told_before_training(lectern, home, stand_ins):
    """Of five chats one has 20 tokens, and one has nothing that is learnt."""
    starts = [0, 4, 8, 28, 32]
    mask = [0, 1, 1, 1] * 2 + [0] + [1] * 19 + [0] * 4 + [0, 1, 1, 1]
    write_shards(home / "data/chats", [1] * 36, documents=starts, mask=mask)
    batch = "{sequences_per_step: 1}"
    for rule, said in (
        (
            "drop",
            "chats: 2 of 5 to train on, in 1 row; 1 held out, in 1 row; 1 left out: longer than a "
            "row and dropped (data.long_chats); 1 left out: with nothing that is learnt",
        ),
        (
            "cut",
            "chats: 3 of 5 to train on, in 2 rows; 1 held out, in 1 row; 1 longer than a row and "
            "cut (data.long_chats); 1 left out: with nothing that is learnt",
        ),
    ):
        data = f"{{path: chats, seq_len: 8, validation_fraction: 0.1, long_chats: {rule}}}"
        spec = write_spec(home, name=rule, data=data, batch=batch)
        ended = lectern("train", spec, "--home", home)
        assert ended.code == 0, ended
        assert said in ended.err.splitlines()


def test_data_that_the_student_cannot_read_leaves_no_run_folder(lectern, home, stand_ins):
    write_shards(home / "data/text", [index % 30 for index in range(99)], vocab_size=151_665)
    data = "{path: text, seq_len: 8, validation_fraction: 0.1}"
    ended = lectern("train", write_spec(home, data=data), "--home", home)
    assert ended.code == 6
    assert "12 of 12 rows of" in ended.err and "data.max_bad_rows_fraction allows" in ended.err
    assert not (home / "runs/run").exists()


def test_with_json_nothing_else_is_printed_to_standard_output(lectern, home, stand_ins):
    ended = lectern("train", write_spec(home), "--home", home, "--json")

    assert ended.json["exit_code"] == 0
    assert ended.json["status"]["state"] == "succeeded"


def test_a_run_folder_without_locks_gets_a_sentence_and_a_way_out(
    lectern, home, stand_ins, monkeypatch
):
    refuse_locks(monkeypatch, but=home / "locks")

    refused = lectern("train", write_spec(home), "--home", home)

    assert refused.code == 2 and "set LECTERN_LOCKS to a folder on a local disk" in refused.err
    assert list((home / "runs").iterdir()) == []
    monkeypatch.setenv("LECTERN_LOCKS", str(home / "locks"))
    assert lectern("train", write_spec(home), "--home", home).code == 0
    monkeypatch.delenv("LECTERN_LOCKS")
    resumed = lectern("train", write_spec(home), "--home", home, "--resume")
    assert resumed.code == 2 and "without file locks" in resumed.err


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        (FAILS, 1, "error: run run: the loss is not finite"),
        (INTERRUPTED, 75, "error: run run: the teacher is gone"),
        (DIES_MUTE, 1, "ImportError: no torch here"),
        (DIES, 75, "resume with: lectern train"),
    ],
)
def test_a_run_that_ends_otherwise_says_why(lectern, home, stand_ins, how, code, said):
    ended = lectern("train", write_spec(home, how), "--home", home)

    assert ended.code == code
    assert said in ended.err
    assert f"log: {home}/runs/run/trainer.log" in ended.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_with_a_checkpoint(home, stand_ins, number):
    argv = [sys.executable, "-m", "lectern", "train", str(write_spec(home, GOES_ON))]
    with subprocess.Popen(
        [*argv, "--home", str(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        folder = RunFolder(home / "runs/run")

        def at_step_3() -> bool:
            status = folder.read_status()
            return status is not None and status.step == 3

        assert wait_until(at_step_3, DEADLINE_SECONDS)
        command.send_signal(number)
        _, said = command.communicate(timeout=DEADLINE_SECONDS)

    assert command.returncode == 0
    assert "stopping: the run writes a checkpoint" in said
    assert "stopped at step 2 of 3" in said
    again = f"resume with: lectern train {home}/spec.yaml --resume --home {home}\n"
    assert said.endswith(again)


def test_usr1_stops_the_run_at_its_next_checkpoint(home, stand_ins):
    argv = [sys.executable, "-m", "lectern", "train", str(write_spec(home, GOES_ON))]
    with subprocess.Popen(
        [*argv, "--home", str(home)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        folder = RunFolder(home / "runs/run")
        # As early as it can be: the trainer does not know the signal yet.
        assert wait_until(folder.log_path.exists, DEADLINE_SECONDS)
        for _ in range(3):
            command.send_signal(signal.SIGUSR1)
        _, said = command.communicate(timeout=DEADLINE_SECONDS)
    assert command.returncode == 0
    assert "the run stops at its next checkpoint" in said
    assert "stopped at step 3 of 3" in said


def test_a_short_run_needs_no_warm_up_set_and_can_be_made_longer(lectern, home, stand_ins):
    first = lectern("train", write_spec(home, schedule="{steps: 3}"), "--home", home)
    assert first.code == 0
    longer = write_spec(home, schedule="{steps: 40}")
    assert lectern("train", longer, "--home", home, "--resume").code == 0
    schedule = RunFolder(home / "runs/run").read_spec().schedule
    assert (schedule.steps, schedule.warmup_steps) == (40, 0)


def test_a_run_that_is_still_being_trained_is_named_with_its_process(lectern, home):
    spec = load_spec(write_spec(home))
    folder = RunFolder.create(home / "runs", "run", spec)
    status = Status("run", RunState.RUNNING, 0.0, 0.0, 4711, 0.0, step=2, steps=3)
    folder.write_status(status)
    with folder.locked():
        refused = lectern("train", write_spec(home), "--home", home, "--resume")

    assert refused.code == 4
    assert "is being trained by process 4711, at step 2; wait for its end" in refused.err
    assert refused.err.endswith("stop: kill 4711\n")


def test_the_status_of_an_earlier_trainer_is_ignored(home, stand_ins):
    spec = load_spec(write_spec(home, DIES_MUTE))
    roots = Roots.of_home(home)
    folder = RunFolder.create(roots.runs, "run", spec)
    seen = []
    folder.write_spec(load_spec(write_spec(home, FAILS)))
    assert run_trainer(folder, roots) == 1
    folder.write_spec(spec)

    (folder.checkpoints_path / "step-00000002").mkdir(parents=True)

    def show(view):
        seen.append((view.state, view.step, view.steps))

    assert run_trainer(folder, roots, resume=True, show=show) == 1

    assert set(seen) == {(RunState.STARTING, 2, spec.schedule.steps)}
    assert f"started with {folder.path} --resume" in folder.log_path.read_text()


def test_a_second_run_of_the_same_name_is_refused(lectern, home, stand_ins):
    lectern("train", write_spec(home), "--home", home)

    ended = lectern("train", write_spec(home), "--home", home)

    assert ended.code == 4
    assert "exists already; set --resume to continue that run, or change name" in ended.err


def test_a_resume_may_change_the_steps_and_little_else(lectern, home, stand_ins):
    lectern("train", write_spec(home, FAILS), "--home", home)

    refused = lectern(
        "train", write_spec(home, FAILS, optimizer="{learning_rate: 1}"), "--home", home, "--resume"
    )
    assert refused.code == 2
    assert "optimizer.learning_rate: was 0.0001, is 1.0; a resume may not change it" in refused.err
    assert load_spec(home / "runs/run/spec.yaml").optimizer.learning_rate == 1e-4

    taken = lectern(
        "train", write_spec(home, FAILS, checkpoint="{every_steps: 2}"), "--home", home, "--resume"
    )
    assert taken.code == 1
    assert load_spec(home / "runs/run/spec.yaml").checkpoint.every_steps == 2


def test_a_resume_keeps_what_the_data_decided_when_the_run_began(lectern, home, stand_ins):
    """Null in the file means: as the run has it, also if an older version decided otherwise."""
    write_shards(home / "data/chats", np.arange(90) % 8, mask=np.ones(90), documents=[0, 30, 60])
    data = {"data": "{path: chats, seq_len: 40}", "batch": "{sequences_per_step: 2}"}
    words = ("train", write_spec(home, FAILS, **data), "--home", home)
    lectern(*words)
    path = home / "runs/run/spec.yaml"
    written = load_spec(path).data
    assert (written.attention_across_documents, written.long_chats) == (False, "cut")
    assert "the loss is not finite" in lectern(*words, "--resume").err
    assert load_spec(path).data == written

    old = path.read_text().replace("  long_chats: cut\n", "")
    path.write_text(old.replace("across_documents: false", "across_documents: true"))
    assert "the loss is not finite" in lectern(*words, "--resume").err
    kept = load_spec(path).data
    assert (kept.attention_across_documents, kept.long_chats) == (True, None)

    data["data"] = "{path: chats, seq_len: 40, attention_across_documents: false}"
    refused = lectern("train", write_spec(home, FAILS, **data), "--home", home, "--resume")
    assert refused.code == 2
    assert "data.attention_across_documents: was True, is False; a resume may" in refused.err


def test_a_resume_counts_the_rows_that_its_run_began_with(lectern, home, stand_ins):
    """Of a release that cut chats at the ends of rows, and needed no record of where they begin."""
    write_shards(home / "data/chats", np.arange(200) % 8, content="text")
    data = {"data": "{path: chats, seq_len: 8, attention_across_documents: true}"}
    words = ("train", write_spec(home, FAILS, **data), "--home", home)
    lectern(*words)
    write_shards(home / "data/chats", np.arange(200) % 8, mask=np.ones(200))
    assert "does not record where each begins" in lectern(*words, "--resume").err
    checkpoint = home / "runs/run/checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 1}')
    assert "the loss is not finite" in lectern(*words, "--resume").err


def test_a_resume_that_cannot_work_leaves_the_run_as_it_is(lectern, home, stand_ins):
    words = ("--home", home, "--resume")
    lectern("train", write_spec(home), "--home", home)
    folder = RunFolder(home / "runs/run")
    (folder.checkpoints_path / "step-00000003").mkdir(parents=True)
    before = folder.spec_path.read_bytes(), folder.status_path.read_bytes()

    fewer = lectern("train", write_spec(home, schedule="{steps: 2, warmup_steps: 1}"), *words)
    same = lectern("train", write_spec(home), *words)

    assert (fewer.code, same.code) == (2, 4)
    assert "schedule.steps: is 2, but the run has already made 3 steps" in fewer.err
    assert "has made all 3 steps; to continue, resume with a higher schedule.steps" in same.err
    assert (folder.spec_path.read_bytes(), folder.status_path.read_bytes()) == before

    folder.status_path.write_bytes(b"")  # as a power cut may leave it: it is not needed
    more = lectern("train", write_spec(home, schedule="{steps: 4, warmup_steps: 1}"), *words)
    assert more.code == 0, more
    assert folder.read_spec().schedule.steps == 4


def test_a_resume_with_another_teacher_is_refused(lectern, home, stand_ins):
    teacher = FakeTeacher()
    with serving(teacher) as address:
        changes = {"teacher": f"{{address: '{address}'}}", "objective": "{alpha: 0.5}"}
        assert lectern("train", write_spec(home, FAILS, **changes), "--home", home).code == 1
        words = ("train", write_spec(home, FAILS, **changes), "--home", home, "--resume")
        assert "the loss is not finite" in lectern(*words).err
        teacher.model.model_id, teacher.model.fingerprint = "other", "d" * 64
        for further in ((), ("--dry-run",)):
            ended = lectern(*words, *further)
            assert ended.code == 6, ended
            assert (
                "serves other (fingerprint dddddddddddd), but the run was accepted with fake-"
                in (ended.err + ended.out)
            )


def test_there_must_be_something_to_resume(lectern, home, stand_ins):
    ended = lectern("train", write_spec(home), "--home", home, "--resume")

    assert ended.code == 3
    assert not (home / "runs").exists()


def test_a_spec_file_that_is_not_there_is_not_found(lectern, home, stand_ins):
    for command in (("train", "--home", home), ("runs", "create")):
        ended = lectern(*command, home / "gone.yaml")
        assert (ended.code, ended.err) == (3, f"error: no file {home}/gone.yaml\n")


def test_an_impossible_run_is_refused_before_its_folder_is_made(lectern, home, stand_ins):
    spec = write_spec(home)
    spec.write_text(spec.read_text().replace("config: tiny", "config: nothing"))

    ended = lectern("train", spec, "--home", home)

    assert ended.code == 2
    assert ended.err == (
        "error: student.config: no model folder 'nothing' under the models root "
        f"({home}/models); there are: tiny\n"
    )
    assert not (home / "runs").exists()


def test_metrics_are_read_once_and_only_when_complete(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    assert reader.new() == []
    path.write_bytes(b'{"step": 1}\n{"step"')
    assert reader.new() == [{"step": 1}]
    with path.open("ab") as file:
        file.write(b": 2}\n")
    assert reader.new() == [{"step": 2}]
    assert os.path.getsize(path) == 24


def test_metrics_that_were_cut_back_and_grew_on_are_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    reader.new()
    path.write_bytes(b'{"step": 1}\n{"step": 2, "again": 1}\n{"step": 3}\n')
    assert [record["step"] for record in reader.new()] == [1, 2, 3]
