"""Writes the file of answers: rows for `lectern data prepare`, in the order of the prompts."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lectern_common.errors import Conflict
from lectern_common.files import replaced_file, write_atomic
from lectern_common.tokens.shards import MANIFEST_NAME
from lectern_common.words import inert_name
from lectern_data.asking.journal import Journal
from lectern_data.asking.prompts import Prompts
from lectern_data.asking.requests import row_of
from lectern_data.asking.settings import GenerateSettings, Way

_MARK = "written"
_DATASETS_MARK = "prepared"


@dataclass
class Written:
    """The written answers, and why there are not more.

    Attributes:
        path: the file.
        answers: rows in it.
        tokens: of these, as far as the server says.
        cut: answers that reached the most tokens, in the file or not.
        equal: left out, because another answer to the same prompt says the same.
        refused: requests without a usable answer, by reason.
        missing: requests that failed; the same call would ask them again.
    """

    path: Path
    answers: int = 0
    tokens: int = 0
    cut: int = 0
    equal: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    missing: int = 0


def require_own(path: Path, work: Path) -> None:
    """Raises Conflict if there is a file that this generation has not written, or no longer is so.

    Args:
        path: the file of answers.
        work: the work folder of the generation.
    """
    if path.exists() and _mark_of(path) not in _marks(work / _MARK):
        raise Conflict(
            f"{inert_name(path)} exists; choose another --output, or --force to replace it"
        )


def own_datasets(targets: list[Path], work: Path) -> list[Path]:
    """Returns those that this generation has written, of fewer answers, and that are still so."""
    marks = _marks(work / _DATASETS_MARK)
    manifests = [(target, target / MANIFEST_NAME) for target in targets]
    return [
        one for one, manifest in manifests if manifest.is_file() and _mark_of(manifest) in marks
    ]


def note_datasets(targets: list[Path], work: Path) -> None:
    """Notes that this generation has written these, for `own_datasets`."""
    manifests = [target / MANIFEST_NAME for target in targets]
    marks = [_mark_of(manifest) for manifest in manifests if manifest.is_file()]
    write_atomic(work / _DATASETS_MARK, "\n".join(marks).encode(), durable=False)


def write_answers(
    settings: GenerateSettings, prompts: Prompts, journal: Journal, way: Way, work: Path
) -> Written:
    """Writes every answer once; the file appears whole. Raises CorruptData if a prompt changed."""
    written = Written(settings.answers)
    with replaced_file(settings.answers) as hidden:
        with hidden.open("w", encoding="utf-8") as file, journal.reading() as kept:
            for prompt in prompts.read():
                said = set[str]()
                for sample in range(settings.samples):
                    answer = kept(prompt.key, sample)
                    if _is_taken(answer, said, written, keep_cut=settings.keep_cut):
                        row = row_of(prompt.text, answer or {}, way)
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        # A kill before the rename leaves the file of an earlier call, which stays its own.
        before = _mark_of(settings.answers) if settings.answers.exists() else ""
        marks = [mark for mark in _marks(work / _MARK) if mark == before]
        marks.append(_mark_of(hidden))
        write_atomic(work / _MARK, "\n".join(marks).encode(), durable=False)
    return written


def _is_taken(
    answer: dict[str, Any] | None, said: set[str], written: Written, *, keep_cut: bool
) -> bool:
    """Counts an answer, and returns whether it goes into the file."""
    if answer is None:
        written.missing += 1
        return False
    if "refused" in answer:
        written.refused[answer["refused"]] += 1
        return False
    is_cut = answer["finish_reason"] == "length"
    written.cut += is_cut
    if is_cut and not keep_cut:
        return False
    words = json.dumps([answer.get("message"), answer.get("text")], sort_keys=True)
    if words in said:
        written.equal += 1
        return False
    said.add(words)
    written.answers += 1
    written.tokens += answer["tokens"] or 0
    return True


def _marks(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _mark_of(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"
