"""The command that starts an interpreter in a sandbox of bubblewrap, or without one.

The sandbox has user, network, process, IPC, host name and mount namespaces of its own. It sees the
system's programs and libraries, read-only, an empty /tmp in memory, and nothing else: no /proc, no
home, no sockets. When its first process ends, or the process that has started it, all of it ends.

Resource limits do not hold for the user root, so a sandbox that root starts has the ids of an
unused user from the beginning, each of those that run at the same time another one. The program
setpriv gives it those: if `subprocess` did, it would fork, and what other libraries do in a forked
process (gRPC's threads are the usual case) has kept sandboxes from starting.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lectern_common.errors import Misconfigured

# --size, --disable-userns and --remount-ro are there from this release on.
OLDEST = (0, 8)
_ADVICE = (
    "install bubblewrap (Debian, Ubuntu: apt-get install bubblewrap; Fedora: dnf install "
    "bubblewrap), or set --no-sandbox (code.sandbox: false) if the programs may do to this machine "
    "whatever they like"
)
_SYSTEM_PYTHONS = ("/usr/bin/python3", "/usr/local/bin/python3")
# Unused by Linux distributions, and below 65,536, of which containers often have no more.
_UNUSED_IDS = range(64_000, 65_000)
_TMP = "/tmp"  # noqa: S108, of the sandbox: empty, and in memory
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": _TMP,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Command:
    """How to start an interpreter.

    Attributes:
        argv: ends before the interpreter's own arguments.
        environment: all that it gets of one.
        shares_user: the programs run as a user that has other processes.
    """

    argv: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    shares_user: bool = True


def unprotected_command() -> Command:
    """Returns the command that isolates nothing."""
    return Command([sys.executable], _ENVIRONMENT)


def sandbox_commands(file_bytes: int, count: int) -> list[Command]:
    """Returns the commands of `count` sandboxes that may run at the same time.

    Args:
        file_bytes: size of /tmp in each.
        count: at least 1.

    Raises:
        Misconfigured: there is no bubblewrap, it is too old, or this user can run no interpreter
            in it; the message says what to install.
    """
    program = _bubblewrap()
    if os.geteuid() == 0:
        ids = _unused_ids(count)
        python, prefix = _python_for_everyone()
        argv = _argv(program, python, prefix, file_bytes)
        return [Command([*_as_user(one), *argv], _ENVIRONMENT, False) for one in ids]
    python, prefix = _own_python()
    # Its user namespace counts its own processes (Linux 5.14), so the user's others do not matter.
    command = Command(_argv(program, python, prefix, file_bytes), _ENVIRONMENT, False)
    return [command] * count


def _argv(program: str, python: str, prefix: Path, file_bytes: int) -> list[str]:
    argv = [program, "--unshare-user", "--disable-userns", "--unshare-net", "--unshare-pid"]
    argv += ["--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    argv += ["--die-with-parent", "--new-session"]
    argv += _system_mounts()
    if not prefix.is_relative_to("/usr"):
        argv += ["--ro-bind", str(prefix), str(prefix)]
    # Each of these is in memory, without a limit of its own: what may be written is only /tmp.
    argv += ["--dev", "/dev", "--remount-ro", "/dev"]
    argv += ["--size", str(file_bytes), "--tmpfs", _TMP]
    return [*argv, "--remount-ro", "/", "--chdir", _TMP, "--", python]


def _as_user(user_id: int) -> list[str]:
    """Returns the beginning of a command that runs as a user, in the group of the same number."""
    program = shutil.which("setpriv")
    if program is None:
        raise Misconfigured(
            "the sandbox for generated code needs setpriv if root starts it: install util-linux, "
            "or run as another user than root"
        )
    return [program, f"--reuid={user_id}", f"--regid={user_id}", "--clear-groups", "--"]


def _system_mounts() -> list[str]:
    argv = ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            argv += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), str(path)]
    return argv


def _bubblewrap() -> str:
    """Returns the path of bubblewrap. Raises Misconfigured unless it is there and new enough."""
    if sys.platform != "linux":
        raise Misconfigured(
            "the sandbox for generated code needs Linux; evaluate there, or set --no-sandbox if "
            "the programs may do to this machine whatever they like"
        )
    program = shutil.which("bwrap")
    if program is None:
        raise Misconfigured(f"the sandbox for generated code needs bwrap: {_ADVICE}")
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)\.(\d+)", told.stdout)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        raise Misconfigured(
            f"{program} is {' '.join(told.stdout.split()) or 'of an unknown version'}; the sandbox "
            f"needs bubblewrap {OLDEST[0]}.{OLDEST[1]} or newer: upgrade it, or set --no-sandbox "
            "if the programs may do to this machine whatever they like"
        )
    return program


def _own_python() -> tuple[str, Path]:
    """Returns (path, prefix) of the interpreter that this process's environment was made from."""
    return os.path.realpath(sys.executable), Path(sys.base_prefix).resolve()


def _python_for_everyone() -> tuple[str, Path]:
    """Returns (path, prefix) of an interpreter that every user can run: ours, else the system's."""
    python, prefix = _own_python()
    if _is_open(Path(python)) and _is_open(prefix):
        return python, prefix
    for path in _SYSTEM_PYTHONS:
        real = Path(os.path.realpath(path))
        if real.is_file() and _is_open(real):
            return str(real), Path("/usr")
    raise Misconfigured(
        f"the sandbox for generated code runs as an unused user, who cannot run {python}, and "
        "there is no /usr/bin/python3: install the system's Python, run as another user than root, "
        "or set --no-sandbox if the programs may do to this machine whatever they like"
    )


def _is_open(path: Path) -> bool:
    """Returns True if every user can reach and read a path."""
    return path.stat().st_mode & 0o5 == 0o5 and all(
        parent.stat().st_mode & 0o1 for parent in path.parents
    )


def _unused_ids(count: int) -> list[int]:
    """Returns user ids that nobody has, no process has, and no other sandbox has."""
    taken = set(_ids_of_processes())
    free = [one for one in _UNUSED_IDS if one not in taken and not _has_name(one)]
    # Spread by process, so that two evaluations that start at the same time choose others.
    start = os.getpid() * count % max(1, len(free))
    free = free[start:] + free[:start]
    if len(free) < count:
        raise Misconfigured(
            f"all user ids of {_UNUSED_IDS.start} to {_UNUSED_IDS.stop - 1} are in use, one of "
            "which the sandbox takes: end the processes that have them"
        )
    return free[:count]


def _has_name(user_id: int) -> bool:
    try:
        pwd.getpwuid(user_id)
    except KeyError:
        return False
    return True


def _ids_of_processes() -> Iterator[int]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with suppress(OSError):
                yield path.stat().st_uid
