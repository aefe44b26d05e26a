"""The two halves of the demo, as hidden commands that docker/compose.cpu.yaml runs.

On one machine, `lectern demo` does both.
"""

from typing import Annotated

import typer

from lectern import console
from lectern.options import Url, control_plane, roots_of
from lectern_common.callers import CONTROL_PLANE_TOKEN


def prepare(
    teacher_steps: Annotated[int, typer.Option(min=1, help="Steps of the teacher's training.")],
) -> None:
    """Make text shards, model configs and teacher under LECTERN_HOME, unless they exist."""
    from lectern.demo.command import prepare_demo

    prepare_demo(roots_of(None).data.parent, teacher_steps)


def runs(
    url: Url,
    teacher: Annotated[str, typer.Option(help="HOST:PORT of the teacher, for the runs' specs.")],
    teacher_token_file: Annotated[
        str, typer.Option(help="File under the secrets root with the teacher's token.")
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")],
) -> None:
    """Create the demo's three runs over REST, unless they exist, and show them until all end."""
    from lectern.commands.runs.watching import watch_runs
    from lectern.demo.specs import student_specs

    with control_plane(url, roots_of(None).secrets / CONTROL_PLANE_TOKEN) as service:
        there = {run.name: run.id for run in service.list_runs()}
        ids = [
            there.get(spec.name) or service.create_run(spec).id
            for spec in student_specs(teacher, 0, steps, token_file=teacher_token_file)
        ]
        rested = watch_runs(service, ids)
    console.note("\n".join(f"{run.id}: {run.state}" for run in rested))
