"""`lectern doctor`: checks whether this machine is ready. One failed check stops no other."""

import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from lectern import console
from lectern.options import (
    AlertWebhookFile,
    Home,
    Json,
    TeacherTlsCa,
    TeacherTlsCert,
    TeacherTlsKey,
    TeacherTokenFile,
    roots_of,
)
from lectern_common.callers import CONTROL_PLANE_TOKEN, is_loopback, token_in
from lectern_common.checks.check import Check, Outcome
from lectern_common.errors import LecternError, NotFound
from lectern_common.files import require_locks
from lectern_common.roots import Roots
from lectern_common.teacher.secrets import SecretFiles
from lectern_common.words import GIB, counted, gib

_NO_SECRETS = SecretFiles()
_TRAINING_PACKAGES = ("transformers", "safetensors", "tokenizers", "huggingface_hub")


def doctor(
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Address of a teacher that must answer [default: 127.0.0.1:50051, which need not "
            "answer].",
            show_default=False,
        ),
    ] = None,
    teacher_token_file: TeacherTokenFile = None,
    teacher_tls_ca: TeacherTlsCa = None,
    teacher_tls_cert: TeacherTlsCert = None,
    teacher_tls_key: TeacherTlsKey = None,
    alert_webhook_file: AlertWebhookFile = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check this machine and say what to fix.

    Checks Python, torch, GPU, folders, disk, ports, control plane, teacher and webhook file.

    Exits with 1 if something must be fixed before Lectern works.
    """
    secrets = SecretFiles(teacher_token_file, teacher_tls_ca, teacher_tls_cert, teacher_tls_key)
    if secrets.named() and teacher is None:
        raise typer.BadParameter(
            "--teacher-token-file and --teacher-tls-* need a teacher to ask; set it",
            param_hint="--teacher",
        )
    findings = list(examine(roots_of(home), teacher, secrets, alert_webhook_file))
    failed = any(finding.outcome is Outcome.FAIL for finding in findings)
    if as_json:
        console.print_json({"ok": not failed, "findings": [entry.as_json() for entry in findings]})
    else:
        _draw(findings)
    if failed:
        raise typer.Exit(1)


def examine(
    roots: Roots,
    teacher: str | None = None,
    secrets: SecretFiles = _NO_SECRETS,
    webhook_file: str | None = None,
) -> Iterator[Check]:
    """Yields every check; asks the teacher at the address `teacher` (as in a spec), if given."""
    yield _python()
    yield from _torch()
    yield from _folders(roots)
    yield _disk(roots)
    yield _open_files()
    yield _control_plane("127.0.0.1:8080", roots)
    yield from _disk_of_runs("127.0.0.1:8080", roots)
    if webhook_file is not None:
        yield _webhook(roots, webhook_file)
    if teacher is None:
        yield _usual_teacher("127.0.0.1:50051", roots)
    else:
        yield _teacher(teacher, roots, secrets)
    yield _docker()


def _python() -> Check:
    release = ".".join(map(str, sys.version_info[:3]))
    return Check("python", Outcome.PASS, f"{release}, {sys.executable}")


def _torch() -> Iterator[Check]:
    from lectern.local.torch_probe import probe_torch

    facts = probe_torch()
    if facts.version is None:
        yield Check(
            "torch",
            Outcome.WARN,
            facts.problem or "not installed",
            "teacher and trainers cannot run here: make install, or pip install 'lectern[torch]'",
        )
        return
    build = f"built for CUDA {facts.cuda}" if facts.cuda else "CPU build"
    threads = counted(facts.threads, "thread")
    yield Check("torch", Outcome.PASS, f"{facts.version}, {build}, {threads}")
    missing = [name for name in _TRAINING_PACKAGES if _version(name) is None]
    if missing:
        advice = "make install, or pip install 'lectern[torch]'"
        yield Check("packages", Outcome.FAIL, f"missing: {', '.join(missing)}", advice)
    if facts.devices:
        yield Check("gpu", Outcome.PASS, "; ".join(facts.devices))
    elif has_nvidia_driver():
        advice = (
            "run make install with TORCH_INDEX set to PyTorch's wheel index for your CUDA version"
            if facts.cuda is None
            else "the driver may be too old for this torch, or CUDA_VISIBLE_DEVICES hides the GPU"
        )
        yield Check(
            "gpu", Outcome.FAIL, "this machine has an NVIDIA driver, but torch sees no GPU", advice
        )
    else:
        yield Check(
            "gpu", Outcome.WARN, "none; everything runs on the CPU", "fine for small models"
        )


def has_nvidia_driver() -> bool:
    """Returns True if the NVIDIA kernel driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists()


def _folders(roots: Roots) -> Iterator[Check]:
    for name, path in asdict(roots).items():
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not existing.is_dir():
            advice = f"remove it, or set LECTERN_{name.upper()}_ROOT"
            yield Check(f"{name} root", Outcome.FAIL, f"{existing} is not a folder", advice)
        elif not os.access(existing, os.W_OK | os.X_OK):
            advice = f"change its permissions, or set LECTERN_{name.upper()}_ROOT"
            yield Check(f"{name} root", Outcome.FAIL, f"{existing} is not writable", advice)
        elif name == "secrets" and path.exists() and path.stat().st_mode & 0o077:
            advice = f"chmod 700 {path}"
            yield Check(f"{name} root", Outcome.WARN, f"{path} is open to other users", advice)
        elif name in ("data", "runs") and path.exists() and (problem := _without_locks(path)):
            yield Check.failed(f"{name} root", problem)
        else:
            later = "" if path.exists() else " (created when needed)"
            yield Check(f"{name} root", Outcome.PASS, f"{path}{later}")


def _without_locks(folder: Path) -> LecternError | None:
    """Returns why files in a folder cannot be locked; None if they can."""
    try:
        require_locks(folder)
    except LecternError as error:
        return error
    return None


def _disk(roots: Roots) -> Check:
    path = next(parent for parent in (roots.runs, *roots.runs.parents) if parent.exists())
    free = shutil.disk_usage(path).free
    message = f"{gib(free)} free for runs"
    advice = "a checkpoint takes 12 bytes per parameter; free some space, or set LECTERN_RUNS_ROOT"
    if free < GIB // 4:
        return Check("disk", Outcome.FAIL, message, advice)
    return Check("disk", Outcome.WARN if free < 10 * GIB else Outcome.PASS, message, advice)


def _open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 1024:
        return Check("open files", Outcome.WARN, f"limit {soft}", "raise it: ulimit -n 4096")
    return Check("open files", Outcome.PASS, f"limit {soft}")


def _control_plane(address: str, roots: Roots) -> Check:
    """Checks the control plane at the usual address, and compares its release with this one."""
    from lectern.client import Client

    free = _port("control plane", address, "--bind")
    if free.outcome is Outcome.PASS:
        return free
    token = None
    with suppress(ValueError):
        token = token_in(roots.secrets / CONTROL_PLANE_TOKEN) or None
    with Client(f"http://{address}", token=token, timeout_seconds=2.0) as service:
        if not service.is_ready():
            return free
        found = f"running at {service.url}"
        try:
            theirs = str(service.version().get("version"))
        except NotFound:
            theirs = "an earlier release"
        except LecternError as error:  # another home's, which asks for another token
            return Check("control plane", Outcome.PASS, f"{found}; its version is unknown: {error}")
    if theirs == (ours := version("lectern")):
        return Check("control plane", Outcome.PASS, f"{found}, version {theirs}")
    return Check(
        "control plane",
        Outcome.WARN,
        f"{found}, version {theirs}, but this is {ours}",
        "restart it: its trainers go on meanwhile",
    )


def _webhook(roots: Roots, name: str) -> Check:
    from lectern_common.run.webhook import read_receiver

    try:
        receiver = read_receiver(roots.secrets, name)
    except LecternError as error:
        return Check.failed("alert webhook", error)
    how = "unsigned" if receiver.secret is None else "signed"
    found = f"{receiver.shown}, {how}"
    if receiver.url.startswith("http:") and not is_loopback(receiver.host):
        advice = "use https if it can: names of runs and errors pass in the clear"
        return Check("alert webhook", Outcome.WARN, found, advice)
    return Check("alert webhook", Outcome.PASS, found)


def _disk_of_runs(address: str, roots: Roots) -> Iterator[Check]:
    """Yields the warning of the control plane of these roots about its disk, if it has one."""
    from lectern.client import Client

    try:
        token = token_in(roots.secrets / CONTROL_PLANE_TOKEN)
    except ValueError:  # there has been none
        return
    warning = None
    # None may answer, or one of another home or of an earlier release.
    with suppress(LecternError), Client(f"http://{address}", token=token, timeout_seconds=2) as one:
        warning = one.disk().warning
    if warning is not None:
        yield Check("disk of the runs", Outcome.WARN, warning, "lectern runs prune")


def _usual_teacher(address: str, roots: Roots) -> Check:
    free = _port("teacher", address, "--teacher-bind")
    if free.outcome is Outcome.PASS:
        return free
    running = _teacher(address, roots, _NO_SECRETS)
    return running if running.outcome is Outcome.PASS else free


def _port(subject: str, address: str, option: str) -> Check:
    from lectern.local.services import require_free

    try:
        require_free(address, option)
    except LecternError as error:
        return Check(subject, Outcome.WARN, str(error))
    return Check(subject, Outcome.PASS, f"not running; {address} is free")


def _teacher(address: str, roots: Roots, files: SecretFiles) -> Check:
    from lectern_common.teacher.address import checked_address
    from lectern_common.teacher.replicas import TeacherReplicas
    from lectern_common.teacher.secrets import read_secrets, require_whole

    try:
        require_whole(files)
        secrets = read_secrets(roots, files)
        with TeacherReplicas(checked_address(address), secrets.token, secrets.tls) as replicas:
            models, away = replicas.get_models(timeout_seconds=5.0)
    except LecternError as error:
        return Check.failed("teacher", error)
    except ValueError as error:
        return Check("teacher", Outcome.FAIL, str(error))
    model = next(iter(models.values()))
    found = f"{model.model_id} on {model.device} at {', '.join(models)}"
    if away:
        return Check(
            "teacher", Outcome.WARN, "; ".join([found, *map(str, away)]), "start the others"
        )
    return Check("teacher", Outcome.PASS, found)


def _docker() -> Check:
    path = shutil.which("docker")
    return Check("docker", Outcome.PASS, path or "not found; only the files under docker/ need it")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _draw(findings: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    styles = {Outcome.PASS: "green", Outcome.WARN: "yellow", Outcome.FAIL: "bold red"}
    table = Table("", "checked", show_lines=False)
    for head in ("found", "what to do"):
        table.add_column(head, overflow="fold")  # the end of a long path is what tells it
    for finding in findings:
        table.add_row(
            Text(finding.outcome, style=styles[finding.outcome]),
            Text(finding.subject),
            Text(console.inert(finding.message)),
            Text("" if finding.outcome is Outcome.PASS else console.inert(finding.advice)),
        )
    console.out().print(table)
