"""The checks of a dry run that need torch."""

from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.checks.needs.memory import FreeMemory
from student_trainer.run.dry_run import look
from tests.support.training.runs import VOCAB_SIZE, Home
from tests.support.training.shards import write_shards
from tests.support.training.wire_teacher import Serving, WireTeacher


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("home"))
    home.model("deep", layers=3, seed=3)
    return home


def looked(
    home: Home, *, asks_teacher: bool = False, free: FreeMemory | None = None, **sections: Any
) -> dict[str, Any]:
    spec = home.spec("run", **sections)
    return look(spec, home.roots, asks_teacher=asks_teacher, free=free)


def by_subject(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {check["subject"]: (check["outcome"], check["message"]) for check in found["checks"]}


def test_device_student_and_memory_are_reported(home: Home) -> None:
    before = {str(path) for path in home.path.rglob("*")}
    found = looked(home)
    assert by_subject(found) == {
        "device": ("pass", "cpu"),
        "memory": ("pass", "the run fits into free memory"),
    }
    assert found["memory"]["parameters"] == 4 * found["shape"]["num_parameters"]
    assert found["memory"]["teacher_head"] == 0
    assert found["shape"]["vocab_size"] == VOCAB_SIZE
    assert {str(path) for path in home.path.rglob("*")} == before


def test_the_size_of_an_absent_student_is_skipped(home: Home) -> None:
    gone = by_subject(looked(home, student={"config": "gone"}))
    assert gone["memory"] == (
        "skip",
        "the student is not on this machine, so its size is not known",
    )
    hub = by_subject(looked(home, student={"config": None, "init": "some/model"}))
    assert hub["memory"] == ("skip", "the student is a hub id, so its size is not known yet")


def test_kept_layers_and_adapters_enter_the_shape(home: Home) -> None:
    init = {"config": None, "init": "deep"}
    whole = looked(home, student=init)["shape"]
    half = looked(home, student={**init, "keep_every_nth_layer": 2})["shape"]
    assert (whole["num_layers"], half["num_layers"]) == (3, 2)
    embedding = VOCAB_SIZE * 16
    outside = embedding + 16 + (0 if 2 * embedding > whole["num_parameters"] else embedding)
    layer = whole["num_parameters"] - half["num_parameters"]
    assert whole["num_parameters"] == 3 * layer + outside

    adapted = looked(home, student={**init, "lora": {"rank": 2, "targets": ["up_proj"]}})
    assert adapted["shape"]["num_trainable"] == 3 * 2 * (16 + 32)
    assert adapted["shape"]["num_parameters"] == whole["num_parameters"] + 3 * 2 * (16 + 32)
    assert adapted["memory"]["optimizer"] == 8 * 3 * 2 * (16 + 32)


def test_a_run_that_does_not_fit_is_a_failed_check(home: Home) -> None:
    found = looked(home, free=FreeMemory("cpu", 1000, 1000))
    outcome, message = by_subject(found)["memory"]
    assert outcome == "fail"
    assert "choose a smaller student, set student.lora" in message
    assert found["free"] == {"device": "cpu", "device_bytes": 1000, "host_bytes": 1000}


@pytest.mark.parametrize("kind", ["hidden", "top_k", "sampled", "dense"])
def test_the_teachers_answers_are_probed(home: Home, kind: str) -> None:
    with Serving(WireTeacher()) as serving:
        teacher: dict[str, Any] = {"address": serving.address, "representation": kind}
        if kind == "top_k":
            teacher["top_k"] = 5
        sections: dict[str, Any] = {"teacher": teacher, "objective": {"alpha": 0.5}}
        quiet = looked(home, **sections)
        assert serving.teacher.requests == []
        found = looked(home, asks_teacher=True, **sections)
        requests = serving.teacher.requests
    assert "answers" not in by_subject(quiet)
    outcome, message = by_subject(found)["answers"]
    assert outcome == "pass"
    assert message.startswith(f"{kind} at 8 positions is consistent and agrees with ")
    tokens = np.frombuffer(requests[0].token_ids, "<u4")
    stream = np.fromfile(home.path / "data/text/shard-00000.bin", "<u4")
    assert tokens.tolist() == stream[:16].tolist()
    assert found["memory"]["teacher_head"] == (4 * VOCAB_SIZE * 16 if kind == "hidden" else 0)
    assert found["memory"]["answers"] > 0
    assert not home.roots.cache.exists()


def test_only_a_part_of_a_wide_head_is_probed(home: Home) -> None:
    home.model("wide", vocab_size=3000, weights=False)
    with Serving(WireTeacher(vocab_size=3000)) as serving:
        found = looked(
            home,
            asks_teacher=True,
            student={"config": "wide"},
            teacher={"address": serving.address},
            objective={"alpha": 0.5},
        )
        asked = {request.vocab_size for request in serving.teacher.requests}
    assert asked == {1024}
    assert by_subject(found)["answers"][0] == "pass"
    assert found["memory"]["teacher_head"] == 4 * 3000 * 16


def test_inconsistent_answers_are_a_failed_check(home: Home) -> None:
    class OtherHead(WireTeacher):
        def GetOutputHead(self, request: Any, context: Any) -> Any:
            own, self.head_VD = self.head_VD, -self.head_VD
            yield from super().GetOutputHead(request, context)
            self.head_VD = own

    with Serving(OtherHead()) as serving:
        sections: dict[str, Any] = {
            "teacher": {"address": serving.address},
            "objective": {"alpha": 0.5},
        }
        found = looked(home, asks_teacher=True, **sections)
    (check,) = [check for check in found["checks"] if check["subject"] == "answers"]
    assert (check["outcome"], check["reason"]) == ("fail", "teacher_error")
    assert "answers are inconsistent at row 0, position 0, token" in check["message"]


@pytest.mark.parametrize("lengths", [(30, 30), (1, 2)])
def test_chats_that_do_not_fill_a_probed_row_are_asked_about(
    home: Home, lengths: tuple[int, ...]
) -> None:
    total = sum(lengths)
    folder = home.path / "data" / f"chats-{total}"
    documents = np.cumsum([0, *lengths[:-1]])
    tokens, mask = np.arange(total) % VOCAB_SIZE, np.ones(total)
    write_shards(folder, tokens, vocab_size=VOCAB_SIZE, documents=documents, mask=mask)
    with Serving(WireTeacher()) as serving:
        found = looked(
            home,
            asks_teacher=True,
            data={"path": folder.name, "seq_len": 512},
            teacher={"address": serving.address},
            objective={"alpha": 0.5},
        )
        asked = np.frombuffer(serving.teacher.requests[0].token_ids, "<u4")
    assert by_subject(found)["answers"][0] == "pass"
    assert asked.tolist() == tokens.tolist()


@pytest.mark.parametrize("kind", ["hidden", "dense", "top_k"])
def test_reverse_kl_of_a_masking_teacher_is_for_the_trainer_to_judge(home: Home, kind: str) -> None:
    """Only it reads the weights of a student that may rule out the same ids."""
    masking = WireTeacher(bias=True)
    assert masking.bias_V is not None
    masking.bias_V[7] = -np.inf
    with Serving(masking) as serving:
        teacher: dict[str, Any] = {"address": serving.address, "representation": kind}
        if kind == "top_k":
            teacher["top_k"] = VOCAB_SIZE
        sections: dict[str, Any] = {
            "teacher": teacher,
            "student": {"config": None, "init": "deep"},
            "objective": {"alpha": 0.5, "divergence": "reverse_kl"},
        }
        trained = looked(home, asks_teacher=True, **sections)
        new = looked(home, asks_teacher=True, **{**sections, "student": {}})
        forward = {**sections, "objective": {"alpha": 0.5, "divergence": "forward_kl"}}
        finite = looked(home, asks_teacher=True, **forward)
    (check,) = [check for check in trained["checks"] if check["subject"] == "answers"]
    assert (check["outcome"], check["reason"]) == ("warn", None)
    assert "the run starts only if the student rules out the same ids" in check["message"]
    assert "reverse_kl is infinite: the teacher rules out id 7 at row 0" in check["message"]
    outcome, message = by_subject(new)["answers"]  # new weights rule out nothing
    assert outcome == "fail" and "rules out id 7" in message
    assert by_subject(finite)["answers"][0] == "pass"


def test_the_size_of_an_absent_hub_id_is_left_open(home: Home) -> None:
    found = looked(home, student={"config": None, "init": "org/model"})
    assert by_subject(found)["memory"][0] == "skip"
    assert "shape" not in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_a_failed_check_and_the_cpu_takes_several_ranks(home: Home) -> None:
    assert by_subject(looked(home, device={"kind": "cuda"}))["device"][0] == "fail"
    several = looked(home, device={"count": 4})
    assert by_subject(several)["device"] == ("pass", "cpu, 4 of them")
    assert several["memory"]["optimizer"] == -(-looked(home)["memory"]["optimizer"] // 4)
    assert several["needed_bytes"] == 4 * sum(several["memory"].values())
