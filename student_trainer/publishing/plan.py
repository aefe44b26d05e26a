"""What will be uploaded: every file, its size and hash. The upload is exactly that."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lectern_common.errors import CorruptData
from lectern_common.roots import Roots
from lectern_common.stages.publish import PublishRequest
from lectern_common.stages.status import Report
from lectern_common.teacher.record.reader import file_sha256
from lectern_common.words import size
from student_trainer.exporting.finished import FinishedRun, finished_run
from student_trainer.exporting.gguf_export import WEIGHTS_KEY, string_of
from student_trainer.publishing.card import CARD_NAME, CardFacts, card_text
from student_trainer.publishing.licence import base_of, licence_of
from student_trainer.publishing.measured import measurements
from student_trainer.stop import Stop


@dataclass(frozen=True)
class PlannedFile:
    """A file of the repository. `source` is where it is, or its content."""

    name: str
    num_bytes: int
    sha256: str
    source: Path | bytes


@dataclass(frozen=True)
class Plan:
    """A repository, before it is uploaded."""

    repository: str
    private: bool
    run: FinishedRun
    files: list[PlannedFile]
    card: str

    @cached_property
    def sha256(self) -> str:
        """Of everything that an upload depends on."""
        listed = [[one.name, one.num_bytes, one.sha256] for one in self.files]
        whole = json.dumps([self.repository, self.private, listed])
        return hashlib.sha256(whole.encode()).hexdigest()

    @property
    def gguf_files(self) -> list[PlannedFile]:
        return [one for one in self.files if one.name.endswith(".gguf")]

    def as_json(self) -> dict[str, Any]:
        """Returns {repository, private, files: [{name, bytes, sha256}], card, plan_sha256}."""
        files = [
            {"name": one.name, "bytes": one.num_bytes, "sha256": one.sha256} for one in self.files
        ]
        return {
            "repository": self.repository,
            "private": self.private,
            "files": files,
            "card": self.card,
            "plan_sha256": self.sha256,
        }

    def require_unchanged(self) -> None:
        """Raises CorruptData if a file is no longer what was planned."""
        for one in self.files:
            if isinstance(one.source, Path) and file_sha256(one.source) != one.sha256:
                raise CorruptData(f"{one.source} has changed since it was planned: publish again")


def planned(
    asked: PublishRequest, roots: Roots, *, stop: Stop, report: Report = lambda *_: None
) -> Plan:
    """Returns the plan of a repository: the run's export, its GGUF files, the card, the licence.

    Raises:
        NotFound: there is no such run.
        Conflict: it has no export yet.
        CorruptData: the export is not what the trainer wrote, or a GGUF file was made of another.
        Misconfigured: nothing says what the licence is.
    """
    run = finished_run(roots, asked.run)
    spec = run.folder.read_spec()
    base = base_of(spec, run.metadata, roots)
    licence = licence_of(asked, base)
    gguf = _gguf_files(run)
    facts = CardFacts(
        asked.to, run, spec, base, licence, measurements(run), [path.name for path in gguf]
    )
    card = card_text(facts)
    sources: dict[str, Path | bytes] = {
        path.relative_to(run.export).as_posix(): path
        for path in sorted(run.export.rglob("*"))
        if path.is_file()
    }
    sources |= {path.name: path for path in gguf}
    sources |= licence.files
    sources[CARD_NAME] = card.encode()  # in place of what the export says about its tokenizer
    files = []
    for done, (name, source) in enumerate(sorted(sources.items())):
        stop.check()
        report("files hashed", done, len(sources))
        files.append(_planned_file(name, source))
    return Plan(asked.to, asked.private, run, files, card)


def _planned_file(name: str, source: Path | bytes) -> PlannedFile:
    if isinstance(source, bytes):
        return PlannedFile(name, len(source), hashlib.sha256(source).hexdigest(), source)
    return PlannedFile(name, source.stat().st_size, file_sha256(source), source)


def _gguf_files(run: FinishedRun) -> list[Path]:
    """Returns the GGUF files of a run.

    Raises:
        CorruptData: one was made of other weights than those of the export.
    """
    found = sorted(run.folder.gguf_path.glob("*.gguf"))
    for path in found:
        if string_of(path, WEIGHTS_KEY) != run.weights_sha256:
            raise CorruptData(
                f"{path} was made of other weights than the run's export has now: delete it, or "
                "write it again with `lectern export`"
            )
    return found


def plan_text(plan: Plan) -> str:
    """Returns the plan for people: every file with its size and hash, and the card."""
    who = "private" if plan.private else "public"
    lines = [
        f"# Plan of {plan.repository} ({who})",
        "",
        "| file | size | SHA-256 |",
        "|---|---|---|",
    ]
    lines += [f"| {one.name} | {size(one.num_bytes)} | `{one.sha256}` |" for one in plan.files]
    lines += ["", f"Hash of the plan: `{plan.sha256}`", "", f"## {CARD_NAME}", "", plan.card]
    return "\n".join(lines)
