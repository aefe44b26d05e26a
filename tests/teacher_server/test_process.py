"""`python -m teacher_server` as a process: start, what it prints, signals, ways not to start."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from lectern_common.teacher.channel import TeacherChannel
from protos import teacher_pb2 as pb
from teacher_server.observing.banner import idle_gpu_warning
from tests.support.asking import connect, gathered, refused, request, score, stub
from tests.support.models import write_tiny_model
from tests.support.servers import TeacherProcess, start_teacher, teacher_process, wait_for
from tests.teacher_server.rpc.test_scoring import standalone
from tests.teacher_server.rpc.test_server import health

V = 97
BIG_FIXTURE = ("--engine", "fixture", "--vocab-size", "4096")
TOKEN = "fedcba9876543210" * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), layers=3, vocab_size=V)


@pytest.fixture(scope="module")
def fixture_teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TeacherProcess]:
    folder = tmp_path_factory.mktemp("fixture")
    with teacher_process(folder, "--engine", "fixture", "--vocab-size", str(V)) as teacher:
        yield teacher


def unread_request() -> pb.LogitsForBatchRequest:
    """65 MB of rows, more than the transport holds: it stays in flight until it is read."""
    return request([[1] * 200] * 20, vocab_size=4096)


def failed(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit status, standard error) of a process that must not start."""
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, errors


def test_a_process_serves_drains_on_sigterm_and_exits_0(folder: Path, tmp_path: Path) -> None:
    batch = [[1, 2, 3], [4, 5]]
    # Long enough to be under way when the signal comes: 8 calls of 64 forwards.
    calls = [
        request([[token, call] * 32 for token in range(64)], "hidden", run_id=f"run-{call}")
        for call in range(8)
    ]
    with (
        teacher_process(tmp_path, "--model", str(folder), "--threads", "1") as teacher,
        connect(teacher.address) as channel,
    ):
        answer = score(teacher.address, request(batch))
        expected = np.concatenate(standalone(folder, batch))
        np.testing.assert_allclose(answer.floats, expected, atol=1e-6, rtol=0)

        streams = [stub(channel).LogitsForBatch(call, timeout=120) for call in calls]
        headers = [next(stream) for stream in streams]
        teacher.process.send_signal(signal.SIGTERM)
        rows = [sum(part.piece.num_rows for part in stream) for stream in streams]
        assert rows == [header.header.num_rows for header in headers] == [64 * 64] * 8
        output, errors = teacher.process.communicate(timeout=60)
        assert teacher.process.returncode == 0, errors
    for line in (
        f"model        {folder.name}",
        "parameters   ",
        "device       cpu",
        "dtype        float32",
        f"address      {teacher.address}",
        "offers       dense, hidden, top_k, sampled",
        "limits       ",
        "engine       transformers, independent",
    ):
        assert line in output
    assert "ready" in output


def test_a_second_sigterm_exits_at_once(tmp_path: Path) -> None:
    with teacher_process(tmp_path, *BIG_FIXTURE) as teacher, connect(teacher.address) as channel:
        stream = stub(channel).LogitsForBatch(unread_request(), timeout=120)
        assert next(stream).WhichOneof("part") == "header"
        teacher.process.send_signal(signal.SIGTERM)
        wait_for(lambda: refused(teacher.address, request([[1]]))[0] == "UNAVAILABLE")
        assert teacher.process.poll() is None  # it waits for the call
        teacher.process.send_signal(signal.SIGTERM)
        teacher.process.communicate(timeout=60)
        assert teacher.process.returncode == 1
        with pytest.raises(grpc.RpcError):
            list(stream)


def test_calls_that_outlast_the_drain_are_cut_off_and_it_exits_1(tmp_path: Path) -> None:
    with (
        teacher_process(tmp_path, *BIG_FIXTURE, "--drain-seconds", "0.05") as teacher,
        connect(teacher.address) as channel,
    ):
        stream = stub(channel).LogitsForBatch(unread_request(), timeout=120)
        assert next(stream).WhichOneof("part") == "header"
        status, _, errors = teacher.stop()
        assert status == 1 and "cut off" in errors


def test_while_loading_it_is_live_but_not_ready_and_sigterm_exits_0(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")  # whoever reads it waits for ever
    process = start_teacher("--model", str(folder), "--bind", "127.0.0.1:0")
    try:
        assert process.stderr is not None
        found = re.search(r"address=(\S+)", process.stderr.readline())
        assert found is not None
        address = found.group(1)
        with connect(address) as channel:
            assert health(channel) == "NOT_SERVING"
            assert refused(address, request([[1]]))[1] == "the model is still loading"
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0


def test_the_fixture_engine_serves_without_a_model(fixture_teacher: TeacherProcess) -> None:
    rows = score(fixture_teacher.address, request([[5, 7]])).floats
    assert rows.argmax(-1).tolist() == [5, 7]


def test_the_fixture_engine_starts_without_torch(fixture_teacher: TeacherProcess) -> None:
    maps = Path(f"/proc/{fixture_teacher.process.pid}/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    assert "libtorch" not in maps.read_text()


def test_a_port_taken_by_a_teacher_is_refused_in_one_sentence(
    fixture_teacher: TeacherProcess,
) -> None:
    address = fixture_teacher.address
    process = start_teacher("--engine", "fixture", "--vocab-size", "5", "--bind", address)
    status, errors = failed(process)
    assert status == 2
    assert f"lectern teacher: cannot listen on {address}: the port is taken" in errors
    assert "Traceback" not in errors
    assert len(score(address, request([[1]])).floats) == 1  # the first goes on


def test_a_port_taken_by_another_program_is_refused_in_one_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, errors = failed(
            start_teacher("--engine", "fixture", "--vocab-size", "5", "--bind", f"127.0.0.1:{port}")
        )
    assert status == 2 and "the port is taken" in errors


def bad_starts(tmp_path: Path) -> list[tuple[list[str], str]]:
    short, missing = tmp_path / "short", tmp_path / "missing"
    short.write_text("abc\n")
    pickled = write_tiny_model(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    fixture = ["--engine", "fixture", "--vocab-size", "5", "--bind"]
    return [
        ([*fixture, "0.0.0.0:0"], "set --token-file"),
        ([*fixture, "127.0.0.1:0", "--token-file", str(missing)], "cannot read --token-file"),
        ([*fixture, "0.0.0.0:0", "--token-file", str(short)], "16 characters or more"),
        ([*fixture, "nowhere"], "is not host:port"),
        ([], "--model is missing"),
        (["--engine", "fixture"], "needs --vocab-size"),
        ([*fixture, "127.0.0.1:0", "--threads", "1"], "--threads has no effect"),
        ([*fixture, "127.0.0.1:0", "--max-tokens", "5000000000"], "it must be at most"),
        (["--model", str(pickled), "--cache-folder-bytes", "9"], "without --cache-folder"),
        ([*fixture, "127.0.0.1:0", "--port-file", str(missing / "port")], "there is no folder"),
        (["--model", str(missing), "--bind", "127.0.0.1:0"], "is not a folder here"),
        (["--model", str(pickled), "--device", "cuda:7", "--bind", "127.0.0.1:0"], "CUDA"),
        (["--model", str(pickled), "--bind", "127.0.0.1:0"], "pytorch_model.bin is a pickle"),
    ]


@pytest.mark.long
def test_a_failed_start_says_why_in_one_sentence_and_exits_non_zero(tmp_path: Path) -> None:
    cases = bad_starts(tmp_path)
    started = [start_teacher(*options) for options, _ in cases]
    for process, (options, says) in zip(started, cases, strict=True):
        status, errors = failed(process)
        assert status not in (0, None), options
        sentence = [line for line in errors.splitlines() if line.startswith("lectern teacher: ")]
        assert len(sentence) == 1 and says in sentence[0], (options, errors)
        assert "Traceback" not in errors


def test_the_token_is_required_and_never_printed(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    options = ("--engine", "fixture", "--vocab-size", "97", "--log-level", "debug")
    with teacher_process(tmp_path, *options, "--token-file", str(token_file)) as teacher:
        assert refused(teacher.address, request([[1]]))[0] == "UNAUTHENTICATED"
        with TeacherChannel(teacher.address, "wrong" * 8) as channel, pytest.raises(Exception):  # noqa: B017
            channel.get_model()
        with TeacherChannel(teacher.address, TOKEN) as channel:
            assert channel.get_model().engine == "fixture"
            gathered(channel.call(channel.stub.LogitsForBatch, request([[1]]), 30))
        argv = Path(f"/proc/{teacher.process.pid}/cmdline")
        if argv.exists():
            assert TOKEN not in argv.read_text()
        status, output, errors = teacher.stop()
    assert status == 0
    assert "those with the bearer token" in output
    for text in (output, errors):
        assert TOKEN not in text and "wrongwrong" not in text


def test_the_port_file_appears_once_it_serves(fixture_teacher: TeacherProcess) -> None:
    assert re.fullmatch(r"127\.0\.0\.1:\d+", fixture_teacher.address)
    with TeacherChannel(fixture_teacher.address) as channel:
        assert channel.get_model().model_id == "fixture-97"


def test_a_teacher_on_the_cpu_of_a_machine_with_a_gpu_warns_loudly() -> None:
    assert idle_gpu_warning("cpu", cuda_available=False, gpu_present=False) is None
    assert idle_gpu_warning("cuda:0 (X)", cuda_available=True, gpu_present=True) is None
    usable = idle_gpu_warning("cpu", cuda_available=True, gpu_present=True)
    assert usable is not None and "--device" in usable and "WARNING" in usable
    unusable = idle_gpu_warning("cpu", cuda_available=False, gpu_present=True)
    assert unusable is not None and "CUDA build of torch" in unusable


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with teacher_process(tmp_path, "--engine", "fixture", "--vocab-size", "5") as teacher:
        pid = teacher.process.pid
        assert teacher.stop()[0] == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_message_larger_than_any_valid_request_is_refused(tmp_path: Path) -> None:
    options = ["--engine", "fixture", "--vocab-size", "97", "--max-tokens", "100000"]
    with teacher_process(tmp_path, *options) as teacher, connect(teacher.address) as channel:
        model = stub(channel).GetModel(pb.GetModelRequest(protocol_version=1))
        most = model.limits.max_request_bytes
        assert 400_000 < most < 500_000
        # The largest valid request fits: every token, every sequence, a mask, the longest names.
        lengths = [1] * 1000 + [99_000 // 24] * 24
        spare = 100_000 - sum(lengths)
        lengths[-1] += spare
        right = request([[1] * length for length in lengths], last=True)
        right.position_mask = b"\xff" * 12_500
        right.run_id, right.request_id = "r" * 63, "x" * 64
        assert right.ByteSize() < most
        too_large = request([[1] * (most // 4)])
        code, detail, _ = refused(teacher.address, too_large)
        assert code == "RESOURCE_EXHAUSTED" and "larger than max" in detail
        assert score(teacher.address, request([[5]])).floats[0].argmax() == 5
