"""Starting, stopping, watching and restarting ranks; the ranks are small scripts."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import psutil
import pytest

from lectern_common.ranks import RANK_LOST, RENDEZVOUS
from lectern_common.run.folder import RunFolder
from student_trainer.ranks.supervisor import RanksLost, supervise
from student_trainer.stop import Stop
from tests.support.servers import ROOT, wait_for

# Every script starts with this: its rank, and a file for what it reports.
BEGIN = """
import os, signal, sys, time
from pathlib import Path
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
def say(word):
    with (folder / f"rank-{rank}").open("a") as file:
        file.write(word + "\\n")
"""


def run(
    folder: Path,
    script: str,
    *,
    count: int = 2,
    max_restarts: int = 0,
    stop: Stop | None = None,
    lost: list[tuple[str, int]] | None = None,
    keep_open: tuple[int, ...] = (),
) -> int:
    told = [] if lost is None else lost
    return supervise(
        [sys.executable, "-c", BEGIN + textwrap.dedent(script), str(folder)],
        {**os.environ, "PYTHONPATH": str(ROOT)},
        count=count,
        max_restarts=max_restarts,
        stop=stop or Stop(),
        keep_open=keep_open,
        on_lost=lambda what, restart: told.append((what, restart)),
    )


def words(folder: Path, rank: int) -> list[str]:
    path = folder / f"rank-{rank}"
    return path.read_text().splitlines() if path.exists() else []


def test_every_rank_gets_its_place_and_the_first_ones_status_is_the_runs(tmp_path: Path) -> None:
    script = f"""
    say(" ".join(os.environ[name] for name in
        ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")))
    say(str(Path(os.environ["{RENDEZVOUS}"]).parent.stat().st_mode & 0o777))
    say(os.environ["GLOO_SOCKET_IFNAME"])
    """
    assert run(tmp_path, script, count=3) == 0
    loopback = words(tmp_path, 0)[2]
    assert "127.0.0.1" in [a.address for a in psutil.net_if_addrs()[loopback]]
    for rank in range(3):
        assert words(tmp_path, rank) == [f"{rank} {rank} 3 3", str(0o700), loopback]
    assert run(tmp_path, "sys.exit(75)") == 75


def test_the_first_rank_may_outlive_the_others(tmp_path: Path) -> None:
    script = """
    if rank == 0:
        while not (folder / "go").exists():
            time.sleep(0.01)
    else:
        say("done")
        (folder / "go").touch()
    """
    assert run(tmp_path, script) == 0


def test_a_lost_rank_ends_all_ranks_and_all_restart_with_resume(tmp_path: Path) -> None:
    script = """
    say(" ".join(sys.argv[2:]) or "fresh")
    if rank == 1 and len((folder / "rank-1").read_text().splitlines()) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    while not all(len((folder / f"rank-{r}").read_text().splitlines()) == 3 for r in (0, 1)):
        time.sleep(0.01)
    """
    (tmp_path / "rank-0").touch()
    lost: list[tuple[str, int]] = []
    with pytest.raises(RanksLost, match="rank 1 of 2 was killed by SIGKILL; 1 of 1 restarts used"):
        run(tmp_path, script, max_restarts=1, lost=lost)
    assert lost == [("rank 1 of 2 was killed by SIGKILL", 1)]
    assert words(tmp_path, 1) == ["fresh", "--resume"]


def test_a_rank_notices_that_another_has_ended(tmp_path: Path) -> None:
    script = """
    from student_trainer.ranks.supervisor import another_rank_went
    if rank == 1:
        (folder / "here").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    else:
        while not (folder / "here").exists():
            time.sleep(0.01)
        say(str(another_rank_went(0.0)))
        (folder / "go").touch()
        say(str(another_rank_went(600.0)))
    """
    assert run(tmp_path, script) == 0
    assert words(tmp_path, 0) == ["False", "True"]


def test_a_run_whose_ranks_were_restarted_ends_normally(tmp_path: Path) -> None:
    script = f"""
    from student_trainer.ranks.supervisor import why_restarted
    say(str(why_restarted()))
    if rank == 1 and len((folder / "rank-1").read_text().splitlines()) == 1:
        sys.exit({RANK_LOST})
    while len((folder / "rank-1").read_text().splitlines()) < 2:
        time.sleep(0.01)
    """
    (tmp_path / "rank-1").touch()
    lost: list[tuple[str, int]] = []
    assert run(tmp_path, script, max_restarts=3, lost=lost) == 0
    assert lost == [(f"rank 1 of 2 exited with status {RANK_LOST}", 1)]
    why = f"rank 1 of 2 exited with status {RANK_LOST} (1 of 3 restarts)"
    assert words(tmp_path, 1) == ["None", why]


def test_a_rank_that_breaks_after_the_first_has_ended_is_not_lost(tmp_path: Path) -> None:
    script = f"""
    import psutil
    pid = folder / "pid"
    if rank == 0:
        pid.with_suffix(".new").write_text(str(os.getpid()))
        pid.with_suffix(".new").rename(pid)
        sys.exit(75)
    while not pid.exists():
        time.sleep(0.01)
    first = int(pid.read_text())
    while psutil.pid_exists(first) and psutil.Process(first).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    sys.exit({RANK_LOST})
    """
    lost: list[tuple[str, int]] = []
    assert run(tmp_path, script, max_restarts=1, lost=lost) == 75
    assert not lost


def test_the_first_ranks_status_counts_even_if_another_broke_just_before(
    tmp_path: Path,
) -> None:
    script = f"""
    if rank == 1:
        sys.exit({RANK_LOST})
    time.sleep(0.5)
    sys.exit(1)
    """
    lost: list[tuple[str, int]] = []
    assert run(tmp_path, script, max_restarts=3, lost=lost) == 1
    assert lost == []


LISTENING = """
from student_trainer.ranks.supervisor import listen_to_supervisor
from student_trainer.stop import Stop
stop = Stop()
listen_to_supervisor(stop)
say(str(os.getpid()))
while not stop.requested:
    time.sleep(0.01)
say("stopped")
"""


def test_a_stop_reaches_every_rank_but_terminal_signals_do_not(tmp_path: Path) -> None:
    stop, codes = Stop(), list[int]()
    thread = threading.Thread(
        target=lambda: codes.append(run(tmp_path, textwrap.dedent(LISTENING), stop=stop))
    )
    thread.start()
    wait_for(lambda: words(tmp_path, 0) and words(tmp_path, 1))
    for rank in (0, 1):
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(int(words(tmp_path, rank)[0]), number)
    stop.request()
    thread.join(30)
    assert codes == [0]
    assert [words(tmp_path, rank)[1:] for rank in (0, 1)] == [["stopped"], ["stopped"]]


def test_a_stop_at_a_checkpoint_reaches_every_rank_even_a_restarted_one(tmp_path: Path) -> None:
    script = """
    from student_trainer.ranks.supervisor import listen_to_supervisor
    from student_trainer.stop import Stop
    if rank == 0 and not (folder / "lost").exists():
        (folder / "lost").touch()
        os.kill(os.getpid(), 9)
    stop = Stop()
    listen_to_supervisor(stop)
    os.kill(os.getpid(), signal.SIGUSR1)  # as to the whole group: it arrives only by the pipe
    while not stop.at_checkpoint:
        time.sleep(0.01)
    assert not stop.requested
    say("told")
    """
    stop = Stop()
    stop.request_at_checkpoint()
    assert run(tmp_path, script, max_restarts=1, stop=stop) == 0
    # Rank 1 may have been told in its first life as well.
    assert [words(tmp_path, rank)[-1] for rank in (0, 1)] == ["told", "told"]


def test_a_child_process_of_a_rank_does_not_hold_the_lock(tmp_path: Path) -> None:
    script = """
    from student_trainer.ranks.supervisor import listen_to_supervisor
    from student_trainer.stop import Stop
    listen_to_supervisor(Stop())
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    say(str(os.posix_spawn(sys.executable, command, os.environ)))
    """
    with RunFolder(tmp_path).locked() as lock:
        assert run(tmp_path, script, keep_open=(lock,)) == 0
    started = [int(words(tmp_path, rank)[0]) for rank in (0, 1)]
    assert all(psutil.pid_exists(pid) for pid in started)
    free = not RunFolder(tmp_path).is_locked()
    for pid in started:
        os.kill(pid, signal.SIGKILL)
    assert free


DEAF = """
if rank == 1:
    say(str(os.getpid()))
    while not (folder / "go").exists():
        time.sleep(0.01)
    sys.exit()
"""


def test_ranks_end_with_their_supervisor_and_hold_the_lock_until_then(tmp_path: Path) -> None:
    script = f"""
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from lectern_common.run.folder import RunFolder
        from tests.student_trainer.ranks.test_supervisor import DEAF, LISTENING, run
        folder = Path({str(tmp_path)!r})
        with RunFolder(folder).locked() as lock:
            run(folder, DEAF + LISTENING, keep_open=(lock,))
    """
    supervisor = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    wait_for(lambda: words(tmp_path, 0) and words(tmp_path, 1))
    ranks = [psutil.Process(int(words(tmp_path, rank)[0])) for rank in (0, 1)]
    supervisor.kill()
    supervisor.wait(30)
    wait_for(lambda: not ranks[0].is_running())
    assert RunFolder(tmp_path).is_locked()
    (tmp_path / "go").touch()
    wait_for(lambda: not ranks[1].is_running())
    assert not RunFolder(tmp_path).is_locked()
