"""The answers so far, on disk, so that a kill loses only what was under way.

answers.jsonl    a line with what was asked for, one with how prompts travel, then a line for
                 each answer or refusal, in the order in which they came
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from lectern_common.errors import Conflict, CorruptData
from lectern_common.json_lines import append_json_line
from lectern_common.words import inert_name
from lectern_data.asking.answer import Answer
from lectern_data.asking.requests import Request
from lectern_data.asking.settings import Way

_NAME = "answers.jsonl"
_FORMAT = 1


class Journal:
    """Keeps answers and refusals, and finds them again by prompt and sample.

    Only where they are is in memory.

    Attributes:
        way: how prompts travel; None means that it is not decided yet.

    Raises:
        CorruptData: the file is broken.
    """

    def __init__(self, path: Path) -> None:
        self.way: Way | None = None
        self._path = path
        self._places: dict[tuple[bytes, int], int] = {}
        self._asked: dict[str, Any] | None = None
        self._load()

    @classmethod
    def of(cls, folder: Path, asked: dict[str, Any], *, begin_anew: bool = False) -> "Journal":
        """Returns the journal of a folder, with the answers that it has.

        Args:
            folder: where its file is.
            asked: the settings on which the answers depend, by name of their options.
            begin_anew: if they differ from those of the file, the file is discarded.

        Raises:
            Conflict: they differ.
            CorruptData: the file is broken.
        """
        path = folder / _NAME
        journal = cls(path)
        if journal._asked is not None and journal._asked != asked:
            if not begin_anew:
                raise Conflict(_other_settings(journal._asked, asked))
            path.unlink()
            journal = cls(path)
        if journal._asked is None:
            append_json_line(path, {"format": _FORMAT, "asked": asked})
            journal._asked = asked
        return journal

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, asked: tuple[str, int]) -> bool:
        return (bytes.fromhex(asked[0]), asked[1]) in self._places

    def choose(self, way: Way) -> None:
        """Notes how prompts travel, also after a kill."""
        self.way = way
        append_json_line(self._path, {"way": way})

    def add(self, request: Request, answer: Answer) -> None:
        """Keeps an answer."""
        said = {"text": answer.text} if answer.message is None else {"message": answer.message}
        ended = {"finish_reason": answer.finish_reason, "tokens": answer.tokens}
        self._append(request, {**said, **ended})

    def add_refusal(self, request: Request, why: str) -> None:
        """Keeps why there is no answer, so that the same is not asked again."""
        self._append(request, {"refused": why})

    @contextmanager
    def reading(self) -> Iterator[Callable[[str, int], dict[str, Any] | None]]:
        """Yields a function that returns what was kept for (prompt, sample); None means nothing."""
        with self._path.open("rb") as file:

            def kept(key: str, sample: int) -> dict[str, Any] | None:
                place = self._places.get((bytes.fromhex(key), sample))
                if place is None:
                    return None
                file.seek(place)
                return cast("dict[str, Any]", json.loads(file.readline()))

            yield kept

    def _append(self, request: Request, said: dict[str, Any]) -> None:
        place = self._path.stat().st_size
        append_json_line(self._path, {"prompt": request.key, "sample": request.sample, **said})
        self._places[bytes.fromhex(request.key), request.sample] = place

    def _load(self) -> None:
        """Reads every complete line; cuts off a last one that a kill has left incomplete."""
        if not self._path.exists():
            return
        with self._path.open("r+b") as file:
            place = 0
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):
                    os.truncate(self._path, place)
                    break
                try:
                    self._take(json.loads(line), place, is_first=number == 0)
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise CorruptData(
                        f"line {number + 1} of {inert_name(self._path)} is broken; remove it, and "
                        "its prompt is asked again, or remove the file to begin anew"
                    ) from None
                place += len(line)

    def _take(self, line: dict[str, Any], place: int, *, is_first: bool) -> None:
        if is_first:
            if line["format"] != _FORMAT:
                raise ValueError
            self._asked = dict(line["asked"])
        elif "way" in line:
            self.way = line["way"]
        else:
            self._places[bytes.fromhex(line["prompt"]), int(line["sample"])] = place


def _other_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    changes = ", ".join(
        f"--{name.replace('_', '-')} was {before.get(name)}, now {now.get(name)}" for name in names
    )
    return (
        f"answers are kept here that were asked for with other settings ({changes}); set them as "
        "they were to continue, choose another --output, or --force to begin anew"
    )
