"""Kinds of runs to repeat under faults, and how each ends undisturbed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from faults.processes import Server
from faults.stage import Stage
from faults.trainer.runs.run import Ended, Home, Trainer, spec_of
from lectern_common.run.folder import RunFolder


@dataclass(frozen=True)
class Course:
    """A kind of run."""

    home: Home
    sections: dict[str, dict[str, Any]]
    undisturbed: Ended

    @classmethod
    def tried(cls, stage: Stage, home: Home, **sections: dict[str, Any]) -> "Course":
        """Returns it after one undisturbed run. Raises RuntimeError unless that succeeds."""
        stage.say("an undisturbed run")
        folder = home.folder_of(**sections)
        trainer = Trainer(stage, home, folder, forked=True)
        try:
            problem = trainer.end()
        finally:
            trainer.kill()
        if problem:
            raise RuntimeError(f"{problem}\n{trainer.log[-2000:]}")
        return cls(home, sections, Ended.of(folder))

    @property
    def spec(self) -> dict[str, Any]:
        return spec_of(**self.sections)

    def problem_of_end(self, trainer: Trainer) -> str:
        """Returns "" if a trainer ends exactly as the undisturbed one did."""
        return trainer.end() or self.undisturbed.difference(Ended.of(trainer.folder))

    def begin(self) -> RunFolder:
        """Returns the folder of one more run of this kind."""
        return self.home.folder_of(**self.sections)


@contextmanager
def both_courses(stage: Stage, **sections: dict[str, Any]) -> Iterator[list[Course]]:
    """Yields a course on labels only and a distilled one, with its teacher serving."""
    home = Home(stage)
    with teacher(stage, home) as address:
        teaching: dict[str, dict[str, Any]] = {
            "teacher": {"address": address},
            "objective": {"alpha": 0.25},
        }
        yield [
            Course.tried(stage, home, **sections),
            Course.tried(stage, home, **sections, **teaching),
        ]


@contextmanager
def teacher(stage: Stage, home: Home, *options: str) -> Iterator[str]:
    """Yields the address of the home's teacher while it serves."""
    words = (*home.teacher_options, *options)
    server = Server(stage.new_folder(), words, ("unmeasured",), fork_server=stage.fork_server)
    try:
        yield server.ready().address
    finally:
        server.kill()
