"""A teacher behind a real gRPC connection that misbehaves in every way."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from lectern_common.errors import (
    InvalidRequest,
    LecternError,
    RepresentationNotOffered,
    TeacherError,
    TeacherUnavailable,
    Unauthenticated,
    WrongModel,
)
from lectern_common.teacher.identity import TeacherIdentity
from lectern_common.teacher.replicas import TeacherReplicas
from lectern_common.wire.formats import Representation
from lectern_models.logits.output_head import OutputHead
from lectern_models.logits.sampled import draw, uniforms
from protos import teacher_pb2 as pb
from student_trainer.stop import Stop, StopRequested
from student_trainer.targets import (
    DenseTargets,
    HiddenTargets,
    SampledTargets,
    TopKTargets,
    for_new_texts,
)
from student_trainer.teacher.calls import TeacherCalls
from student_trainer.teacher.local import FixtureTeacher
from student_trainer.teacher.remote import RemoteTeacher
from tests.support.training.wire_teacher import (
    Serving,
    WireTeacher,
    broken_after,
    changed,
    refused,
)

DENSE, HIDDEN = Representation("dense"), Representation("hidden")
SEQUENCES = [np.array([1, 5, 2], np.uint32), np.array([7], np.uint32), np.array([3, 3], np.uint32)]
EVERY = [np.ones(len(sequence), bool) for sequence in SEQUENCES]


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving(WireTeacher()) as server:
        yield server


def remote(
    *servings_and_path: Any,
    token: str | None = None,
    vocab_size: int = 30,
    deadline: float = 20.0,
    budget: float = 20.0,
    stop: Stop | None = None,
    told: list[str | None] | None = None,
) -> RemoteTeacher:
    *servings, tmp_path = servings_and_path
    return RemoteTeacher(
        TeacherCalls(
            TeacherReplicas(",".join(serving.address for serving in servings), token=token),
            deadline_seconds=deadline,
            outage_budget_seconds=budget,
            stop=stop or Stop(),
            on_outage=lambda message: None if told is None else told.append(message),
        ),
        run_id="run-1",
        vocab_size=vocab_size,
        device=torch.device("cpu"),
        cache_root=tmp_path,
    )


def dense(teacher: RemoteTeacher) -> np.ndarray:
    targets = teacher.score(SEQUENCES, EVERY, DENSE, 2.0)
    assert isinstance(targets, DenseTargets)
    return targets.logits_NV.numpy()


def oracle(serving: Serving, vocab_size: int = 30) -> np.ndarray:
    states = np.concatenate([serving.teacher.hidden(part) for part in SEQUENCES])
    return np.asarray(serving.teacher.logits(states, vocab_size))


def test_dense_rows_are_the_teachers_logits_over_the_students_vocabulary(
    serving: Serving, tmp_path: Path
) -> None:
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        np.testing.assert_array_equal(dense(teacher), oracle(serving))
    (request,) = serving.teacher.requests
    assert request.run_id == "run-1"
    assert request.expected_fingerprint == serving.teacher.model.fingerprint
    assert request.positions == pb.POSITIONS_ALL
    assert request.position_mask == b""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
def test_hidden_rows_times_the_head_are_the_dense_rows(
    tmp_path: Path, dtype: str, bias: bool
) -> None:
    with (
        Serving(WireTeacher(dtype=dtype, bias=bias)) as serving,
        remote(serving, tmp_path) as teacher,
    ):
        teacher.connect()
        if bias and dtype == "bfloat16":
            drawn_V = serving.teacher.bias_V
            assert drawn_V is not None
            serving.teacher.bias_V = np.round(drawn_V).astype(np.float32)  # exact in bfloat16
        targets = teacher.score(SEQUENCES, EVERY, HIDDEN, 2.0)
        assert isinstance(targets, HiddenTargets)
        assert targets.hidden_ND.dtype == getattr(torch, dtype)
        assert targets.head.vocab_size == 30
        logits = targets.head.logits(targets.hidden_ND)
        np.testing.assert_allclose(logits.numpy(), oracle(serving), atol=1e-5)


def test_top_k_rows_carry_the_largest_logits_and_the_temperature(
    serving: Serving, tmp_path: Path
) -> None:
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        targets = teacher.score(SEQUENCES, EVERY, Representation("top_k", 4), 2.0)
    assert isinstance(targets, TopKTargets)
    rows = oracle(serving)
    np.testing.assert_array_equal(targets.ids_NK.numpy(), np.argsort(-rows, kind="stable")[:, :4])
    np.testing.assert_array_equal(targets.logits_NK.numpy(), -np.sort(-rows)[:, :4])
    expected = np.logaddexp.reduce(rows.astype(np.float64) / 2.0, axis=1)
    np.testing.assert_allclose(targets.log_normalizer_t_N.numpy(), expected, rtol=1e-6)
    assert targets.temperature == 2.0


def test_sampled_rows_equal_those_of_an_in_process_teacher(
    serving: Serving, tmp_path: Path
) -> None:
    """The test server draws with code of its own; lectern_models draws the same."""
    positions = [np.array([False, True, True]), np.array([True]), np.array([True, False])]
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        asked = Representation("sampled", num_draws=60, seed=2**64 - 1)
        targets = teacher.score(SEQUENCES, positions, asked, 2.0)
    assert isinstance(targets, SampledTargets)
    logits = torch.from_numpy(oracle(serving)[[1, 2, 3, 4]])
    values = [uniforms(2**64 - 1, *row, 60) for row in zip(SEQUENCES, positions, strict=True)]
    expected = draw(logits, torch.from_numpy(np.concatenate(values)), 2.0)
    assert torch.equal(targets.ids_R, expected.ids_R)
    assert torch.equal(targets.counts_R, expected.counts_R)
    assert np.diff(targets.row_starts).tolist() == expected.row_lengths_C.tolist()
    torch.testing.assert_close(targets.log_probs_R, expected.log_probs_R, rtol=1e-6, atol=1e-7)
    assert (targets.num_draws, targets.temperature, targets.vocab_size) == (60, 2.0, 30)
    (request,) = serving.teacher.requests
    assert request.representation == pb.Representation(
        kind=pb.REPRESENTATION_SAMPLED, num_draws=60, seed=2**64 - 1
    )


def test_only_the_asked_positions_are_answered(serving: Serving, tmp_path: Path) -> None:
    positions = [np.array([False, True, True]), np.array([False]), np.array([True, False])]
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        targets = teacher.score(SEQUENCES, positions, DENSE, 1.0)
    assert isinstance(targets, DenseTargets)
    np.testing.assert_array_equal(targets.logits_NV.numpy(), oracle(serving)[[1, 2, 4]])
    assert serving.teacher.requests[0].positions == pb.POSITIONS_MASK


def test_new_texts_are_asked_about_as_such_and_answered_the_same(
    serving: Serving, tmp_path: Path
) -> None:
    serving.teacher.model.limits.max_sequences = 2  # several requests
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        usual = dense(teacher)
        new = for_new_texts(teacher).score(SEQUENCES, EVERY, DENSE, 2.0)
    assert isinstance(new, DenseTargets)
    assert np.array_equal(new.logits_NV.numpy(), usual)
    said = [request.comes_once for request in serving.teacher.requests]
    assert said == [False] * 2 + [True] * 2


def test_teachers_without_a_cache_are_asked_about_new_texts_as_ever() -> None:
    fixture = FixtureTeacher(30)
    assert for_new_texts(fixture) is fixture


def test_logits_for_batch_gives_last_positions(serving: Serving, tmp_path: Path) -> None:
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        assert teacher.vocab_size() == 30
        assert teacher.logits_for_batch([]) == []
        rows = teacher.logits_for_batch([sequence.tolist() for sequence in SEQUENCES])
        every = teacher.logits_per_position([sequence.tolist() for sequence in SEQUENCES])
        with pytest.raises(InvalidRequest):
            teacher.logits_for_batch([[1], []])
    np.testing.assert_array_equal(np.concatenate(every), oracle(serving))
    np.testing.assert_array_equal(np.array(rows, np.float32), oracle(serving)[[2, 3, 5]])


def test_received_bytes_count_the_reply_messages(serving: Serving, tmp_path: Path) -> None:
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        teacher.score(SEQUENCES, EVERY, HIDDEN, 1.0)
        received, positions = teacher.take_received()
        assert teacher.take_received() == (0, 0)
    replies = serving.teacher.answer(serving.teacher.requests[0])
    assert received == sum(len(reply.SerializeToString()) for reply in replies)
    assert positions == 6


def test_the_head_is_fetched_once_and_then_read_from_disk(serving: Serving, tmp_path: Path) -> None:
    for _ in range(2):
        with remote(serving, tmp_path) as teacher:
            teacher.connect()
            teacher.score(SEQUENCES, EVERY, HIDDEN, 1.0)
            head = teacher.output_head()
            teacher.output_head()
    assert serving.teacher.head_requests == 1
    np.testing.assert_array_equal(head.weight_VD.numpy(), serving.teacher.head_VD[:30])
    # Another vocab_size is another head.
    with remote(serving, tmp_path, vocab_size=20) as teacher:
        teacher.connect()
        assert teacher.output_head().vocab_size == 20
    assert serving.teacher.head_requests == 2


def test_the_head_is_fetched_once_when_several_requests_need_it_first(
    serving: Serving, tmp_path: Path
) -> None:
    with remote(serving, tmp_path) as teacher, ThreadPoolExecutor(4) as pool:
        teacher.connect()
        all_ask = threading.Barrier(4)

        def head() -> OutputHead:
            all_ask.wait(timeout=20)
            return teacher.output_head()

        first, *others = [future.result() for future in [pool.submit(head) for _ in range(4)]]
    assert serving.teacher.head_requests == 1
    assert all(other is first for other in others)


def test_a_damaged_cached_head_is_fetched_again(serving: Serving, tmp_path: Path) -> None:
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        teacher.output_head()
    (path,) = (tmp_path / "heads").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        np.testing.assert_array_equal(
            teacher.output_head().weight_VD.numpy(), serving.teacher.head_VD[:30]
        )
    assert serving.teacher.head_requests == 2


def test_a_stream_that_breaks_half_way_is_requested_again_whole(
    serving: Serving, tmp_path: Path
) -> None:
    told: list[str | None] = []
    for messages in (0, 1, 2, 3):
        serving.teacher.faults.append(broken_after(messages, serving.teacher))
    with remote(serving, tmp_path, told=told) as teacher:
        teacher.connect()
        np.testing.assert_array_equal(dense(teacher), oracle(serving))
        received, positions = teacher.take_received()
    requests = [request.SerializeToString() for request in serving.teacher.requests]
    assert len(requests) == 5
    assert len(set(requests)) == 1
    assert positions == 6
    replies = serving.teacher.answer(serving.teacher.requests[0])
    assert received == sum(reply.ByteSize() for reply in replies)
    assert len(told) == 2
    assert told[0] is not None
    assert told[1] is None


def test_a_teacher_that_goes_away_and_comes_back_is_waited_for(
    serving: Serving, tmp_path: Path
) -> None:
    told: list[str | None] = []
    away = threading.Event()
    with remote(serving, tmp_path, told=told) as teacher:
        teacher.connect()
        serving.down()

        def see(message: str | None) -> None:
            told.append(message)
            away.set()

        teacher._calls._outage._on_change = see
        answers: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: answers.append(dense(teacher)))
        thread.start()
        assert away.wait(20)
        serving.up()
        thread.join(20)
    np.testing.assert_array_equal(answers[0], oracle(serving))
    assert told[-1] is None


def test_a_teacher_that_stays_away_is_given_up_after_the_budget(
    serving: Serving, tmp_path: Path
) -> None:
    with remote(serving, tmp_path, budget=0.5) as teacher:
        teacher.connect()
        serving.down()
        with pytest.raises(TeacherUnavailable, match=r"outage_budget_seconds is 0\.5"):
            dense(teacher)


def test_connecting_waits_for_a_teacher_that_is_not_there_yet(
    serving: Serving, tmp_path: Path
) -> None:
    serving.down()
    with remote(serving, tmp_path) as teacher:
        threading.Timer(0.3, serving.up).start()
        assert teacher.connect().model_id == "wire"


def test_an_overloaded_teacher_is_asked_again_and_is_no_outage(
    serving: Serving, tmp_path: Path
) -> None:
    told: list[str | None] = []
    busy = refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "queue full",
        lectern_reason="overloaded",
        grpc_retry_pushback_ms="20",
    )
    serving.teacher.faults += [busy, busy]
    with remote(serving, tmp_path, budget=0, told=told) as teacher:
        teacher.connect()
        np.testing.assert_array_equal(dense(teacher), oracle(serving))
    assert told == []


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request", InvalidRequest),
        (grpc.StatusCode.FAILED_PRECONDITION, "wrong_model", WrongModel),
        (
            grpc.StatusCode.FAILED_PRECONDITION,
            "representation_not_offered",
            RepresentationNotOffered,
        ),
        (grpc.StatusCode.DATA_LOSS, "teacher_error", TeacherError),
        (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", Unauthenticated),
        (grpc.StatusCode.UNIMPLEMENTED, "", TeacherError),
    ],
)
def test_errors_that_a_retry_cannot_fix_are_raised_at_once(
    serving: Serving,
    tmp_path: Path,
    code: grpc.StatusCode,
    reason: str,
    error: type[LecternError],
) -> None:
    serving.teacher.faults.append(refused(code, "no", lectern_reason=reason))
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        with pytest.raises(error):
            dense(teacher)
    assert len(serving.teacher.requests) == 1


def flip(replies: list[Any]) -> None:
    """Changes one bit of the first piece."""
    payload = bytearray(replies[1].piece.payload)
    payload[0] ^= 1
    replies[1].piece.payload = bytes(payload)


def test_a_reply_damaged_in_transit_is_requested_again(serving: Serving, tmp_path: Path) -> None:
    told: list[str | None] = []
    serving.teacher.faults += [changed(serving.teacher, flip)] * 2
    with remote(serving, tmp_path, told=told) as teacher:
        teacher.connect()
        np.testing.assert_array_equal(dense(teacher), oracle(serving))
        assert teacher.take_received()[1] == 6  # damaged ones are not counted
    assert len(serving.teacher.requests) == 3
    assert told == []


def test_replies_damaged_three_times_in_a_row_are_refused(serving: Serving, tmp_path: Path) -> None:
    serving.teacher.faults += [changed(serving.teacher, flip)] * 3
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        with pytest.raises(TeacherError, match="checksum"):
            dense(teacher)
        np.testing.assert_array_equal(dense(teacher), oracle(serving))
    assert len(serving.teacher.requests) == 4


def test_a_damaged_head_is_requested_again(serving: Serving, tmp_path: Path) -> None:
    class Damaging(WireTeacher):
        def GetOutputHead(self, request: Any, context: Any) -> Iterator[Any]:
            for reply in super().GetOutputHead(request, context):
                if reply.WhichOneof("part") == "trailer" and self.head_requests == 1:
                    reply.trailer.crc32 ^= 1
                yield reply

    with Serving(Damaging()) as damaging, remote(damaging, tmp_path) as teacher:
        teacher.connect()
        head = teacher.output_head()
        np.testing.assert_array_equal(head.weight_VD.numpy(), damaging.teacher.head_VD[:30])
        assert damaging.teacher.head_requests == 2


@pytest.fixture
def pair() -> Iterator[tuple[Serving, Serving]]:
    """Two replicas of one model."""
    with Serving(WireTeacher()) as one, Serving(WireTeacher()) as two:
        yield one, two


def test_replicas_share_the_requests(pair: tuple[Serving, Serving], tmp_path: Path) -> None:
    with remote(*pair, tmp_path) as teacher:
        teacher.connect()
        for _ in range(4):
            np.testing.assert_array_equal(dense(teacher), oracle(pair[0]))
    assert [len(serving.teacher.requests) for serving in pair] == [2, 2]


def test_one_replica_gone_is_not_an_outage_but_both_gone_are(
    pair: tuple[Serving, Serving], tmp_path: Path
) -> None:
    told: list[str | None] = []
    gone = threading.Event()

    def tell(message: str | None) -> None:
        told.append(message)
        gone.set()

    one, two = pair
    with remote(one, two, tmp_path, deadline=120) as teacher:
        teacher._calls._outage._on_change = tell
        teacher.connect()
        one.teacher.faults.append(broken_after(2, one.teacher))
        np.testing.assert_array_equal(dense(teacher), oracle(two))
        one.down()
        for _ in range(5):
            np.testing.assert_array_equal(dense(teacher), oracle(two))
        assert told == []
        two.down()
        answers: list[np.ndarray] = []
        thread = threading.Thread(target=lambda: answers.append(dense(teacher)))
        thread.start()
        assert gone.wait(20)
        assert told[0] is not None and one.address in told[0] and two.address in told[0]
        one.up()  # whichever it is
        thread.join(15)
        assert not thread.is_alive()
    np.testing.assert_array_equal(answers[0], oracle(one))
    assert told[1:] == [None]


def test_a_replica_that_hangs_costs_one_deadline(
    pair: tuple[Serving, Serving], tmp_path: Path
) -> None:
    release = threading.Event()

    def hang(request: Any, context: Any) -> Iterator[Any]:
        release.wait(30)
        yield from ()

    told: list[str | None] = []
    pair[0].teacher.faults += [hang] * 8
    with remote(*pair, tmp_path, deadline=0.5, told=told) as teacher:
        teacher.connect()
        teacher._calls._replicas._clock = lambda: 0.0  # it rests as long as the test takes
        for _ in range(6):
            np.testing.assert_array_equal(dense(teacher), oracle(pair[1]))
        release.set()
    assert [len(serving.teacher.requests) for serving in pair] == [1, 6]
    assert told == []


def test_a_replica_with_another_model_is_refused_by_name(tmp_path: Path) -> None:
    with Serving(WireTeacher()) as one, Serving(WireTeacher(seed=1)) as two:
        with remote(one, two, tmp_path) as teacher, pytest.raises(WrongModel) as caught:
            teacher.connect()
        assert one.address in str(caught.value) and two.address in str(caught.value)
        # A replica that comes back later as another model.
        two.down()
        with remote(one, two, tmp_path) as teacher:
            teacher.connect()
            two.up()
            grpc.channel_ready_future(teacher._calls._replicas._channels[1]._channel).result(20)
            with pytest.raises(WrongModel, match=two.address):
                for _ in range(2):
                    dense(teacher)


def test_another_model_at_the_address_is_refused(serving: Serving, tmp_path: Path) -> None:
    with remote(serving, tmp_path) as teacher:
        other = TeacherIdentity("other", "b" * 64)
        with pytest.raises(WrongModel, match=r"serves wire .*, but .* accepted with other \(.*bbb"):
            teacher.connect(other)
        teacher.connect(TeacherIdentity.of(serving.teacher.model))
        serving.teacher.model.fingerprint = "c" * 64
        with pytest.raises(WrongModel):
            dense(teacher)
        with pytest.raises(WrongModel):
            teacher.output_head()


@pytest.mark.parametrize(
    "fingerprint",
    ["", "/evil", "../../evil", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", "\u0661" * 64],
)
def test_an_invalid_fingerprint_is_refused_before_it_names_a_file(
    serving: Serving, tmp_path: Path, fingerprint: str
) -> None:
    serving.teacher.model.fingerprint = fingerprint
    with remote(serving, tmp_path) as teacher:
        with pytest.raises(TeacherError, match="must be 64 lower-case hex digits"):
            teacher.connect()
        with pytest.raises(ValueError, match="connect"):
            teacher.output_head()


def test_a_teacher_that_hangs_is_noticed_within_the_deadline(
    serving: Serving, tmp_path: Path
) -> None:
    release = threading.Event()

    def hang(request: Any, context: Any) -> Iterator[Any]:
        release.wait(30)
        yield from ()

    serving.teacher.faults.append(hang)
    with remote(serving, tmp_path, deadline=0.5) as teacher:
        teacher.connect()
        np.testing.assert_array_equal(dense(teacher), oracle(serving))
    release.set()


@pytest.mark.parametrize("piece_first", [False, True])
def test_a_stop_ends_a_call_in_flight(serving: Serving, tmp_path: Path, piece_first: bool) -> None:
    stop, asked, release = Stop(), threading.Event(), threading.Event()

    def hang(request: Any, context: Any) -> Iterator[Any]:
        if piece_first:
            yield from serving.teacher.answer(request)[:2]
        asked.set()
        release.wait(30)

    serving.teacher.faults.append(hang)
    with remote(serving, tmp_path, stop=stop) as teacher:
        teacher.connect()
        caught: list[BaseException] = []

        def call() -> None:
            try:
                dense(teacher)
            except BaseException as error:
                caught.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert asked.wait(20)
        stop.request()
        thread.join(20)
        assert not thread.is_alive()
        release.set()
        assert isinstance(caught[0], StopRequested)
        with pytest.raises(StopRequested):
            dense(teacher)


def test_a_stop_ends_the_wait_for_an_absent_teacher(serving: Serving, tmp_path: Path) -> None:
    serving.down()
    stop = Stop()
    with remote(serving, tmp_path, stop=stop, budget=3600) as teacher:
        threading.Timer(0.2, stop.request).start()
        with pytest.raises(StopRequested):
            teacher.connect()


def test_every_call_carries_the_token(serving: Serving, tmp_path: Path) -> None:
    with remote(serving, tmp_path, token="secret") as teacher:
        teacher.connect()
        dense(teacher)
    assert {entry["authorization"] for entry in serving.teacher.metadata} == {"Bearer secret"}


def test_several_threads_may_ask_at_the_same_time(serving: Serving, tmp_path: Path) -> None:
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        answers: list[np.ndarray] = []
        threads = [
            threading.Thread(target=lambda: answers.append(dense(teacher))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(answers) == 8
    for answer in answers:
        np.testing.assert_array_equal(answer, oracle(serving))


@pytest.mark.parametrize(
    "representation",
    [DENSE, HIDDEN, Representation("top_k", top_k=4), Representation("sampled", num_draws=6)],
    ids=lambda representation: representation.kind,
)
def test_more_sequences_than_a_request_takes_are_split_into_several(
    serving: Serving, tmp_path: Path, representation: Representation
) -> None:
    """Documents of a row that do not attend to each other are one sequence each."""
    with remote(serving, tmp_path) as teacher:
        teacher.connect()
        whole = teacher.score(SEQUENCES, EVERY, representation, 2.0)
        before = len(serving.teacher.requests)
        teacher.model.limits.max_sequences = 2
        parts = teacher.score(SEQUENCES, EVERY, representation, 2.0)
    lengths = [list(asked.sequence_lengths) for asked in serving.teacher.requests[before:]]
    assert lengths == [[3, 1], [2]]
    assert len(parts) == len(whole) == 6 and type(parts) is type(whole)
    for name, value in vars(whole).items():
        ours = getattr(parts, name)
        if isinstance(value, torch.Tensor | np.ndarray):
            assert ours.tolist() == value.tolist(), name
        elif name != "head":
            assert ours == value, name
