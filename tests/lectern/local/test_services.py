import socket
from dataclasses import fields
from pathlib import Path

import pytest

from lectern.local.processes import ChildDied, wait_until
from lectern.local.services import PlaneOptions, TeacherOptions, services
from lectern_common.errors import Misconfigured
from lectern_common.roots import Roots
from teacher_server.options import options_parser

DEADLINE_SECONDS = 20.0


def started(tmp_path: Path, teacher: dict | None = None, plane: dict | None = None, **options):
    return services(
        TeacherOptions(**{"model": "some/model", "bind": "127.0.0.1:0", **(teacher or {})}),
        PlaneOptions(**{"bind": "127.0.0.1:0", **(plane or {})}),
        roots=Roots.of_home(tmp_path),
        logs=tmp_path / "logs",
        **{"ready_timeout_seconds": DEADLINE_SECONDS, **options},
    )


def log(tmp_path: Path, name: str) -> str:
    return (tmp_path / "logs" / f"{name}.log").read_text()


def test_both_services_are_ready_inside_the_block_and_stopped_after_it(tmp_path, stand_ins):
    with started(tmp_path, {"threads": 1}, {"max_running_runs": 2}) as running:
        assert running.teacher_address == "127.0.0.1:50001"
        assert running.url == "http://127.0.0.1:8001"
        running.require_alive()

    assert not any(child.is_alive for child in running.children)
    teacher, control_plane = log(tmp_path, "teacher-server"), log(tmp_path, "control-plane")
    assert "--model some/model --engine transformers --bind 127.0.0.1:0" in teacher
    assert "--threads 1" in teacher
    assert teacher.endswith("teacher ended\n")
    assert "--teacher 127.0.0.1:50001 --on-exit stop --max-running-runs 2" in control_plane
    assert control_plane.endswith("runs checkpointed\n")


def test_the_control_plane_stops_before_the_teacher(tmp_path, stand_ins):
    waited = []
    with started(tmp_path, on_wait=lambda name, seconds: waited.append(name)):
        waited.clear()

    assert waited == ["control plane to stop", "teacher server to stop"]


def test_a_teacher_that_dies_at_start_is_reported_with_its_log(tmp_path, stand_ins):
    with (
        pytest.raises(ChildDied, match="no such model") as caught,
        started(tmp_path, {"model": "dies-at-start"}),
    ):
        pytest.fail("not ready")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "logs" / "control-plane.log").exists()


def test_a_teacher_that_dies_later_is_reported_and_the_other_is_stopped(
    tmp_path, stand_ins, monkeypatch
):
    go = tmp_path / "go"
    monkeypatch.setenv("STAND_IN_DIES", str(go))
    with (
        pytest.raises(ChildDied, match="out of memory"),
        started(tmp_path, {"model": "dies-later"}) as running,
    ):
        running.require_alive()
        go.touch()
        assert wait_until(lambda: not running.children[0].is_alive, DEADLINE_SECONDS)
        running.require_alive()
    assert not running.children[1].is_alive
    assert log(tmp_path, "control-plane").endswith("runs checkpointed\n")


def test_an_interrupt_while_waiting_stops_what_was_started(tmp_path, stand_ins):
    def interrupt(name: str, seconds: float) -> None:
        if "started with" in log(tmp_path, "teacher-server") and seconds > 0:
            raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        started(tmp_path, {"model": "never-ready"}, on_wait=interrupt),
    ):
        pytest.fail("not ready")
    assert log(tmp_path, "teacher-server").endswith("teacher ended\n")


def test_a_service_that_is_never_ready_times_out(tmp_path, stand_ins):
    with (
        pytest.raises(ChildDied, match=r"not ready within 0\.2 s"),
        started(tmp_path, {"model": "never-ready"}, ready_timeout_seconds=0.2),
    ):
        pytest.fail("not ready")


@pytest.mark.parametrize("side", ["teacher", "plane"])
def test_a_taken_port_is_refused_before_anything_starts(tmp_path, stand_ins, side):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(Misconfigured, match=f"cannot listen on {address}.*held by pid"),
            started(tmp_path, **{side: {"bind": address}}),
        ):
            pytest.fail("started")
    assert not (tmp_path / "logs").exists()


def test_the_teachers_parser_reads_back_its_command_line(tmp_path):
    files = {name: tmp_path / name for name in ("token_file", "tls_cert", "tls_key")}
    options = TeacherOptions(
        "some/model", "fixture", "127.0.0.1:0", 2, vocab_size=97, **files, further=["--compile"]
    )

    read = options_parser().parse_args(options.words(tmp_path / "port"))

    for field in fields(options):
        if field.name != "further":
            assert getattr(read, field.name) == getattr(options, field.name)
    assert read.port_file == tmp_path / "port" and read.compile
    assert TeacherOptions(None).words(tmp_path)[:2] == ["--engine", "transformers"]
