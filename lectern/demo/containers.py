"""The demo in containers: its two halves as commands that docker/compose.cpu.yaml runs.

Neither is listed by `lectern --help`; on one machine `lectern demo` is both.
"""

from typing import Annotated

import typer

from lectern import console
from lectern.options import Url, roots_of


def prepare(
    teacher_steps: Annotated[int, typer.Option(min=1, help="Steps of the teacher's training.")],
) -> None:
    """Make text shards, model configs and teacher under LECTERN_HOME, unless they are there."""
    from lectern.demo.command import prepare_demo

    prepare_demo(roots_of(None).data.parent, teacher_steps)


def runs(
    url: Url,
    teacher: Annotated[str, typer.Option(help="HOST:PORT for the runs' spec.")],
    teacher_token_file: Annotated[str, typer.Option(help="Under the secrets root.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")],
) -> None:
    """Create the demo's three runs over REST, once, and show all of them until they rest."""
    from lectern.client import Client
    from lectern.commands.runs import watch_runs
    from lectern.demo.specs import student_specs

    with Client(url) as service:
        there = {run.name: run.id for run in service.list_runs()}
        ids = [
            there.get(spec.name) or service.create_run(spec).id
            for spec in student_specs(teacher, 0, steps, token_file=teacher_token_file)
        ]
        rested = watch_runs(service, ids)
    console.note("\n".join(f"{run.id}: {run.state}" for run in rested))
