"""Greedy samples of student and teacher; the teacher is asked only once."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from lectern_common.errors import InvalidSpec, RepresentationNotOffered
from lectern_common.json_lines import read_json_lines
from lectern_common.run.folder import RunFolder
from lectern_common.run.status import RunState
from lectern_models.continuation import greedy_continuations
from protos import teacher_pb2
from student_trainer.evaluation.samples import Prompts, Samples, TeacherTexts, encoded_prompts
from student_trainer.objective.loss import Objective
from student_trainer.stop import Stop, StopRequested
from student_trainer.student.student import CausalStudent
from student_trainer.targets import TeacherTargets
from student_trainer.teacher.local import InProcessTeacher
from tests.support.models import write_tiny_tokenizer
from tests.support.training.parts import (
    parts_of,
    settings_of,
    tiny_student,
    trained,
    twin,
)
from tests.support.training.runs import Home, events_of, status_of
from tests.support.training.runs import trained as run_to_its_end
from tests.support.training.wire_teacher import Serving, WireTeacher, refused


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> CausalStudent:
    return tiny_student(tmp_path_factory.mktemp("student"), spread=0.5, attention_dropout=0.3)


def words(ids: Sequence[int]) -> str:
    return " ".join(str(one) for one in ids)


PROMPTS = Prompts(["one", "two", "three"], [[3, 1, 4], [1], [5, 9, 2, 6, 5]], 6, frozenset(), words)


def generated(model: Any) -> list[str]:
    """Returns what transformers itself generates after each prompt, one by one."""
    model.eval()
    texts = []
    for ids in PROMPTS.ids:
        whole = model.generate(
            torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=39
        )
        texts.append(words(whole[0, len(ids) :].tolist()))
    return texts


class Held:
    """A teacher that answers only once released, and counts what it is asked."""

    def __init__(self, teacher: Any, error: Exception | None = None) -> None:
        self.go = threading.Event()
        self.asked: list[list[int]] = []
        self._teacher, self._error = teacher, error

    def score(
        self, sequences: Any, positions: Any, representation: Any, temperature: float
    ) -> TeacherTargets:
        self.go.wait(20)
        if self._error is not None:
            raise self._error
        self.asked.append([len(ids) for ids in sequences])
        assert (representation.kind, representation.top_k, temperature) == ("top_k", 1, 1.0)
        assert [list(np.flatnonzero(one)) for one in positions] == [
            [len(ids) - 1] for ids in sequences
        ]
        targets: TeacherTargets = self._teacher.score(
            sequences, positions, representation, temperature
        )
        return targets


def test_both_write_what_transformers_generates(
    student: CausalStudent, teacher: InProcessTeacher, tmp_path: Path
) -> None:
    texts = TeacherTexts(teacher, PROMPTS)
    samples = Samples(PROMPTS, tmp_path / "samples.jsonl", texts, Stop())
    student.train()
    lines = samples.lines(student, is_last=True)
    assert student.training
    assert [line["prompt"] for line in lines] == ["one", "two", "three"]
    assert [line["student"] for line in lines] == generated(student.model)
    assert [line["teacher"] for line in lines] == generated(teacher._model)
    assert lines[0]["student"] != lines[0]["teacher"]


def test_the_teacher_is_asked_once_per_token_for_all_prompts(
    student: CausalStudent, teacher: InProcessTeacher, tmp_path: Path
) -> None:
    held = Held(teacher)
    held.go.set()
    samples = Samples(PROMPTS, tmp_path / "s", TeacherTexts(held, PROMPTS), Stop())
    first, second = (samples.lines(student, is_last=True) for _ in range(2))
    assert first == second
    assert held.asked == [[3 + made, 1 + made, 5 + made] for made in range(6)]


def test_the_loop_waits_for_a_slow_teacher_only_at_the_last_evaluation(
    student: CausalStudent, teacher: InProcessTeacher, tmp_path: Path
) -> None:
    held = Held(teacher)
    samples = Samples(PROMPTS, tmp_path / "s", TeacherTexts(held, PROMPTS), Stop())
    assert [line["teacher"] for line in samples.lines(student, is_last=False)] == [None] * 3
    held.go.set()
    last = samples.lines(student, is_last=True)
    assert [line["teacher"] for line in last] == generated(teacher._model)


def test_a_stop_ends_the_wait_for_the_teacher(teacher: InProcessTeacher) -> None:
    held, stop = Held(teacher), Stop()
    texts = TeacherTexts(held, PROMPTS)
    stop.request()
    assert texts.get(stop) is None
    held.go.set()


def test_a_stop_ends_the_students_generation_between_two_tokens(
    student: CausalStudent, tmp_path: Path
) -> None:
    stop, forwards = Stop(), 0

    def stopping(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == 2:
            stop.request()

    student.train()
    handle = student.model.register_forward_hook(stopping)
    try:
        with pytest.raises(StopRequested):
            Samples(PROMPTS, tmp_path / "s", None, stop).lines(student, is_last=False)
    finally:
        handle.remove()
    assert forwards == 2
    assert student.training


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RepresentationNotOffered("no top_k here"), ["no top_k here"]),
        (StopRequested(), []),
    ],
)
def test_missing_texts_of_the_teacher_are_reported_once(
    student: CausalStudent, tmp_path: Path, error: Exception, said: list[str]
) -> None:
    held, heard = Held(None, error), []
    held.go.set()
    path = tmp_path / "samples.jsonl"
    texts = TeacherTexts(held, PROMPTS)
    samples = Samples(
        PROMPTS, path, texts, Stop(), lambda kind, **details: heard.append((kind, details))
    )
    for step in (0, 7):
        samples.write(step, samples.lines(student, is_last=True))
    assert heard == [
        ("left_out", {"metric": "the teacher's samples", "message": text}) for text in said
    ]
    assert [line["teacher"] for line in read_json_lines(path)] == [None] * 6


def test_an_end_of_text_ends_a_sample(student: CausalStudent, tmp_path: Path) -> None:
    whole = [text.split() for text in generated(student.model)]
    end = int(whole[0][2])
    prompts = Prompts(PROMPTS.texts, PROMPTS.ids, 6, frozenset([end]), words)
    samples = Samples(prompts, tmp_path / "s", None, Stop())
    lines = samples.lines(student, is_last=True)
    cut = [text[: text.index(str(end))] if str(end) in text else text for text in whole]
    assert [line["student"] for line in lines] == [" ".join(text) for text in cut]
    assert [line["teacher"] for line in lines] == [None] * 3


def test_samples_without_a_file_are_not_written(student: CausalStudent) -> None:
    samples = Samples(PROMPTS, None, None, Stop())
    lines = samples.lines(student, is_last=True)
    assert [line["student"] for line in lines] == generated(student.model)
    samples.write(0, lines)
    samples.keep_before(0)


def test_a_resume_drops_lines_that_it_rewrites_and_an_incomplete_one(
    student: CausalStudent, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    samples = Samples(PROMPTS, path, None, Stop())
    lines = samples.lines(student, is_last=False)
    for step in (0, 5, 10):
        samples.write(step, lines)
    with path.open("ab") as file:
        file.write(b'{"step": 15, "pro')
    samples.keep_before(6)
    kept = read_json_lines(path)
    assert [line["step"] for line in kept] == [0, 0, 0, 5, 5, 5]
    assert kept[3:] == [{"step": 5, **line} for line in lines]
    assert path.read_bytes().endswith(b"\n")


def test_the_loop_writes_samples_at_every_evaluation(
    student: CausalStudent, teacher: InProcessTeacher, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    samples = Samples(PROMPTS, path, TeacherTexts(teacher, PROMPTS), Stop())
    learner = twin(student)
    parts = parts_of(learner, teacher=teacher, samples=samples)
    trained(parts, settings_of(4, objective=Objective(0.3, 2.0), evaluate_every=2))
    lines = read_json_lines(path)
    assert [line["step"] for line in lines] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert [line["student"] for line in lines[:3]] == generated(student.model)
    assert [line["student"] for line in lines[-3:]] == generated(learner.model)
    assert [line["teacher"] for line in lines[-3:]] == generated(teacher._model)


# ---- prompts as tokens -------------------------------------------------------------------------


def encoded(folder: Path, *texts: str, **limits: int) -> Prompts:
    path = write_tiny_tokenizer(folder)
    limits = {"vocab_size": 300, "max_tokens": 40, **limits}
    return encoded_prompts(texts, 10, path, ends=[0], **limits)


def test_prompts_are_encoded_and_decoded_by_the_tokenizer(tmp_path: Path) -> None:
    prompts = encoded(tmp_path, "def add(", "<b>\u00e9</b>")
    assert [prompts.decode(ids) for ids in prompts.ids] == ["def add(", "<b>\u00e9</b>"]
    assert (prompts.num_tokens, prompts.ends) == (10, frozenset([0]))


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"vocab_size": 70}, r"prompts.1: has token \d+; the student's ids are below 70"),
        ({"max_tokens": 12}, r"prompts.1: has \d+ tokens; with the 10 of evaluation.prompt_tokens"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused_by_its_number(
    tmp_path: Path, limits: dict[str, int], why: str
) -> None:
    with pytest.raises(InvalidSpec, match=why):
        encoded(tmp_path, "A", "zzzzzz", **limits)


def test_a_prompt_begins_as_the_data_does_but_not_twice(tmp_path: Path) -> None:
    plain = encoded(tmp_path, "def add(", "<|endoftext|>def add(")
    prompts = encoded(tmp_path, "def add(", "<|endoftext|>def add(", begins=0)
    assert prompts.ids == [[0, *plain.ids[0]], list(plain.ids[1])]
    longest = len(prompts.ids[0]) + 10
    with pytest.raises(InvalidSpec, match="exceeds"):
        encoded(tmp_path, "def add(", begins=0, max_tokens=longest - 1)


def test_a_prompt_has_the_tokens_that_stand_beside_the_tokenizer(tmp_path: Path) -> None:
    path = write_tiny_tokenizer(tmp_path)
    number = Tokenizer.from_file(str(path)).get_vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|turn|>": number}))
    prompts = encoded_prompts(["<|turn|>"], 10, path, ends=[0], vocab_size=400, max_tokens=40)
    assert prompts.ids == [[number]]


def test_prompts_without_a_tokenizer_are_refused_with_advice() -> None:
    with pytest.raises(InvalidSpec, match=r"needs a tokenizer\.json .* --tokenizer"):
        encoded_prompts(["A"], 10, None, ends=(), vocab_size=300, max_tokens=40)


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.tokenized()
    home.model("wide", weights=False, vocab_size=300)
    return home


def sampling(**sections: Any) -> dict[str, Any]:
    return {
        "student": {"config": "wide"},
        "data": {"path": "bytes"},
        "evaluation": {"every_steps": 3, "prompts": ["def add(", "import"], "prompt_tokens": 5},
        **sections,
    }


def lines_of(folder: RunFolder) -> list[dict[str, Any]]:
    return read_json_lines(folder.path / "samples.jsonl")


def prompts_of(home: Home, *texts: str) -> Prompts:
    tokenizer = home.path / "data" / "bytes" / "tokenizer.json"
    return encoded_prompts(texts, 5, tokenizer, ends=[0], vocab_size=300, max_tokens=4096)


def begins_with(request: teacher_pb2.LogitsForBatchRequest, ids: Sequence[int]) -> bool:
    tokens = np.frombuffer(request.token_ids, "<u4")[: request.sequence_lengths[0]]
    return bool(tokens[: len(ids)].tolist() == list(ids))


def test_a_run_writes_its_samples_and_the_teachers(home: Home) -> None:
    with Serving(WireTeacher(vocab_size=300)) as serving:
        sections = sampling(
            teacher={"address": serving.address}, objective={"alpha": 0.5, "temperature": 2.0}
        )
        folder = home.run(**sections)
        assert run_to_its_end(home, folder) == 0, status_of(folder).message
        # The likeliest token after each prefix, computed from the teacher's definition.
        wire = serving.teacher
        prompts = prompts_of(home, "def add(", "import")
        expected = greedy_continuations(
            prompts.ids,
            5,
            lambda all_ids: [
                int(wire.logits(wire.hidden(ids)[-1:], 300)[0].argmax()) for ids in all_ids
            ],
            prompts.ends,
        )
        asked = [request for request in wire.requests if begins_with(request, prompts.ids[0])]
        assert len(asked) == max(len(ids) for ids in expected) == 5
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == [0, 0, 3, 3, 6, 6]
    assert [line["prompt"] for line in lines[:2]] == ["def add(", "import"]
    assert [line["teacher"] for line in lines[-2:]] == [prompts.decode(ids) for ids in expected]


def test_prompts_of_a_run_begin_and_end_as_its_data_does(home: Home) -> None:
    """The `wide` config names no ends; `bytes` begins documents with token 0 and ends them in 5."""
    home.tokenized("begun")
    path = home.path / "data" / "begun" / "manifest.json"
    edges = {"bos_policy": "document", "bos_token_id": 0, "eos_policy": "after", "eos_token_id": 5}
    path.write_text(json.dumps({**json.loads(path.read_text()), **edges}))
    with Serving(WireTeacher(vocab_size=300)) as serving:
        sections = sampling(
            data={"path": "begun"},
            teacher={"address": serving.address},
            objective={"alpha": 0.5, "temperature": 2.0},
        )
        folder = home.run(**sections)
        assert run_to_its_end(home, folder) == 0, status_of(folder).message
        prompt = [0, *prompts_of(home, "def add(").ids[0]]
        assert any(begins_with(request, prompt) for request in serving.teacher.requests)
    (assembled,) = events_of(folder, "assembled")
    assert {name: assembled[name] for name in edges} == edges
    (warned,) = events_of(folder, "beginnings_differ")
    assert "(id 0), but the tokenizer of" in warned["message"]
    assert "--bos-policy none" in warned["message"]
    export = json.loads((folder.export_path / "generation_config.json").read_text())
    assert (export["bos_token_id"], export["eos_token_id"]) == (0, 5)


def test_a_killed_run_writes_each_sample_once(home: Home) -> None:
    straight = home.run(**sampling())
    assert run_to_its_end(home, straight) == 0
    expected = lines_of(straight)
    assert [line["step"] for line in expected] == [0, 0, 3, 3, 6, 6]

    # What a kill leaves: a checkpoint of step 3, samples beyond it, an incomplete line.
    folder = home.run(**sampling())
    stop = Stop()
    assert run_to_its_end(home, folder, stop=stop) == 0
    for path in folder.checkpoints_path.iterdir():
        if int(path.name[-8:]) > 4:
            path.rename(home.path / f"gone-{path.name}")
    with (folder.path / "samples.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "prompt": "torn')
    assert run_to_its_end(home, folder, resume=True) == 0
    assert lines_of(folder) == expected


def test_a_run_that_starts_over_writes_its_first_samples_once(home: Home) -> None:
    folder = home.run(**sampling())
    stop = Stop()
    stop.request()
    (folder.path / "samples.jsonl").write_text(
        json.dumps({"step": 0, "prompt": "a", "student": "b", "teacher": None}) + "\n"
    )
    assert run_to_its_end(home, folder, resume=True) == 0
    assert [line["step"] for line in lines_of(folder)] == [0, 0, 3, 3, 6, 6]


def test_prompts_without_any_tokenizer_fail_the_run_with_a_message(home: Home) -> None:
    folder = home.run(evaluation={"prompts": ["A"]})
    assert run_to_its_end(home, folder) == 1
    status = status_of(folder)
    assert (status.state, status.reason) == (RunState.FAILED, "invalid_spec")
    assert "evaluation.prompts: needs a tokenizer.json" in str(status.message)


def test_a_teacher_without_top_k_only_costs_its_samples(home: Home) -> None:
    with Serving(WireTeacher(vocab_size=300)) as serving:
        answer, prompt = serving.teacher.answer, prompts_of(home, "def add(").ids[0]
        refusal = refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            "top_k is not on offer",
            lectern_reason="representation_not_offered",
        )

        def without_top_k(request: Any, context: Any = None) -> Any:
            is_sample = begins_with(request, prompt)
            return refusal(request, context) if is_sample else iter(answer(request))

        serving.teacher.faults += [without_top_k] * 200
        folder = home.run(
            **sampling(
                teacher={"address": serving.address}, objective={"alpha": 0.5, "temperature": 2.0}
            )
        )
        assert run_to_its_end(home, folder) == 0, status_of(folder).message
    assert {line["teacher"] for line in lines_of(folder)} == {None}
    [event] = events_of(folder, "left_out")
    assert event["metric"] == "the teacher's samples"
    assert "top_k is not on offer" in event["message"]
