"""Whole on-policy runs on tiny models: what is learnt, what is kept, what a resume makes of it."""

import json
import math
import shutil
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lectern_common.checks.preflight import startable
from lectern_common.errors import Incompatible, InvalidSpec
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_common.spec.load import dump_spec, parse_spec
from lectern_common.stages.precompute import RecordOptions
from lectern_common.teacher.identity import TeacherIdentity
from student_trainer.data.select import open_data
from student_trainer.record.plan import planned_parts
from student_trainer.stop import Stop
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.student_trainer.data.test_prompt_set import write_prompts
from tests.student_trainer.generating.rollouts.conftest import OnPolicy
from tests.support.servers import teacher_thread
from tests.support.training.forks import forked
from tests.support.training.runs import (
    Home,
    events_of,
    lines_of,
    status_of,
    trained,
)
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import Serving, WireTeacher

TIMES = ("time", "progress/seconds", "perf/", "time/", "memory/", "wire/")
OF_TIME = ("rollout/seconds", "rollout/tokens_per_second", "_share")


def weights(folder: RunFolder) -> bytes:
    return (folder.export_path / "model.safetensors").read_bytes()


def kept(folder: RunFolder) -> list[dict[str, Any]]:
    return read_json_lines(folder.rollouts_path)


def measured(folder: RunFolder) -> list[dict[str, Any]]:
    """Returns the lines of metrics without what depends on the clock."""
    return [
        {
            key: value
            for key, value in line.items()
            if not key.startswith(TIMES)
            and (not key.endswith(OF_TIME) or key == "rollout/finished_share")
        }
        for line in lines_of(folder)
    ]


def with_steps(folder: RunFolder, steps: int) -> None:
    spec = folder.read_spec().model_dump(mode="json")
    spec["schedule"]["steps"] = steps
    folder.spec_path.write_text(dump_spec(parse_spec(spec)))


class StopAt(Stop):
    """Requests a stop at the n-th look at it, wherever that is."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks

    def check(self) -> None:
        self._left -= 1
        if self._left == 0:
            self.request("asked")
        super().check()


CONSTANT = {"schedule": {"steps": 6, "warmup_steps": 1, "decay": "constant"}}
KINDS: dict[str, dict[str, Any]] = {
    "all rows": {},
    "stale": {"rollout": {"stale_steps": 1}},
    "half of the rows": {
        "rollout": {"fraction": 0.5, "samples_per_prompt": 2},
        "objective": {"alpha": 0.3, "divergence": "jsd"},
    },
    "half of the rows, stale": {
        "rollout": {"fraction": 0.5, "stale_steps": 1, "top_k": 9, "top_p": 0.9},
        "objective": {"alpha": 0.3, "divergence": "forward_kl", "temperature": 2.0},
    },
}


def test_the_student_learns_what_it_writes(home: Home, on_policy: OnPolicy) -> None:
    folder = on_policy(schedule={"steps": 40, "warmup_steps": 2}, batch={"sequences_per_step": 16})
    assert trained(home, folder) == 0, status_of(folder).message
    lines = lines_of(folder)[1:]
    first, last = lines[:5], lines[-5:]
    for line in lines:
        assert line["rollout/rows"] == 16
        assert line["data/valid_tokens"] == line["rollout/mean_length"] * 16
        assert line["loss/total"] == line["loss/kd"] == line["rollout/kd"]
        assert "loss/ce" not in line
        shares = [line[f"rollout/{name}_share"] for name in ("writing", "scoring", "learning")]
        assert sum(shares) == pytest.approx(1)
        assert 0 < line["rollout/entropy"] < math.log(40)
    assert sum(line["loss/kd"] for line in last) < 0.8 * sum(line["loss/kd"] for line in first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_anywhere_and_resumed_is_the_undisturbed_run(
    home: Home, on_policy: OnPolicy, kind: str
) -> None:
    whole = on_policy(**KINDS[kind], **CONSTANT)
    assert trained(home, whole) == 0, status_of(whole).message
    for looks in (9, 33, 58):
        folder = on_policy(**KINDS[kind], **CONSTANT)
        resumes = 0
        while trained(home, folder, resume=resumes > 0, stop=StopAt(looks)) == 0:
            if status_of(folder).state is RunState.SUCCEEDED:
                break
            resumes += 1
            assert status_of(folder).state is RunState.STOPPED
            if resumes > 3:  # it may never come further than where it stops
                looks = 10**9
        assert resumes
        assert weights(folder) == weights(whole)
        assert measured(folder) == measured(whole)
        assert kept(folder) == kept(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_made_longer_is_the_longer_run(home: Home, on_policy: OnPolicy, kind: str) -> None:
    """With rollouts in flight, the last step has written those of the step after it."""
    whole = on_policy(**KINDS[kind], **CONSTANT)
    assert trained(home, whole) == 0
    folder = on_policy(**KINDS[kind], **CONSTANT)
    with_steps(folder, 3)
    assert trained(home, folder) == 0
    with_steps(folder, 6)
    assert trained(home, folder, resume=True) == 0
    assert weights(folder) == weights(whole)


def test_stale_rollouts_are_those_of_the_weights_one_step_before(
    home: Home, on_policy: OnPolicy
) -> None:
    """Steps 0 and 1 learn what the first weights write; fresh ones differ from the second on."""
    fresh, stale = (on_policy(**CONSTANT, rollout={"stale_steps": n}) for n in (0, 1))
    for folder in (fresh, stale):
        assert trained(home, folder) == 0
    texts = [
        [[line["ids"] for line in kept(folder) if line["step"] == step] for step in (1, 2, 3)]
        for folder in (fresh, stale)
    ]
    assert texts[0][0] == texts[1][0]
    assert texts[0][1:] != texts[1][1:]
    frozen = on_policy(**CONSTANT, optimizer={"learning_rate": 1e-30})
    assert trained(home, frozen) == 0
    unchanged = [line["ids"] for line in kept(frozen) if line["step"] == 2]
    assert texts[1][1] == unchanged


def test_the_file_of_rollouts_has_the_divergence_at_each_token(
    home: Home, on_policy: OnPolicy
) -> None:
    folder = on_policy(rollout={"samples_per_prompt": 2, "prompt_tokens": 3})
    assert trained(home, folder) == 0
    lines = kept(folder)
    assert {line["step"] for line in lines} == set(range(1, 7))
    for step in range(1, 7):
        own = [line for line in lines if line["step"] == step]
        assert [(line["row"], line["sample"]) for line in own] == [(0, 0), (1, 1), (2, 0), (3, 1)]
        assert own[0]["prompt_ids"] == own[1]["prompt_ids"] != own[2]["prompt_ids"]
        assert all(len(line["prompt_ids"]) == 3 for line in own)
        for line in own:
            assert line["end"] in (None, 5)
            assert 5 not in line["ids"]
            assert len(line["kl"]) == len(line["ids"]) + (line["end"] is not None)
            assert line["mean_kl"] == pytest.approx(sum(line["kl"]) / len(line["kl"]), abs=1e-4)
            if line["end"] is None:
                assert len(line["ids"]) == 6
        (of_step,) = [line for line in lines_of(folder) if line["step"] == step]
        every = [value for line in own for value in line["kl"]]
        assert of_step["rollout/kd"] == pytest.approx(sum(every) / len(every), abs=1e-4)
        ended = [line["end"] is not None for line in own]
        assert of_step["rollout/finished_share"] == sum(ended) / 4


def test_a_run_may_keep_no_rollouts(home: Home, on_policy: OnPolicy) -> None:
    folder = on_policy(rollout={"keep": False})
    assert trained(home, folder) == 0
    assert not folder.rollouts_path.exists()


def test_texts_are_kept_if_there_is_a_tokenizer(home: Home, on_policy: OnPolicy) -> None:
    home.tokenized()
    home.model("reader", seed=4, vocab_size=300, tokenizer=True)
    home.model("reading-teacher", hidden=32, seed=8, vocab_size=300, tokenizer=True)
    engine = transformers_engine.load(
        str(home.path / "models" / "reading-teacher"), EngineSettings("float32", device="cpu")
    )
    with teacher_thread(engine) as address:
        folder = on_policy(
            teacher={"address": address}, student={"init": "reader"}, data={"path": "bytes"}
        )
        assert trained(home, folder) == 0, status_of(folder).message
    for line in kept(folder):
        assert "".join(line["tokens"]).startswith(line["text"])
        assert len(line["tokens"]) == len(line["kl"])
        assert isinstance(line["prompt"], str)


@pytest.mark.parametrize(
    "student",
    [
        {"lora": {"rank": 2, "dropout": 0.5}},
        {"dtype": "bfloat16"},
    ],
    ids=["lora", "bfloat16"],
)
def test_other_students_write_too_and_resume_exactly(
    home: Home, on_policy: OnPolicy, student: dict[str, Any]
) -> None:
    whole = on_policy(student=student, rollout={"stale_steps": 1}, **CONSTANT)
    assert trained(home, whole) == 0, status_of(whole).message
    folder = on_policy(student=student, rollout={"stale_steps": 1}, **CONSTANT)
    assert trained(home, folder, stop=StopAt(40)) == 0
    assert status_of(folder).state is RunState.STOPPED
    assert trained(home, folder, resume=True) == 0
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize(
    ("changes", "keeps"),
    [
        ({}, True),
        ({"rollout": {"keep": False}}, True),
        ({"rollout": {"temperature": 0.5}}, False),
        ({"seed": 9}, False),
        ({"batch": {"sequences_per_step": 2}}, False),
        ({"data": {"seq_len": 6}}, False),
        ({"rollout": None}, False),
    ],
)
def test_a_fork_goes_on_with_the_rollouts_in_flight_if_its_student_writes_the_same_rows(
    home: Home, on_policy: OnPolicy, changes: dict[str, Any], keeps: bool
) -> None:
    source = on_policy(rollout={"stale_steps": 1}, **CONSTANT)
    assert trained(home, source) == 0
    newest = sorted(source.checkpoints_path.glob("step-*"))[-1]
    held = load_file(newest / "rollouts.safetensors")
    assert held["step"].item() == 6
    assert held["rows_R"].tolist() == [0, 1, 2, 3]
    assert held["lengths_R"].sum() == len(held["ids"])
    state = json.loads((newest / "state.json").read_bytes())
    identity = TeacherIdentity(state["teacher_model"], state["teacher_fingerprint"])
    fork = forked(home, source, {"schedule": {"steps": 8}, **changes}, teacher=identity)
    begins = fork.checkpoints_path / newest.name
    assert (begins / "rollouts.safetensors").exists() is keeps
    assert trained(home, fork, resume=True) == 0, status_of(fork).message
    assert lines_of(fork)[-1]["step"] == 8
    if changes == {}:
        with_steps(source, 8)
        assert trained(home, source, resume=True) == 0
        assert weights(fork) == weights(source)


def test_damaged_rollouts_in_flight_make_an_earlier_checkpoint_the_newest(
    home: Home, on_policy: OnPolicy
) -> None:
    whole = on_policy(rollout={"stale_steps": 1}, **CONSTANT)
    assert trained(home, whole) == 0
    folder = on_policy(rollout={"stale_steps": 1}, **CONSTANT)
    assert trained(home, folder) == 0
    path = sorted(folder.checkpoints_path.glob("step-*"))[-1] / "rollouts.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with_steps(folder, 7)
    assert trained(home, folder, resume=True) == 0
    assert events_of(folder, "checkpoint_set_aside")


@pytest.mark.parametrize(
    ("every_steps", "where"),
    [(1, "the last checkpoint is of step 1"), (1000, "there is no checkpoint")],
)
def test_a_student_whose_logits_are_not_finite_ends_as_diverged_and_says_what_to_do(
    home: Home, on_policy: OnPolicy, every_steps: int, where: str
) -> None:
    folder = on_policy(
        optimizer={"learning_rate": 1e38, "max_grad_norm": 1e30},
        checkpoint={"every_steps": every_steps},
    )
    assert trained(home, folder) == 1
    status = status_of(folder)
    message = str(status.message)
    assert status.reason == "diverged", message
    assert "logits are not finite" in message
    assert message.endswith(f"; {where}. Start a new run with a lower learning rate")


@pytest.fixture(scope="module")
def prompts(home: Home) -> list[list[int]]:
    """Prompts of unequal lengths, in the set `prompts`."""
    draw = np.random.default_rng(8)
    found = [draw.integers(6, 40, length).tolist() for length in (1, 9, 4, 2, 7, 3)]
    write_prompts(home.path / "data" / "prompts", found)
    return found


def test_prompts_of_a_set_are_each_continued_once_an_epoch(
    home: Home, on_policy: OnPolicy, prompts: list[list[int]]
) -> None:
    """Rows of data are not needed: there are fewer of them than a step has rows."""
    write_shards(home.path / "data" / "few", np.arange(17))
    rollout = {"prompts": "prompts", "prompt_tokens": None, "samples_per_prompt": 2}
    folder = on_policy(
        rollout=rollout, data={"path": "few", "validation_fraction": 0.5}, schedule={"steps": 6}
    )
    found = startable(folder.read_spec(), home.roots)
    assert found.prompts is not None and found.prompts.longest == 9
    assert trained(home, folder) == 0, status_of(folder).message
    lines = kept(folder)
    for first in (1, 4):  # four rows a step are two prompts: an epoch is three steps
        own = [line for line in lines if first <= line["step"] < first + 3]
        asked = sorted(line["prompt_ids"] for line in own)
        assert asked == sorted(prompt for prompt in prompts for _ in range(2))
    assert lines_of(folder)[3]["data/epoch"] == 1


def test_prompts_that_have_changed_end_a_resume(
    home: Home, on_policy: OnPolicy, prompts: list[list[int]]
) -> None:
    folder = home.path / "data" / "passing"
    write_prompts(folder, prompts)
    run = on_policy(rollout={"prompts": "passing", "prompt_tokens": None})
    assert trained(home, run) == 0
    with_steps(run, 8)
    write_prompts(folder, prompts[::-1])
    assert trained(home, run, resume=True) == 1
    assert "the prompts of run" in str(status_of(run).message)
    shutil.rmtree(folder)
    assert trained(home, run, resume=True) == 1
    assert "no prompt set 'passing'" in str(status_of(run).message)


@pytest.mark.parametrize("longest", [9, 5])
def test_a_prompt_and_its_completion_must_fit(
    home: Home, on_policy: OnPolicy, prompts: list[list[int]], longest: int
) -> None:
    """By the checks before a run and by the trainer, for the student; 128 positions."""
    source = {"prompts": "prompts", "prompt_tokens": None} if longest == 9 else {"prompt_tokens": 5}
    for over in (0, 1):
        rollout = {**source, "max_new_tokens": 128 - longest + over}
        folder = on_policy(rollout=rollout, schedule={"steps": 1, "warmup_steps": 0})
        if over:
            with pytest.raises(Incompatible, match="128 positions of the student"):
                startable(folder.read_spec(), home.roots)
            assert trained(home, folder) == 1
            assert "128 positions of the student" in str(status_of(folder).message)
        else:
            startable(folder.read_spec(), home.roots)


def test_a_set_that_is_not_there_or_a_dataset_is_named(home: Home, on_policy: OnPolicy) -> None:
    for name, why in (("absent", "no prompt set 'absent'"), ("text", "is a dataset, not a prompt")):
        folder = on_policy(rollout={"prompts": name, "prompt_tokens": None})
        with pytest.raises(InvalidSpec, match=why) as caught:
            startable(folder.read_spec(), home.roots)
        assert caught.value.problems[0][0] == "rollout.prompts"


def test_rows_of_chats_are_no_prompts(home: Home, on_policy: OnPolicy) -> None:
    tokens = np.arange(200) % 37
    starts = np.arange(0, 200, 10)
    write_shards(home.path / "data" / "chats", tokens, documents=starts, mask=np.ones(200))
    folder = on_policy(data={"path": "chats"})
    with pytest.raises(InvalidSpec, match=r"rollout\.prompt_tokens"):
        startable(folder.read_spec(), home.roots)
    assert trained(home, folder) == 1
    assert "rollout.prompt_tokens" in str(status_of(folder).message)


def test_a_record_is_not_made_for_rows_that_nobody_knows_yet(
    home: Home, on_policy: OnPolicy
) -> None:
    spec = on_policy(rollout={"fraction": 0.5}).read_spec()
    data = open_data(spec, home.roots, 40, None)
    with pytest.raises(InvalidSpec, match="rollout: has no use in a record"):
        planned_parts(spec, data, RecordOptions())


def test_the_teacher_is_told_that_written_texts_never_come_again(
    home: Home, on_policy: OnPolicy
) -> None:
    with Serving(WireTeacher()) as serving:
        folder = on_policy(
            teacher={"address": serving.address},
            objective={"alpha": 0.5, "divergence": "forward_kl"},
            rollout={"fraction": 0.5},
            schedule={"steps": 5, "warmup_steps": 0},
        )
        assert trained(home, folder) == 0, status_of(folder).message
        requests = list(serving.teacher.requests)
    written = [request for request in requests if request.comes_once]
    assert len(written) == sum(line["rollout/rows"] for line in lines_of(folder)[1:]) > 0
    assert all(len(request.sequence_lengths) == 1 for request in written)
    assert len(requests) > len(written)
