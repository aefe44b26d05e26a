"""The `lectern` command: registers the subcommands and prints each error as one sentence.

A command's module declares its options, and imports the code that does the work only when it is
called, so `lectern --help` loads nothing but typer.
"""

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from lectern import console
from lectern.commands import (
    alerts,
    data,
    doctor,
    record,
    runs,
    teacher,
    token,
    train,
    up,
)
from lectern.commands.options.teacher import PointsToTeacher
from lectern.commands.runs import sweeps
from lectern.commands.stages import evaluate, export, publish, tasks
from lectern.demo import containers as demo_containers
from lectern_common.errors import LecternError
from lectern_common.words import inert_name

_EPILOG = "\b\nExit status:\n" + "\n".join(
    f"  {code:<4} {meaning}" for code, meaning in console.EXIT_CODES.items()
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"lectern {version('lectern')}")
        raise typer.Exit


app = typer.Typer(
    name="lectern",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(
    epilog="Example: lectern up --model Qwen/Qwen2.5-Coder-7B-Instruct -- --mode throughput",
    cls=PointsToTeacher,
    context_settings={"allow_extra_args": True},
)(up.up)
app.command(epilog="Example: lectern train run.yaml --dry-run --json")(train.train)
app.command(
    epilog="Example: lectern precompute run.yaml --output answers",
)(record.precompute)
app.command(
    epilog="Example: lectern evaluate my-run --suite perplexity --suite code --json",
)(evaluate.evaluate)
app.command(epilog="Example: lectern export small-1 --format gguf --type q8_0")(export.export)
app.command(
    epilog="Example: lectern publish small-1 --to ORG/NAME --license apache-2.0",
)(publish.publish)
app.command(epilog="Example: lectern doctor --json")(doctor.doctor)
app.add_typer(teacher.app, name="teacher")
app.add_typer(runs.app, name="runs")
app.command(epilog="Example: lectern sweep rates.yaml --watch")(sweeps.sweep)
app.add_typer(sweeps.app, name="sweeps")
app.add_typer(tasks.app, name="tasks")
app.add_typer(alerts.app, name="alerts")
app.add_typer(data.app, name="data")
app.add_typer(record.app, name="record")
app.add_typer(token.app, name="token")
app.command("demo-prepare", hidden=True)(demo_containers.prepare)
app.command("demo-runs", hidden=True)(demo_containers.runs)


@app.callback()
def lectern(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the installed version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Knowledge distillation of language models as a service: one teacher, many students."""


@app.command(epilog="Example: lectern demo --exit --seed 1")
def demo(
    exit_when_done: Annotated[
        bool, typer.Option("--exit", help="Stop the services when the runs are done.")
    ] = False,
    seed: Annotated[
        int, typer.Option(help="Seed of the students' initial weights and row order.")
    ] = 0,
    folder: Annotated[
        Path, typer.Option(help="Folder for data, teacher, runs and summary.json.")
    ] = Path("demo"),
    teacher_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps of the teacher [default: the demo's].", show_default=False
        ),
    ] = None,
    student_steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training steps of each student [default: the demo's].", show_default=False
        ),
    ] = None,
    on_policy: Annotated[
        bool, typer.Option("--on-policy", help="Let a student learn from what it writes itself.")
    ] = False,
) -> None:
    """Run a complete example: one teacher, four runs, real text.

    Trains a small teacher and distils students from it, on this machine: the last one from a record
    of its answers, with the teacher stopped. Takes about six minutes on two CPU cores and downloads
    nothing.

    With --on-policy, another example, of about three minutes: a student that was distilled from
    short functions goes on in two ways, off-policy and on-policy, and the teacher judges what each
    writes.
    """
    console.note("loading; the first time takes a while, as Python compiles its packages ...")
    from lectern.demo import on_policy as alternative
    from lectern.demo.command import run_demo
    from lectern.demo.specs import STUDENT_STEPS, TEACHER_STEPS

    if on_policy:
        alternative.run_on_policy_demo(
            folder=folder,
            seed=seed,
            exit_when_done=exit_when_done,
            teacher_steps=teacher_steps or alternative.TEACHER_STEPS,
            student_steps=student_steps or alternative.STEPS,
        )
        return
    run_demo(
        folder=folder,
        seed=seed,
        exit_when_done=exit_when_done,
        teacher_steps=teacher_steps or TEACHER_STEPS,
        student_steps=student_steps or STUDENT_STEPS,
    )


def main() -> None:
    """Runs the command line and exits with one of `console.EXIT_CODES`.

    A traceback is printed only if LECTERN_DEBUG is set.
    """
    try:
        app(prog_name="lectern")  # for `python -m lectern` too: completion goes by this name
    except LecternError as error:
        _debug()
        console.print_error(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(console.CTRL_C_EXIT_CODE) from None
    except Exception as error:
        _debug()
        if isinstance(error, OSError) and error.strerror:
            where = f"{inert_name(error.filename)}: " if error.filename else ""
            message = f"{where}{error.strerror}"
        else:
            what = f"{type(error).__name__}: {error}"
            message = f"{what}; this is a bug in lectern; LECTERN_DEBUG=1 shows the traceback"
        console.note(console.inert(f"error: {message}"))
        raise SystemExit(1) from None


def _debug() -> None:
    if os.environ.get("LECTERN_DEBUG"):
        traceback.print_exc(file=sys.stderr)


if __name__ == "__main__":
    main()
