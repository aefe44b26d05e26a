"""`--bind unix:/path`: a socket file of this user's, on this machine."""

import asyncio
import socket
import stat
from pathlib import Path

import pytest

from lectern_common.errors import Misconfigured
from lectern_common.teacher.channel import TeacherChannel, serving_state
from lectern_common.teacher.replicas import TeacherReplicas
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.rpc.limits import Limits
from teacher_server.rpc.server import TeacherServer
from tests.support.asking import gathered, request


def _served(path: Path, token: str | None = None) -> None:
    """Serves at the path, asks there for health, facts and rows, and ends."""

    def ask(address: str) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert serving_state(address, 30) == "SERVING"
        with TeacherReplicas(address, token) as replicas:
            assert replicas.get_model().engine == "fixture"
        with TeacherChannel(address, token) as channel:
            stream = channel.call(channel.stub.LogitsForBatch, request([[5]]), 30)
            assert gathered(stream).floats.argmax() == 5

    async def serve() -> None:
        server = TeacherServer(f"unix:{path}", token)
        await server.start()
        await server.open(FixtureEngine(97), Limits())
        assert server.address == f"unix:{path}"
        await asyncio.to_thread(ask, server.address)
        await server.drain(5)

    asyncio.run(serve())


def test_a_teacher_answers_at_a_socket_that_only_its_user_can_open(tmp_path: Path) -> None:
    _served(tmp_path / "teacher.sock")
    _served(tmp_path / "teacher.sock", "0123456789abcdef")


def test_a_socket_that_a_killed_server_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "teacher.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    assert path.is_socket()
    _served(path)


def _refused(bind: str) -> str:
    async def start() -> None:
        await TeacherServer(bind, None).start()

    with pytest.raises(Misconfigured) as refused:
        asyncio.run(start())
    return str(refused.value)


def test_a_socket_at_which_someone_listens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "teacher.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert "someone listens there" in _refused(f"unix:{path}")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("kept")
    assert "is not a socket" in _refused(f"unix:{path}")
    assert path.read_text() == "kept"


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "its folder does not exist" in _refused(f"unix:{tmp_path / 'none' / 'a.sock'}")


def test_a_path_that_grpc_would_read_otherwise_is_refused() -> None:
    assert "letters, digits" in _refused("unix:/tmp/a%2fb")
