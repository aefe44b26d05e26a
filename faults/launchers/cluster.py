"""A real Slurm of two nodes on this machine, with daemons, ports, key and folders of its own.

It runs as root without systemd. Nothing of it is kept, and every daemon is ended by its pid.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol", "srun")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NODES = ("n1", "n2")
START_SECONDS = 30.0


def why_no_slurm() -> str | None:
    """Returns why no Slurm can be started here; None if one can."""
    missing = [name for name in _NEEDS if shutil.which(name, path=_PATH) is None]
    if missing:
        return f"no {missing[0]}: install slurm-wlm and munge"
    return None if os.geteuid() == 0 else "slurmd has to be started as root"


class Cluster:
    """A controller and its nodes.

    Args:
        folder: holds everything of it.
        max_jobs: that the controller keeps; a further one is refused for now.
    """

    def __init__(self, folder: Path, max_jobs: int = 1000) -> None:
        self.folder = folder
        self.config = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        (folder / "state").mkdir()
        self.config.write_text(_config(folder, free_ports(1 + len(NODES)), max_jobs))

    @property
    def environment(self) -> dict[str, str]:
        """Of Slurm's commands, and of a control plane over this cluster."""
        return {**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.config)}

    def ask(self, *argv: str) -> str:
        """Returns the output of one of Slurm's commands."""
        done = subprocess.run(
            argv, env=self.environment, check=True, capture_output=True, text=True
        )
        return done.stdout

    def start(self) -> None:
        files = ("key-file=munge.key", "socket=munge.sock", "pid-file=munge.pid")
        words = [f"--{name}={self.folder / file}" for name, file in (w.split("=") for w in files)]
        words += [f"--seed-file={self.folder / 'munge.seed'}", "--foreground", "--force"]
        words.append(f"--log-file={self.folder / 'munge.log'}")
        self._start("munged", ["munged", *words])
        _until(lambda: (self.folder / "munge.sock").exists())
        self.start_controller()
        for node in NODES:
            (self.folder / f"spool-{node}").mkdir(exist_ok=True)
            self._start(node, ["slurmd", "-D", "-N", node])
        _until(lambda: self._idle() == len(NODES))

    def start_controller(self) -> None:
        self._start("controller", ["slurmctld", "-D"])
        _until(self._answers)

    def stop_controller(self) -> None:
        self._end("controller")

    def stop(self) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.ask("scancel", f"--user={os.getuid()}")
            _until(lambda: not self.ask("squeue", "--noheader").strip())
        for name in reversed(list(self._daemons)):
            self._end(name)

    def preempt(self, job: str) -> None:
        """Requeues a job, as for one of a higher priority, and lets it start again at once."""
        self.ask("scontrol", "requeue", job)

    def _answers(self) -> bool:
        with contextlib.suppress(subprocess.CalledProcessError):
            return bool(self.ask("scontrol", "ping")) and self._idle() >= 0
        return False

    def _idle(self) -> int:
        with contextlib.suppress(subprocess.CalledProcessError):
            words = ("--noheader", "--Node", "--partition=main", "--format=%t")
            return self.ask("sinfo", *words).split().count("idle")
        return -1

    def _start(self, name: str, argv: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                argv,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


@contextlib.contextmanager
def cluster(folder: Path, max_jobs: int = 1000) -> Iterator[Cluster]:
    """Yields a cluster that runs, and ends it."""
    made = Cluster(folder, max_jobs)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def _until(condition: Callable[[], object], seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("Slurm did not come up, or down")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]


def _config(folder: Path, ports: Sequence[int], max_jobs: int) -> str:
    host = socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8"
        " RealMemory=2000 State=UNKNOWN"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    return "\n".join(
        [
            "ClusterName=lectern",
            f"SlurmctldHost={host}(127.0.0.1)",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            # A requeued job starts again after this many seconds; Slurm takes no fewer.
            f"AuthInfo=socket={folder / 'munge.sock'},cred_expire=5",
            f"SlurmctldPort={ports[0]}",
            f"StateSaveLocation={folder / 'state'}",
            f"SlurmdSpoolDir={folder}/spool-%n",
            f"SlurmctldPidFile={folder / 'slurmctld.pid'}",
            f"SlurmdPidFile={folder}/slurmd-%n.pid",
            f"SlurmctldLogFile={folder / 'slurmctld.log'}",
            f"SlurmdLogFile={folder}/slurmd-%n.log",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_Core",
            "AccountingStorageType=accounting_storage/none",
            "JobAcctGatherType=jobacct_gather/none",
            "MpiDefault=none",
            "ReturnToService=2",
            "SlurmdParameters=config_overrides",
            "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1",
            "KillWait=20",
            f"MaxJobCount={max_jobs}",
            *nodes,
            f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP",
            f"PartitionName=narrow Nodes={NODES[0]} MaxNodes=1 State=UP",
            "",
        ]
    )
