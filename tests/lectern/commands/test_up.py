import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lectern.client import Client
from lectern.commands.up import wait_notes
from lectern.local.processes import wait_until

DEADLINE_SECONDS = 30.0


def start(home: Path, *options: str) -> "subprocess.Popen[str]":
    binds = ["--teacher-bind", "127.0.0.1:0", "--bind", "127.0.0.1:0", "--home", str(home)]
    return subprocess.Popen(
        [sys.executable, "-m", "lectern", "up", *binds, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def log(home: Path, name: str) -> str:
    path = home / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_both_cleanly(tmp_path, stand_ins, number):
    with start(tmp_path, "--model", "some/model") as command:
        assert command.stdout and command.stderr
        said = ""
        while "Ctrl-C stops both" not in said:
            line = command.stderr.readline()
            assert line, "ended early: " + said
            said += line
        first_log_line = command.stdout.readline()
        command.send_signal(number)
        _, rest = command.communicate(timeout=DEADLINE_SECONDS)

    assert command.returncode == 0
    assert "page     http://127.0.0.1:8001" in said
    assert "teacher  127.0.0.1:50001" in said
    assert rest.endswith("stopped\n")
    assert "teacher server | started with --model some/model" in first_log_line
    assert log(tmp_path, "control-plane").endswith("runs checkpointed\n")
    assert log(tmp_path, "teacher-server").endswith("teacher ended\n")


def test_a_death_is_shown_with_the_end_of_its_log_and_the_other_is_stopped(
    tmp_path, stand_ins, monkeypatch
):
    go = tmp_path / "go"
    monkeypatch.setenv("STAND_IN_DIES", str(go))
    with start(tmp_path, "--model", "dies-later") as command:
        assert wait_until(lambda: "started" in log(tmp_path, "control-plane"), DEADLINE_SECONDS)
        go.touch()
        _, said = command.communicate(timeout=DEADLINE_SECONDS)

    assert command.returncode == 1
    assert "error: the teacher server ended with exit status 1; the end of its log:" in said
    assert "out of memory" in said
    assert said.splitlines()[-1] == (
        "the teacher server ended with exit status 1: run `lectern up` again with the same "
        "options; the runs resume"
    )
    assert log(tmp_path, "control-plane").endswith("runs checkpointed\n")


def test_a_teacher_that_cannot_start_ends_with_its_exit_status(tmp_path, stand_ins):
    with start(tmp_path, "--model", "dies-at-start") as command:
        _, said = command.communicate(timeout=DEADLINE_SECONDS)

    assert command.returncode == 3
    assert "no such model" in said
    assert "Traceback" not in said


def test_what_follows_two_dashes_goes_to_the_teacher(tmp_path, stand_ins):
    with start(tmp_path, "--model", "some/model", "--", "--mode", "throughput") as command:
        assert wait_until(lambda: "started" in log(tmp_path, "teacher-server"), DEADLINE_SECONDS)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=DEADLINE_SECONDS)

    started = log(tmp_path, "teacher-server").splitlines()[0]
    assert started.startswith("started with --model some/model")
    assert started.endswith("--mode throughput")


def test_what_follows_another_two_dashes_goes_to_the_control_plane(tmp_path, stand_ins):
    words = ("--model", "m", "--", "--mode", "throughput", "--", "--runs-per-gpu", "2")
    with start(tmp_path, *words) as command:
        assert wait_until(lambda: "started" in log(tmp_path, "control-plane"), DEADLINE_SECONDS)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=DEADLINE_SECONDS)

    assert log(tmp_path, "teacher-server").splitlines()[0].endswith("--mode throughput")
    assert log(tmp_path, "control-plane").splitlines()[0].endswith("--runs-per-gpu 2")


@pytest.mark.parametrize(
    "word",
    ["--home", "--bind=127.0.0.1:1", "--no-token", "--port-file", "--alert-webhook-file=hook"],
)
def test_what_up_sets_itself_is_not_passed_to_the_control_plane(lectern, tmp_path, word):
    ended = lectern("up", "--model", "m", "--home", tmp_path, "--", "--", word)
    assert ended.code == 2
    assert word.partition("=")[0] in ended.err and "sets it itself" in ended.err


def test_a_teacher_option_before_the_dashes_is_refused_with_its_right_place(lectern, tmp_path):
    ended = lectern("up", "--model", "m", "--home", tmp_path, "--mode", "throughput")
    assert ended.code == 2
    assert 'this is an option of the teacher; write it after "--", as in: ' in ended.err
    assert ended.err.endswith("up --model MODEL -- --mode ...\n")

    ended = lectern("up", "--modle", "m", "--home", tmp_path)
    assert ended.code == 2
    assert "No such option: --modle" in ended.err


def test_the_teacher_gets_the_models_root(tmp_path, stand_ins):
    with start(tmp_path, "--model", "team/small") as command:
        assert wait_until(lambda: "started" in log(tmp_path, "teacher-server"), DEADLINE_SECONDS)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=DEADLINE_SECONDS)

    said = log(tmp_path, "teacher-server")
    assert "--model team/small" in said
    assert f"models are in {tmp_path}/models\n" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--teacher-bind", "0.0.0.0:0"], "set --teacher-token-file teacher, or bind 127.0.0.1"),
        (["--teacher-token-file", "gone"], "cannot read --teacher-token-file {home}/secrets/gone"),
        (["--bind", "0.0.0.0:0", "--no-token"], "remove --no-token, or bind 127.0.0.1"),
        (["--no-token", "--token-file", "t"], "--token-file has no effect with --no-token"),
        (["--token-file", "gone"], "cannot read --token-file gone: No such file"),
    ],
)
def test_a_bind_without_authentication_is_refused_before_anything_starts(
    lectern, tmp_path, stand_ins, options, said
):
    ended = lectern("up", "--model", "some/model", "--home", tmp_path, *options)
    assert ended.code == 2
    assert said.format(home=tmp_path) in ended.err
    assert not (tmp_path / "logs").exists()


def test_a_teacher_with_client_certificates_may_be_bound_beyond_loopback(tmp_path, stand_ins):
    options = ("--teacher-bind", "0.0.0.0:0", "--", "--tls-client-ca", "ca.pem")
    with start(tmp_path, "--model", "m", *options) as command:
        assert wait_until(lambda: "started" in log(tmp_path, "teacher-server"), DEADLINE_SECONDS)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=DEADLINE_SECONDS)


def test_one_option_gives_the_teachers_token_to_both(tmp_path, stand_ins):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/teacher.token").write_text("0123456789abcdef")
    with start(tmp_path, "--model", "m", "--teacher-token-file", "teacher.token") as command:
        assert wait_until(lambda: "started" in log(tmp_path, "control-plane"), DEADLINE_SECONDS)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=DEADLINE_SECONDS)

    assert f"--token-file {tmp_path}/secrets/teacher.token" in log(tmp_path, "teacher-server")
    assert "--teacher-token-file teacher.token" in log(tmp_path, "control-plane")


def test_the_certificate_goes_to_the_teacher_and_its_ca_to_the_control_plane(tmp_path, stand_ins):
    files = {"--teacher-tls-cert": "crt", "--teacher-tls-key": "key", "--teacher-tls-ca": "ca"}
    options = [word for pair in files.items() for word in pair]
    with start(tmp_path, "--model", "m", *options) as command:
        assert wait_until(lambda: "started" in log(tmp_path, "control-plane"), DEADLINE_SECONDS)
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=DEADLINE_SECONDS)
    secrets = f"{tmp_path}/secrets"
    assert f"--tls-cert {secrets}/crt --tls-key {secrets}/key" in log(tmp_path, "teacher-server")
    assert "--teacher-tls-ca ca" in log(tmp_path, "control-plane")

    with start(tmp_path, "--model", "m", *options[:4]) as command:
        _, said = command.communicate(timeout=DEADLINE_SECONDS)
    assert command.returncode == 2 and "set all three" in said


def test_waiting_is_mentioned_at_first_and_then_every_15_seconds(capsys):
    on_wait = wait_notes()
    for seconds in (0.0, 0.05, 1.0, 14.9, 15.1, 16.0, 31.0):
        on_wait("teacher server", seconds)
    on_wait("control plane", 0.0)

    assert capsys.readouterr().err.splitlines() == [
        "waiting for the teacher server",
        "waiting for the teacher server (15 s)",
        "waiting for the teacher server (31 s)",
        "waiting for the control plane",
    ]


def test_the_real_services_start_know_each_other_and_stop(tmp_path):
    with start(tmp_path, "--engine", "fixture", "--vocab-size", "97", "--quiet") as command:
        assert command.stderr
        said = ""
        while "Ctrl-C stops both" not in said:
            line = command.stderr.readline()
            assert line, "ended early: " + said
            said += line
        words = said.split()
        url = words[words.index("page") + 1]
        token = (tmp_path / "secrets" / "control-plane").read_text().strip()
        assert token not in said  # standard error is no terminal here
        with Client(url, token=token) as service:
            assert service.is_ready()
            [seen] = service.teachers()
            assert seen.reachable and seen.configured and seen.model == "fixture-97"
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=DEADLINE_SECONDS)

    assert command.returncode == 0
    assert not Client(url).is_ready()
