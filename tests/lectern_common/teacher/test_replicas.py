"""Several servers behind one address, over real sockets; their turns follow a fake clock."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest

from lectern_common.errors import (
    InvalidRequest,
    Overloaded,
    TeacherUnavailable,
    Unauthenticated,
    WrongModel,
)
from lectern_common.teacher import replicas as module
from lectern_common.teacher.channel import TeacherChannel
from lectern_common.teacher.replicas import LONGEST_REST_SECONDS, TeacherReplicas, resolved
from protos import teacher_pb2_grpc
from tests.support.fakes import NOBODY, FakeClock, FakeTeacher, serving
from tests.support.servers import wait_for

A, B, C = "a:1", "b:1", "c:1"


class Asked:
    """An `ask` that records the servers it is called with, and fails for those in `errors`."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.order: list[str] = []

    def __call__(self, channel: TeacherChannel) -> str:
        self.order.append(channel.address)
        error = self.errors.get(channel.address.partition(":")[0])
        if error is not None:
            raise error
        return channel.address


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def three(clock: FakeClock) -> Iterator[TeacherReplicas]:
    with TeacherReplicas(",".join((A, B, C)), clock=clock) as replicas:
        yield replicas


def test_servers_are_asked_in_turn(three: TeacherReplicas) -> None:
    assert [three.first_answer(Asked()) for _ in range(7)] == [A, B, C, A, B, C, A]


def test_a_server_that_is_away_is_skipped_and_then_asked_last(
    three: TeacherReplicas, clock: FakeClock
) -> None:
    asked = Asked(a=TeacherUnavailable("a is away"))
    assert [three.first_answer(asked) for _ in range(4)] == [B, B, C, B]
    assert asked.order == [A, B, B, C, B]  # once, then not any more
    clock.advance(1.0)
    asked.order.clear()
    for _ in range(3):
        three.first_answer(asked)
    assert asked.order.count(A) == 1  # its rest was over


def test_a_server_that_stays_away_is_asked_ever_more_rarely_and_first_again_once_it_answers(
    three: TeacherReplicas, clock: FakeClock
) -> None:
    away = Asked(a=TeacherUnavailable("a is away"))
    for _ in range(40):
        clock.advance(LONGEST_REST_SECONDS)
        for _ in range(3):
            three.first_answer(away)
    away.order.clear()
    clock.advance(LONGEST_REST_SECONDS - 0.1)
    for _ in range(3):
        three.first_answer(away)
    assert A not in away.order
    clock.advance(0.2)
    assert {three.first_answer(Asked()) for _ in range(3)} == {A, B, C}
    three.first_answer(Asked(a=TeacherUnavailable("again")))
    clock.advance(1.1)  # the rest is short again
    assert {three.first_answer(Asked()) for _ in range(3)} == {A, B, C}


def test_all_away_is_one_error_that_names_each(three: TeacherReplicas) -> None:
    away = {name: TeacherUnavailable(f"no teacher at {name}") for name in "abc"}
    with pytest.raises(TeacherUnavailable, match="at a; no teacher at b; no teacher at c"):
        three.first_answer(Asked(**away))
    # Those that rest are asked nevertheless, where there is nobody else.
    assert three.first_answer(Asked()) in (A, B, C)


def test_a_full_server_is_skipped_without_a_rest(three: TeacherReplicas) -> None:
    full = Asked(a=Overloaded("a is full", 9.0))
    assert [three.first_answer(full) for _ in range(4)] == [B, B, C, B]
    assert full.order == [A, B, B, C, A, B]


def test_all_full_or_away_is_overloaded_with_the_shortest_wait(three: TeacherReplicas) -> None:
    asked = Asked(
        a=Overloaded("full", 9.0), b=TeacherUnavailable("away"), c=Overloaded("full", 2.0)
    )
    with pytest.raises(Overloaded) as caught:
        three.first_answer(asked)
    assert caught.value.retry_after_seconds == 2.0
    assert sorted(asked.order) == [A, B, C]


def test_an_error_that_every_server_would_give_is_raised_at_once(three: TeacherReplicas) -> None:
    asked = Asked(a=InvalidRequest("no such id"))
    with pytest.raises(InvalidRequest, match="no such id"):
        three.first_answer(asked)
    assert asked.order == [A]


def test_another_model_is_named_by_its_address(three: TeacherReplicas) -> None:
    said = r"^the teacher at a:1 is not .*: another model\. Serve .* and resume the run$"
    with pytest.raises(WrongModel, match=said):
        three.first_answer(Asked(a=WrongModel("another model")))
    with TeacherReplicas(A) as alone, pytest.raises(WrongModel, match=said):
        alone.first_answer(Asked(a=WrongModel("another model")))


def test_a_name_is_asked_again_since_grpc_picks_the_server() -> None:
    tries = iter([TeacherUnavailable("gone"), TeacherUnavailable("gone"), None])

    def ask(channel: TeacherChannel) -> str:
        error = next(tries)
        if error is not None:
            raise error
        return channel.address

    with TeacherReplicas("dns:///localhost:50051") as replicas:
        assert replicas.first_answer(ask) == "dns:///localhost:50051"
        assert not replicas.is_one


# ---- over sockets ------------------------------------------------------------------------------


def test_every_server_is_asked_for_its_model() -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(serving(FakeTeacher())) for _ in range(2))
        replicas = stack.enter_context(TeacherReplicas(f"{first},{second}"))
        models, away = replicas.get_models(30)
        assert (list(models), away) == ([first, second], [])
        assert replicas.get_model(30).model_id == "fake-teacher"


def test_a_server_with_another_model_is_refused_by_name() -> None:
    other = FakeTeacher(model_id="other-teacher", fingerprint="d" * 64)
    with (
        serving(FakeTeacher()) as first,
        serving(other) as second,
        TeacherReplicas(f"{first},{second}") as replicas,
        pytest.raises(WrongModel) as caught,
    ):
        replicas.get_model(30)
    said = str(caught.value)
    assert f"{first} serves fake-teacher with fingerprint eeeeeeeeeeee" in said
    assert f"{second} serves other-teacher with fingerprint dddddddddddd" in said


def test_a_server_that_is_down_is_tolerated_if_another_answers() -> None:
    with serving(FakeTeacher()) as up, TeacherReplicas(f"{NOBODY},{up}") as replicas:
        models, away = replicas.get_models(30)
        assert list(models) == [up]
        (error,) = away
        assert NOBODY in str(error)
    none = f"no server of the teacher answers: .*{NOBODY}"
    with (
        TeacherReplicas(f"{NOBODY},127.0.0.1:2") as replicas,
        pytest.raises(TeacherUnavailable, match=none),
    ):
        replicas.get_model(30)


def test_a_server_that_refuses_this_client_is_not_tolerated() -> None:
    strict = FakeTeacher()
    strict.refusal = (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated", "this one wants a token")
    with (
        serving(FakeTeacher()) as first,
        serving(strict) as second,
        TeacherReplicas(f"{first},{second}") as replicas,
        pytest.raises(Unauthenticated, match="wants a token"),
    ):
        replicas.get_model(30)


def test_every_server_behind_a_name_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    other = FakeTeacher(fingerprint="d" * 64)
    with serving(FakeTeacher()) as first, serving(other) as second:
        port = first.rpartition(":")[2]
        found = [first, second]
        monkeypatch.setattr(module, "resolved", lambda name, port: found)
        with TeacherReplicas(f"dns:///localhost:{port}") as replicas:
            with pytest.raises(WrongModel, match=second):
                replicas.get_models(30)
            found.pop()
            assert list(replicas.get_models(30)[0]) == [first]
            # And the channel itself reaches it by name.
            assert replicas.first_answer(lambda channel: channel.get_model(30)).engine == "fixture"


def test_calls_to_a_name_are_balanced_over_its_servers_and_survive_the_loss_of_one() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(grpc_at("127.0.0.1:0", FakeTeacher(model_id="one")))
        try:
            second = stack.enter_context(
                grpc_at(f"[::1]:{first.port}", FakeTeacher(model_id="two"))
            )
        except RuntimeError:
            pytest.skip("localhost is one server here")
        replicas = stack.enter_context(TeacherReplicas(f"dns:///localhost:{first.port}"))
        seen: set[str] = set()

        def ask() -> str:
            return replicas.first_answer(lambda channel: channel.get_model(30)).model_id

        def both_were_seen() -> bool:
            seen.add(ask())
            return seen == {"one", "two"}

        wait_for(both_were_seen)
        first.close()
        assert {ask() for _ in range(20)} == {"two"}
        assert second.port == first.port


def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    assert "127.0.0.1:5" in resolved("localhost", 5)
    assert resolved("::1", 5) == ["[::1]:5"]
    with pytest.raises(TeacherUnavailable, match=r"dns:///nowhere\.invalid:5"):
        resolved("nowhere.invalid", 5)


def test_a_host_is_never_taken_for_a_scheme(tmp_path: Path) -> None:
    """By itself gRPC would open the socket `1` in the working folder."""
    with grpc_at(f"unix:{tmp_path / '1'}", FakeTeacher()):
        before = Path.cwd()
        os.chdir(tmp_path)
        try:
            with TeacherChannel("unix:1") as channel, pytest.raises(TeacherUnavailable):
                channel.get_model(30)
        finally:
            os.chdir(before)


class GrpcServer:
    """A teacher at an address of gRPC's; `close` breaks its connections."""

    def __init__(self, address: str, teacher: FakeTeacher) -> None:
        self._pool = ThreadPoolExecutor(4)
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        teacher_pb2_grpc.add_TeacherServicer_to_server(teacher, self._server)
        self.port = self._server.add_insecure_port(address)
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()
        self._pool.shutdown()


@contextmanager
def grpc_at(address: str, teacher: FakeTeacher) -> Iterator[GrpcServer]:
    server = GrpcServer(address, teacher)
    try:
        yield server
    finally:
        server.close()
