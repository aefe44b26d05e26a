"""`lectern train`: trains one run on this machine, without a control plane."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lectern import console
from lectern.options import Home, Json, given, roots_of, spec_of

if TYPE_CHECKING:
    from lectern_common.roots import Roots
    from lectern_common.run.folder import RunFolder
    from lectern_common.spec.run_spec import RunSpec


def train(
    spec_file: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The run spec.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest checkpoint.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Only check and estimate: spec, data, models, teacher, device, memory, time, "
            "disk. Writes nothing.",
        ),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Train one run in this terminal, without a control plane.

    The run folder is RUNS/NAME, after the name in the spec; everything that can be checked is
    checked before it is made. Ctrl-C writes a checkpoint and stops; --resume continues from there.
    `kill -USR1` of this command lets the run go on to its next checkpoint and stops it there.
    """
    from lectern.local.folder import resolved

    roots = roots_of(home)
    spec = resolved(spec_of(spec_file), roots, resume=resume)
    if dry_run:
        from lectern.commands.dry_run import dry_run as print_dry_run

        print_dry_run(spec, roots, resume=resume, as_json=as_json)
    else:
        words = given({"--resume": True, "--home": home})
        again = shlex.join(["lectern", "train", str(spec_file), *words])
        _train(spec, roots, resume=resume, as_json=as_json, again=again)


def _train(spec: "RunSpec", roots: "Roots", *, resume: bool, as_json: bool, again: str) -> None:
    from lectern.local.folder import require_folder
    from lectern.local.foreground import run_trainer
    from lectern.terminal import live
    from lectern_common.checks.preflight import startable
    from lectern_common.run.folder import RunFolder

    require_folder(spec, roots, resume=resume)
    folder = RunFolder(roots.runs / spec.name)
    found = startable(
        spec,
        roots,
        taught_by=folder.read_teacher() if resume else None,
        packs_chats=not resume or folder.packs_chats,
        teachers=folder.read_teachers() if resume else None,
    )
    if resume:
        folder.write_spec(spec)
    else:
        folder = RunFolder.create(roots.runs, spec.name, spec, found.identity, found.accepted)
    console.note(f"run folder {folder.path}")
    for label, own in found.sources.items():
        if own.counts is not None:
            console.note(f"source {label}: {own.counts}")
    if found.counts is not None and (found.counts.of == "chat" or found.counts.unknown):
        console.note(str(found.counts))
    if as_json:
        code = run_trainer(folder, roots, resume=resume)
    else:
        with live.display(spec.name) as show:
            code = run_trainer(folder, roots, resume=resume, show=lambda view: show([view]))
    _report(folder, code, as_json=as_json, again=again)
    if code:
        raise typer.Exit(code)


def _report(folder: "RunFolder", code: int, *, as_json: bool, again: str) -> None:
    """Prints how the run ended, and `again`, the command that resumes it."""
    from lectern_common.run.status import RunState

    status = folder.read_status()
    result: dict[str, Any] = {
        "run_id": folder.run_id,
        "folder": str(folder.path),
        "exit_code": code,
        "export": str(folder.export_path) if folder.export_path.is_dir() else None,
        "status": None if status is None else asdict(status),
    }
    if as_json:
        console.print_json(result)
    if code == 0 and status is not None:
        where = f", {result['export']}" if result["export"] else ""
        console.note(f"{status.state} at step {status.step} of {status.steps}{where}")
        if status.state is RunState.STOPPED:
            console.note(f"resume with: {again}")
        elif status.message:
            console.note(status.message)
        return
    if status is not None and status.message:
        console.note(f"error: run {folder.run_id}: {status.message}")
    else:
        from lectern.local.processes import tail

        console.note(
            "error: the trainer ended unexpectedly; the end of its log:\n"
            f"{tail(folder.log_path, 20)}"
        )
    if code == console.INTERRUPTED_EXIT_CODE:
        console.note(f"resume with: {again}")
    console.note(f"log: {folder.log_path}")
