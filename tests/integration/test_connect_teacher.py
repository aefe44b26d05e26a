"""connect_teacher, which users call, against a teacher server in its own process."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lectern_common.errors import InvalidRequest, Misconfigured, TeacherUnavailable, Unauthenticated
from lectern_common.wire.formats import Representation
from student_trainer.data.sources import SyntheticBatchSource
from student_trainer.pipeline import Pipeline
from student_trainer.student.student import FixtureStudent
from student_trainer.targets import DenseTargets
from student_trainer.teacher.remote import connect_teacher
from tests.support.servers import teacher_process

V = 31
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secrets") / "token"
    path.write_text(TOKEN + "\n")
    return path


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, token_file: Path) -> Iterator[str]:
    options = ("--engine", "fixture", "--vocab-size", str(V), "--token-file", str(token_file))
    with teacher_process(tmp_path_factory.mktemp("teacher"), *options) as teacher:
        yield teacher.address


def test_a_connected_teacher_describes_itself_and_answers(address: str, token_file: Path) -> None:
    with connect_teacher(address, V, token_file=token_file) as teacher:
        assert teacher.model.logit_width == V
        assert teacher.vocab_size() == V
        tokens = [np.array([3, 7, 5], np.uint32)]
        targets = teacher.score(tokens, [np.ones(3, bool)], Representation("dense"), 1.0)
    assert isinstance(targets, DenseTargets)
    # The fixture's most likely token is the previous one.
    assert targets.logits_NV.argmax(-1).tolist() == [3, 7, 5]


def test_a_pipeline_learns_from_a_connected_teacher(address: str, token_file: Path) -> None:
    with connect_teacher(address, V, token_file=token_file) as teacher:
        result = (
            Pipeline(epochs=2, batches_per_epoch=3, batch_size=2, seq_len=4, learning_rate=0.1)
            .with_teacher(teacher)
            .with_student(FixtureStudent(V))
            .with_batch_source(SyntheticBatchSource(V))
            .execute()
        )
    first, *_, last = result.metrics["loss"]
    assert last < first


def test_a_caller_without_the_token_is_turned_away(address: str) -> None:
    with pytest.raises(Unauthenticated):
        connect_teacher(address, V)


def test_an_absent_server_is_given_up_after_the_outage_budget() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(TeacherUnavailable):
            connect_teacher(nobody, V, outage_budget_seconds=0)


def test_invalid_arguments_are_refused_before_any_request(
    tmp_path: Path,
) -> None:
    with pytest.raises(InvalidRequest, match=r"address 'teacher' must be host:port"):
        connect_teacher("teacher", V)
    with pytest.raises(InvalidRequest, match="vocab_size is 0"):
        connect_teacher("127.0.0.1:1", 0)
    with pytest.raises(Misconfigured, match="cannot read token_file"):
        connect_teacher("127.0.0.1:1", V, token_file=tmp_path / "none")
