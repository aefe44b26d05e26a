"""Programs that do harm, each contained: what is promised of the sandbox, tried."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lectern_common.errors import Misconfigured
from student_trainer.evaluating.sandbox import bubblewrap
from student_trainer.evaluating.sandbox.judging import Judge
from student_trainer.evaluating.sandbox.limits import Limits, Outcome

# Time enough for what ends by itself, on any machine; and little for what does not.
SMALL = Limits(seconds=60, memory_bytes=256 << 20, processes=20, file_bytes=1 << 20)
SHORT = replace(SMALL, seconds=1)
MARK = "lectern_sandbox_test"


@pytest.fixture(scope="module", autouse=True)
def _bubblewrap_is_there():
    if shutil.which("bwrap") is None:
        pytest.skip("needs the package bubblewrap (Debian: apt-get install bubblewrap)")


@pytest.fixture(scope="module")
def judge():
    with Judge(SMALL, workers=2) as judge:
        yield judge


@pytest.fixture(scope="module")
def short_judge():
    with Judge(SHORT, workers=1) as judge:
        yield judge


def judged(judge, program):
    [verdict] = judge.judged([program])
    return verdict


def marked_processes(mark):
    """Returns the processes of this machine that have a word on their command line."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and mark.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
        except OSError:
            pass
    return found


def users_processes(user_ids):
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and path.stat().st_uid in user_ids:
                found.append(int(path.name))
        except OSError:
            pass
    return found


def wait_until_gone(listed):
    """Returns once there are none; a minute only bounds a hang."""
    end = time.monotonic() + 60
    while listed() and time.monotonic() < end:
        time.sleep(0.01)
    assert not listed()


def test_a_program_passes_if_it_runs_to_its_end(judge):
    assert judged(judge, "assert 1 + 1 == 2").outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 3, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os._exit(0)", "exited with status 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL"),
        ("print('passed'); import os; os._exit(0)", "exited with status 0"),
        ("input()", "EOFError"),
        ("class E(Exception):\n    def __str__(self): raise E\nraise E", "cannot be printed"),
        ("f = lambda: f()\nf()", "RecursionError"),
        ("a = '\\ud800'; raise ValueError(a)", "ValueError"),
    ],
)
def test_anything_else_has_failed_with_its_reason(judge, program, reason):
    verdict = judged(judge, program)
    assert verdict.outcome is Outcome.FAILED
    assert reason in verdict.reason


def test_an_endless_loop_is_timed_out(short_judge):
    assert judged(short_judge, "while True: pass").outcome is Outcome.TIMED_OUT


def test_a_loop_that_catches_everything_is_timed_out(short_judge):
    program = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    assert judged(short_judge, program).outcome is Outcome.TIMED_OUT


def test_a_print_without_end_is_timed_out_and_keeps_nothing(short_judge):
    assert judged(short_judge, "while True: print('x' * 100000)").outcome is Outcome.TIMED_OUT


def test_writing_to_every_descriptor_without_end_is_cut_off(short_judge):
    program = """
import os
while True:
    for number in range(64):
        try:
            os.write(number, b"x" * 65536)
        except OSError:
            pass
"""
    assert judged(short_judge, program).outcome is not Outcome.PASSED


def test_an_allocation_of_ten_gigabytes_fails(judge):
    verdict = judged(judge, "x = bytearray(10 << 30)")
    assert (verdict.outcome, verdict.reason.split(":")[0]) == (Outcome.FAILED, "MemoryError")


def test_memory_taken_piece_by_piece_fails(judge):
    verdict = judged(judge, "x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert (verdict.outcome, verdict.reason.split(":")[0]) == (Outcome.FAILED, "MemoryError")


def test_memory_taken_by_many_processes_fails():
    program = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        x = bytearray(b"x") * (150 << 20)
        time.sleep(600)
time.sleep(600)
"""
    with Judge(Limits(seconds=60, memory_bytes=256 << 20), workers=1) as judge:
        verdict = judged(judge, program)
    assert verdict.outcome is Outcome.FAILED
    assert "together" in verdict.reason


def test_a_fork_bomb_stops_at_the_limit(judge):
    """Also as root, who is exempt from the limit: the sandbox is another user."""
    program = """
import os, time
count = 1
while True:
    try:
        child = os.fork()
    except OSError:
        break
    if child == 0:
        time.sleep(600)
    count += 1
assert 2 <= count <= 20, count
"""
    verdict = judged(judge, program)
    assert verdict.outcome is Outcome.PASSED, verdict.reason


def test_nothing_is_left_of_a_fork_bomb():
    mark = MARK + secrets.token_hex(8)
    program = f"""
import os, subprocess, sys
python = sys.executable
while True:
    try:
        if os.fork() == 0:
            os.setsid()
            os.execv(python, [python, "-c", "import time; time.sleep(600)", "{mark}"])
    except OSError:
        pass
"""
    with Judge(SHORT, workers=1) as judge:
        assert judged(judge, program).outcome is Outcome.TIMED_OUT
        wait_until_gone(lambda: marked_processes(mark))


def test_nothing_of_this_machine_is_seen_and_nothing_is_deleted(judge, tmp_path):
    tmp_path.chmod(0o777)
    kept = tmp_path / "kept"
    kept.write_text("precious")
    kept.chmod(0o666)
    program = f"""
import os, shutil
for path in ({str(kept)!r}, "/etc/passwd", "/root", "/home", "/proc/self", "/run", "/var"):
    assert not os.path.exists(path), path
for path in ("/usr/bin/env", "/usr/bin", "/bin", "/usr", "/"):
    for delete in (os.remove, os.rmdir):
        try:
            delete(path)
        except OSError:
            pass
shutil.rmtree("/usr/bin", ignore_errors=True)
assert os.path.exists("/usr/bin/env")
"""
    verdict = judged(judge, program)
    assert verdict.outcome is Outcome.PASSED, verdict.reason
    assert kept.read_text() == "precious"
    assert Path("/usr/bin/env").exists()


@pytest.mark.parametrize("folder", ["/", "/dev", "/dev/" + "shm", "/usr", "/usr/tmp", "/bin"])
def test_nothing_can_be_written_outside_tmp(judge, folder):
    program = f"open({folder!r} + '/new', 'w')"
    verdict = judged(judge, program)
    assert (verdict.outcome, verdict.reason.split(":")[0]) in [
        (Outcome.FAILED, "OSError"),
        (Outcome.FAILED, "PermissionError"),
        (Outcome.FAILED, "FileNotFoundError"),
    ]


def test_a_file_cannot_exceed_the_limit_nor_can_all_of_them(judge):
    one = "open('/tmp/a', 'wb').write(bytes(2 << 20))"
    many = "for i in range(100): open(f'/tmp/{i}', 'wb').write(bytes(100 << 10))"
    first, second = judge.judged([one, many])
    assert first.outcome is Outcome.FAILED
    assert (second.outcome, "No space left" in second.reason) == (Outcome.FAILED, True)


def test_nothing_stays_in_tmp_for_the_next_program(judge):
    verdicts = judge.judged(
        ["open('/tmp/a', 'w')"] * 4 + ["import os; assert not os.listdir('/tmp')"] * 4
    )
    assert {verdict.outcome for verdict in verdicts} == {Outcome.PASSED}


def test_no_network_is_reached(judge):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        program = f"""
import socket
for address in (("127.0.0.1", {port}), ("192.0.2.1", 80)):
    try:
        socket.create_connection(address, timeout=0.3)
    except OSError:
        continue
    raise SystemExit(f"reached {{address}}")
"""
        verdict = judged(judge, program)
    assert verdict.outcome is Outcome.PASSED, verdict.reason


def test_no_abstract_socket_is_reached(judge):
    name = "\0" + MARK + secrets.token_hex(8)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        program = f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})"
        verdict = judged(judge, program)
    assert verdict.reason.startswith("ConnectionRefusedError")


def test_it_is_an_unused_user_without_rights(judge):
    program = """
import ctypes, os
assert 0 not in (os.getuid(), os.geteuid(), os.getgid()), os.getuid()
assert os.getpid() < 10
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER = 0x10000000
assert libc.unshare(CLONE_NEWUSER) == -1
assert libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == -1
try:
    os.setuid(0)
except OSError:
    pass
else:
    raise SystemExit("became root")
"""
    if os.getuid() != 0:
        program = program.replace("assert 0 not in", "assert True or 0 not in")
    verdict = judged(judge, program)
    assert verdict.outcome is Outcome.PASSED, verdict.reason


def test_the_environment_and_descriptors_of_the_judge_do_not_reach_it(judge, monkeypatch):
    monkeypatch.setenv("LECTERN_SECRET", "s3cret")
    program = """
import os
assert "LECTERN_SECRET" not in os.environ, dict(os.environ)
import fcntl
found = []
for number in range(3, 64):
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
        found.append(number)
    except OSError:
        pass
assert len(found) <= 1, found
"""
    verdict = judged(judge, program)
    assert verdict.outcome is Outcome.PASSED, verdict.reason


def test_a_killed_parent_takes_its_programs_with_it(tmp_path):
    mark = MARK + secrets.token_hex(8)
    script = tmp_path / "parent.py"
    program = (
        "import os, sys\nif os.fork() == 0: os.setsid()\n"
        "python, sleep = sys.executable, 'import time; time.sleep(600)'\n"
        f"os.execv(python, [python, '-c', sleep, '{mark}'])"
    )
    script.write_text(
        "from student_trainer.evaluating.sandbox.judging import Judge\n"
        "from student_trainer.evaluating.sandbox.limits import Limits\n"
        "with Judge(Limits(seconds=600), workers=1) as judge:\n"
        f"    judge.judged([{program!r}])\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        end = time.monotonic() + 60
        while len(marked_processes(mark)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        assert marked_processes(mark)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until_gone(lambda: marked_processes(mark))


def test_as_root_each_worker_is_another_unused_user():
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    argvs = [command.argv for command in bubblewrap.sandbox_commands(1 << 20, 2)]
    ids = {int(argv[1].removeprefix("--reuid=")) for argv in argvs}
    assert len(ids) == 2
    assert not users_processes(ids)


def test_without_bubblewrap_it_is_refused_with_the_fix(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match=r"apt-get install bubblewrap.*--no-sandbox"):
        Judge(SMALL)


@pytest.mark.parametrize("version", ["bubblewrap 0.6.1", "", "bubblewrap"])
def test_an_old_bubblewrap_is_refused(monkeypatch, tmp_path, version):
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(Misconfigured, match=r"0\.8 or newer"):
        Judge(SMALL)


def test_a_bubblewrap_that_cannot_isolate_is_refused(monkeypatch, tmp_path):
    program = tmp_path / "bwrap"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo bubblewrap 0.9.0; exit; fi\n'
        "echo 'bwrap: setting up uid map: Permission denied' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    tmp_path.chmod(0o755)
    monkeypatch.setattr(bubblewrap, "_bubblewrap", lambda: "/bin/false")
    with pytest.raises(Misconfigured, match="unprivileged user namespaces"), Judge(SMALL):
        pass


def test_a_program_that_never_began_is_not_judged(judge, monkeypatch):
    monkeypatch.setattr(judge, "_source", "raise SystemExit('the disk is gone')")
    verdict = judged(judge, "pass")
    assert verdict.outcome is Outcome.NOT_JUDGED
    assert "the disk is gone" in verdict.reason


def test_without_a_sandbox_the_limits_still_hold():
    with Judge(SMALL, sandboxed=False, workers=1) as judge:
        passed, memory, exited = judge.judged(
            ["pass", "bytearray(10 << 30)", "import os; os._exit(0)"]
        )
    assert passed.outcome is Outcome.PASSED
    assert memory.reason.startswith("MemoryError")
    assert exited.outcome is Outcome.FAILED
    with Judge(SHORT, sandboxed=False, workers=1) as judge:
        assert judged(judge, "while True: pass").outcome is Outcome.TIMED_OUT


def test_what_libraries_do_in_a_forked_process_does_not_reach_a_sandbox():
    """A handler like gRPC's, but one that always does harm, in a process of its own."""
    program = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None)\n"
        "abort = ctypes.cast(libc.abort, ctypes.c_void_p)\n"
        "assert libc.__register_atfork(None, None, abort, None) == 0\n"
        "from student_trainer.evaluating.sandbox.judging import Judge\n"
        "from student_trainer.evaluating.sandbox.limits import Limits\n"
        "with Judge(Limits(seconds=60), workers=1) as judge:\n"
        "    print([verdict.outcome.value for verdict in judge.judged(['pass', '1 / 0'])])\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "['passed', 'failed']\n", done.stderr
