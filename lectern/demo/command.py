"""`lectern demo`: one teacher, four runs, real text, on this machine.

    run_demo()
      1. takes the running interpreter's standard library source, split by file
      2. trains a byte-level BPE tokenizer and writes token shards    prepare.py
      3. trains a small teacher on it once                            a run with alpha 1
      4. starts teacher server and control plane                      services.py
      5. creates three runs over REST and shows them until they rest  client.py, live.py
      6. stops the teacher, and trains one more from what it said
      7. shows and writes the summary                                 report.py

Everything goes through the same code as a user's own runs; only the specs are the demo's.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lectern import console
from lectern.client import Client, RunStatus
from lectern.commands.runs.watching import watch_runs
from lectern.commands.up import page_lines
from lectern.demo import report as demo_report
from lectern.demo.specs import (
    DATASET,
    EXCLUDED,
    VOCAB_SIZE,
    corpus_folder,
    recorded_spec,
    student_specs,
    teacher_spec,
)
from lectern.demo.teacher import TrainedTeacher, trained_teacher, write_configs
from lectern.local.processes import signals_interrupt
from lectern.local.services import (
    TEACHER_GRACE_SECONDS,
    PlaneOptions,
    Services,
    TeacherOptions,
    services,
)
from lectern_common.errors import LecternError
from lectern_common.files import write_atomic
from lectern_common.roots import Roots
from lectern_common.run.status import RunState
from lectern_common.spec.run_spec import RunSpec
from lectern_common.tokens.shards import MANIFEST_NAME
from lectern_common.words import size
from lectern_data.prepare import prepare
from lectern_data.settings import PrepareSettings

ANSWERS = "demo-answers"


def run_demo(
    *, folder: Path, seed: int, exit_when_done: bool, teacher_steps: int, student_steps: int
) -> None:
    """Runs the whole demo in `folder`; reuses the data and teacher of an earlier demo there.

    Raises:
        LecternError: a step failed; the message says where to look.
    """
    home = folder.resolve()
    roots = Roots.of_home(home)
    teacher = prepare_demo(home, teacher_steps)
    with serving(teacher, home) as (up, client):
        summary = distil(client, up, seed, student_steps, teacher, roots)
        write_atomic(home / "summary.json", json.dumps(summary, indent=2).encode() + b"\n")
        demo_report.show(summary, demo_report.continuations(summary, roots.runs))
        console.note(f"\nsummary: {home / 'summary.json'}")
        if not exit_when_done:
            stay_up(up)


@contextmanager
def serving(teacher: TrainedTeacher, home: Path) -> Iterator[tuple[Services, Client]]:
    """Yields the services with this teacher, whose addresses it prints, and a client of them."""
    console.note("starting the teacher server and the control plane ...")
    with (
        signals_interrupt(),
        services(
            TeacherOptions(str(teacher.path), bind="127.0.0.1:0", threads=1),
            PlaneOptions(bind=_page_bind(), max_running_runs=3),
            roots=Roots.of_home(home),
            logs=home / "logs",
        ) as up,
        Client(up.url, token=up.token or "") as client,
    ):
        console.note("")
        for line in (*page_lines(up), f"teacher  {up.teacher_address}"):
            console.note(f"  {line}")
        console.note("")
        yield up, client


def prepare_demo(home: Path, teacher_steps: int) -> TrainedTeacher:
    """Returns the demo's teacher; makes shards, configs and teacher under `home` as needed."""
    roots = Roots.of_home(home)
    write_configs(roots.models)
    _prepare_data(roots.data)
    return trained_teacher(home, teacher_spec(teacher_steps, threads=os.cpu_count() or 1))


def distil(
    client: Client,
    up: Services,
    seed: int,
    steps: int,
    teacher: TrainedTeacher,
    roots: Roots,
) -> dict[str, Any]:
    """Trains the three runs with the teacher, then the one without; returns the summary.

    Raises:
        LecternError: a run did not succeed.
    """
    _forget(roots.data / ANSWERS)
    specs = student_specs(up.teacher_address, seed, steps, record_to=ANSWERS)
    runs = rested(client, specs)
    served = demo_report.served_teacher(client, up.teacher_address)
    console.note("\nstopping the teacher; the last run learns from the record of its answers ...")
    up.children[0].stop(TEACHER_GRACE_SECONDS)
    specs.append(recorded_spec(ANSWERS, seed, steps))
    runs += rested(client, specs[-1:])
    served["val_loss"] = teacher.val_loss
    return demo_report.summarise(served, runs, specs, roots.runs)


def rested(client: Client, specs: list[RunSpec]) -> list[RunStatus]:
    """Creates runs, shows them until all are at rest, and returns them.

    Raises:
        LecternError: a run did not succeed.
    """
    runs = watch_runs(client, [client.create_run(spec).id for spec in specs])
    for run in runs:
        if run.state is not RunState.SUCCEEDED:
            raise LecternError(f"{run.id} is {run.state}: {run.message}")
    return list(runs)


def _forget(record: Path) -> None:
    """Deletes the record of an earlier demo, and what is left of one that was stopped."""
    for path in (record, record.with_name(f".{record.name}.recording")):
        shutil.rmtree(path, ignore_errors=True)


def _prepare_data(data: Path) -> None:
    if (data / DATASET / MANIFEST_NAME).exists():
        console.note(f"text: kept from before ({data / DATASET})")
        return
    data.mkdir(parents=True, exist_ok=True)
    corpus = corpus_folder()
    console.note(f"text: the source of the standard library, {corpus}")
    prepared = prepare(
        PrepareSettings(
            [corpus],
            data / DATASET,
            train_vocab_size=VOCAB_SIZE,
            eos_token="<|endoftext|>",  # noqa: S106 - a token of text, no password
            validation_fraction=0.06,
            include=["*.py"],
            exclude=EXCLUDED,
        )
    )
    for part in filter(None, (prepared.training, prepared.validation)):
        console.note(
            f"      {part.path.name}: {part.documents} files, {size(part.text_bytes)}, "
            f"{part.tokens:,} tokens"
        )


def _page_bind() -> str:
    """Returns the page's usual address, or one with a free port if that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8080))
        except OSError:
            return "127.0.0.1:0"
    return "127.0.0.1:8080"


def stay_up(up: Services) -> None:
    """Waits for Ctrl-C or SIGTERM; raises if the control plane dies."""
    console.note("the page stays up; Ctrl-C ends it")
    for line in page_lines(up):
        console.note(f"  {line}")
    try:
        while True:
            time.sleep(0.5)
            _, plane = up.children
            if not plane.is_alive:
                raise plane.death()
    except KeyboardInterrupt:
        console.note("stopping the services ...")
