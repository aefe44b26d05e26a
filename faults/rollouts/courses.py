"""Runs whose student writes its own rows: with the weights of the step, or of the one before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from faults.models import write_model
from faults.processes import Server
from faults.stage import Stage
from faults.trainer.runs.courses import Course
from faults.trainer.runs.run import VOCAB_SIZE, Home

STEPS = 60
INTERVAL = 5
PROMPT_TOKENS, MAX_NEW_TOKENS = 6, 16
# So many that random weights end most texts before they are cut.
_ENDS = range(40)
_STUDENT = "writer"

Sections = dict[str, dict[str, Any]]

KINDS: dict[str, Sections] = {
    "stale_steps 0": {"objective": {"alpha": 0, "divergence": "reverse_kl"}},
    "stale_steps 1": {
        "rollout": {"fraction": 0.75, "stale_steps": 1, "samples_per_prompt": 2},
        "objective": {"alpha": 0.25, "divergence": "jsd"},
    },
}


def sections_of(kind: Sections, address: str, **more: dict[str, Any]) -> Sections:
    """Returns what makes the small run one whose student writes; `more` overrides single fields."""
    own: Sections = {
        "student": {"config": _STUDENT},
        "teacher": {"address": address, "outage_budget_seconds": 120},
        "schedule": {"steps": STEPS},
        "checkpoint": {"every_steps": INTERVAL},
        "evaluation": {"every_steps": 20},
    }
    rollout = {
        "fraction": 1,
        "prompt_tokens": PROMPT_TOKENS,
        "max_new_tokens": MAX_NEW_TOKENS,
    }
    parts = ({**own, "rollout": rollout}, kind, more)
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: {field: value for part in parts for field, value in part.get(name, {}).items()}
        for name in names
    }


@contextmanager
def serving(stage: Stage, home: Home, *faults: str, address: str | None = None) -> Iterator[Server]:
    """Yields the home's teacher while it serves, on `address` if one is given."""
    bind = () if address is None else ("--bind", address)
    server = Server(
        stage.new_folder(),
        (*bind, *home.teacher_options),
        ("unmeasured", *faults),
        stage.sabotage,
        stage.fork_server,
    )
    try:
        yield server.ready()
    finally:
        server.kill()


def home_of_writers(stage: Stage) -> Home:
    """Returns the home, with the student of these runs in it."""
    home = Home(stage)
    folder = home.roots.models / _STUDENT
    if not folder.exists():
        write_model(folder, vocab_size=VOCAB_SIZE, hidden=32, layers=1, weights=False, ends=_ENDS)
    return home


def courses(stage: Stage, home: Home, address: str, **more: dict[str, Any]) -> list[Course]:
    """Returns a course of each kind."""
    return [
        Course.tried(stage, home, **sections_of(kind, address, **more)) for kind in KINDS.values()
    ]
