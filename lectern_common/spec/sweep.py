"""A sweep: a base spec, and the settings in which its runs differ, as a grid or as a list.

Every combination is made into a RunSpec of its own before any run exists. A problem names the field
of the sweep that it comes from, such as `grid.optimizer.learning_rate[2]`, and the combination.
"""

import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel

from lectern_common.errors import InvalidSpec
from lectern_common.spec.changed import section_of
from lectern_common.spec.load import did_you_mean, parse_spec
from lectern_common.spec.run_spec import LABELS, NAME_PATTERN, NAME_RULE, RunSpec

MAX_RUNS = 200
DEFAULT_METRIC = "loss/val"
MAX_NAME = 59  # with "-" and the number, the name of a run has at most 63 characters
METRIC_PATTERN = r"^[\w./@-]{1,100}$"
SEED = "seed"
Goal = Literal["min", "max"]
Problem = tuple[str, str]  # (field of the sweep, sentence)
_FIELDS = ("name", "base", "grid", "list", "metric", "goal")
_MAX_PROBLEMS = 20
_MAX_VALUE_SHOWN = 40


@dataclass(frozen=True)
class Combination:
    """What one run of a sweep sets.

    Attributes:
        settings: value by dotted path.
        places: the field of the sweep that each value stands in, by path.
        whole: the field for what no single value is at fault for.
    """

    settings: dict[str, Any]
    places: dict[str, str]
    whole: str

    def __str__(self) -> str:
        """Returns "optimizer.learning_rate 0.001, seed 1"."""
        return ", ".join(f"{path} {shown(value)}" for path, value in self.settings.items())

    def place_of(self, field: str) -> str | None:
        """Returns the field of the sweep that set a field of the spec, or one below it."""
        for path, place in self.places.items():
            if field == path or field.startswith(f"{path}."):
                return place + field[len(path) :]
        return None

    def sets_below(self, field: str) -> list[str]:
        """Returns the places of what it sets within a section of the spec; "" is all of it."""
        within = f"{field}." if field else ""
        return [place for path, place in self.places.items() if path.startswith(within)]


@dataclass(frozen=True)
class Sweep:
    """A sweep that can be made: `specs` belong to `combinations`, one by one, in order.

    Attributes:
        name: of the sweep; its runs are NAME-01, NAME-02, ...
        metric: what its runs are compared by.
        goal: which value of it is best.
        settings: dotted paths, in the order given.
    """

    name: str
    metric: str
    goal: Goal
    settings: tuple[str, ...]
    combinations: tuple[Combination, ...]
    specs: tuple[RunSpec, ...]

    def sha256(self) -> str:
        """Returns a hash of what it makes, however it is spelt."""
        dumped = [spec.model_dump(mode="json") for spec in self.specs]
        text = json.dumps([self.name, self.metric, self.goal, self.settings, dumped])
        return hashlib.sha256(text.encode()).hexdigest()

    def named(self, index: int) -> str:
        """Returns which run it is, in words: "run 3 of 8: optimizer.learning_rate 0.001"."""
        return f"run {index + 1} of {len(self.specs)}: {self.combinations[index]}"


def parse_sweep(data: Any) -> Sweep:
    """Returns the sweep of a mapping (parsed YAML or JSON) with name, base, and grid or list.

    A value replaces what `base` has at its path. Of a grid, all combinations are made, in the order
    given: the last setting changes fastest. The name in `base`, if any, is not used.

    Raises:
        InvalidSpec: with one (field, message) pair for each problem.
    """
    if not isinstance(data, Mapping):
        raise InvalidSpec([("", "a sweep is a mapping with name, base, and grid or list")])
    problems = list(_problems_of_form(data))
    if problems:
        raise InvalidSpec(problems)
    combinations = list(_combinations(data))
    name = data["name"]
    specs = _specs(name, data["base"], combinations)
    sweep = Sweep(
        name,
        data.get("metric", DEFAULT_METRIC),
        data.get("goal", "min"),
        tuple(dict.fromkeys(path for one in combinations for path in one.settings)),
        tuple(combinations),
        tuple(specs),
    )
    require_different(sweep, specs)
    _require_own_records(sweep)
    return sweep


def require_different(sweep: Sweep, specs: Sequence[RunSpec]) -> None:
    """Raises InvalidSpec if two runs of the sweep would be the same but for their names.

    Args:
        sweep: says which values are at fault.
        specs: those of its runs, with more or less filled in.
    """
    seen: dict[str, int] = {}
    problems: list[Problem] = []
    for index, spec in enumerate(specs):
        text = json.dumps(spec.model_dump(mode="json", exclude={"name"}))
        first = seen.setdefault(text, index)
        if first == index:
            continue
        one, other = sweep.combinations[index], sweep.combinations[first]
        theirs = {place: other.places.get(path) for path, place in one.places.items()}
        places = [(place, was) for place, was in theirs.items() if place != was]
        field, same = places[0] if len(places) == 1 else (one.whole, other.whole)
        if field == same:  # several values of a grid together make no difference
            why = f"{sweep.named(index)} is the same as {sweep.named(first)}; leave one out"
        else:
            why = f"makes the same run as {same}; leave one out"
        if (field, why) not in problems:
            problems.append((field, why))
    if problems:
        raise InvalidSpec(problems[:_MAX_PROBLEMS])


def _require_own_records(sweep: Sweep) -> None:
    """Raises InvalidSpec if two runs would keep what they receive in one record."""
    seen: dict[str, int] = {}
    for index, spec in enumerate(sweep.specs):
        name = None if spec.teacher is None else spec.teacher.record_to
        if name is not None and seen.setdefault(name, index) != index:
            why = f"{sweep.named(index)} and {sweep.named(seen[name])} would make one record, "
            why += f"{name}: remove it, and make one with `lectern precompute`"
            raise InvalidSpec([(placed(sweep, index, "teacher.record_to"), why)])


def placed(sweep: Sweep, index: int, field: str) -> str:
    """Returns the field of the sweep for a field of the spec of one of its runs."""
    return sweep.combinations[index].place_of(field) or f"base.{field}".rstrip(".")


def setting_of(spec: Mapping[str, Any], path: str) -> Any:
    """Returns a setting of a stored spec; None if it has none there."""
    found: Any = spec
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def shown(value: Any) -> str:
    """Returns a value for people, cut if it is long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _MAX_VALUE_SHOWN else f"{text[: _MAX_VALUE_SHOWN - 3]}..."


def _problems_of_form(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields what is wrong with a sweep before any spec is made of it."""
    for key in data:
        if key not in _FIELDS:
            close = difflib.get_close_matches(str(key), _FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(_FIELDS)}"
            yield str(key), f"unknown field; {hint}"
    if not isinstance(data.get("base"), Mapping):
        yield "base", "required: the run spec that all runs begin with, a mapping of sections"
    elif data["base"].get("group") is not None:
        yield "base.group", "the id of the sweep groups its runs; remove it, or set tags"
    metric = data.get("metric", DEFAULT_METRIC)
    if not isinstance(metric, str) or not re.fullmatch(METRIC_PATTERN, metric):
        yield "metric", "must be the name of a metric, such as loss/val"
    if data.get("goal", "min") not in get_args(Goal):
        yield "goal", "must be min or max"
    yield from _problems_of_settings(data)
    name = data.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        yield "name", f"must be {NAME_RULE}"
    elif len(name) > MAX_NAME:
        yield (
            "name",
            f"must have at most {MAX_NAME} characters, as its runs add -01 and so on to it",
        )


def _problems_of_settings(data: Mapping[str, Any]) -> Iterator[Problem]:
    kinds = [kind for kind in ("grid", "list") if data.get(kind) is not None]
    if len(kinds) != 1:
        yield "grid", "set exactly one of grid and list"
        return
    kind, given = kinds[0], data[kinds[0]]
    if kind == "grid":
        if not isinstance(given, Mapping) or not given:
            yield kind, "must be a mapping of settings, such as optimizer.learning_rate, to lists"
            return
        yield from _problems_of_paths(given, "grid.")
        lists = {path: isinstance(values, list) and values != [] for path, values in given.items()}
        for path, is_list in lists.items():
            if not is_list:
                yield f"grid.{path}", "must be a list of at least one value"
        if all(lists.values()):
            yield from _too_many(kind, math.prod(map(len, given.values())))
    elif not isinstance(given, list) or not given:
        yield (
            kind,
            "must be a list of mappings of settings, such as optimizer.learning_rate, to values",
        )
    else:
        for index, entry in enumerate(given[: MAX_RUNS + 1]):
            if isinstance(entry, Mapping):
                yield from _problems_of_paths(entry, f"list[{index}].")
            else:
                yield f"list[{index}]", "must be a mapping of settings to values"
        yield from _too_many(kind, len(given))


def _too_many(kind: str, count: int) -> Iterator[Problem]:
    if count > MAX_RUNS:
        yield kind, f"makes {count:,} runs; at most {MAX_RUNS}"


def _problems_of_paths(paths: Mapping[str, Any], prefix: str) -> Iterator[Problem]:
    for path in paths:
        problem = _problem_of_path(str(path))
        above = [other for other in paths if str(path).startswith(f"{other}.")]
        if problem is None and above:
            problem = f"{above[0]} is set as a whole as well; set one of the two"
        if problem is not None:
            yield f"{prefix}{path}", problem


def _problem_of_path(path: str) -> str | None:
    """Returns why a path names no setting that runs of a sweep may differ in; None if it does."""
    if path == "name":
        return "the sweep names its runs: NAME-01, NAME-02, ..."
    if path == "group":
        return "the id of the sweep groups its runs"
    if path in LABELS:
        return "says nothing of the training, so runs cannot differ in it; set it in base"
    parts = path.split(".")
    section: type[BaseModel] | None = RunSpec
    for depth, part in enumerate(parts):
        if section is None or part not in section.model_fields:
            like = [one for one in _settings(RunSpec) if one.split(".")[-1] == parts[-1]]
            if len(like) > 1:
                like = difflib.get_close_matches(path, like, n=1)
            if like:
                return f"unknown setting; did you mean {like[0]}?"
            if section is None:
                return f"unknown setting; {'.'.join(parts[:depth])} has none below it"
            return "unknown setting" + did_you_mean(tuple(parts[: depth + 1]))
        annotation = section.model_fields[part].annotation
        section = section_of(annotation)
    if section is None or type(None) in get_args(annotation):
        return None
    return f"is a section; name a setting of it, such as {path}.{next(iter(section.model_fields))}"


def _settings(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yields the dotted path of every setting of a spec."""
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield f"{above}{name}"
        else:
            yield from _settings(section, f"{above}{name}.")


def _combinations(data: Mapping[str, Any]) -> Iterator[Combination]:
    if data.get("grid") is None:
        for index, entry in enumerate(data["list"]):
            whole = f"list[{index}]"
            yield Combination(dict(entry), {path: f"{whole}.{path}" for path in entry}, whole)
        return
    paths = list(data["grid"])
    for chosen in itertools.product(*(enumerate(values) for values in data["grid"].values())):
        pairs = list(zip(paths, chosen, strict=True))
        settings = {path: value for path, (_, value) in pairs}
        yield Combination(settings, {path: f"grid.{path}[{at}]" for path, (at, _) in pairs}, "grid")


def _digits(count: int) -> int:
    return max(2, len(str(count)))


def _specs(
    name: str, base: Mapping[str, Any], combinations: Sequence[Combination]
) -> list[RunSpec]:
    """Returns the spec of each combination. Raises InvalidSpec with the problems of all."""
    specs: list[RunSpec] = []
    # Of each problem, the field of the spec it was found at, and the combinations that have it.
    found: dict[tuple[str | None, str, str], list[int]] = {}
    width = _digits(len(combinations))
    for index, combination in enumerate(combinations):
        try:
            values: Mapping[str, Any] = {**base, "name": f"{name}-{index + 1:0{width}}"}
            for path, value in combination.settings.items():
                values = _with(values, path, value)
            specs.append(parse_spec(values))
        except InvalidSpec as error:
            for field, message in error.problems:
                key = (combination.place_of(field), field, message)
                found.setdefault(key, []).append(index)
        if len(found) >= _MAX_PROBLEMS:
            break
    if found:
        raise InvalidSpec([_told(key, at, combinations) for key, at in found.items()])
    return specs


def _told(
    key: tuple[str | None, str, str], at: Sequence[int], combinations: Sequence[Combination]
) -> Problem:
    """Returns the field of the sweep, and the message with the combinations that it is about."""
    place, field, message = key
    count, first = len(combinations), combinations[at[0]]
    if place is None and len(at) == count:
        return f"base.{field}".rstrip("."), message
    if place is None:
        below = first.sets_below(field)
        place = below[0] if len(below) == 1 else first.whole if below else f"base.{field}"
        message = f"{field}: {message}" if field and len(below) > 1 else message
    if count == 1:
        return place, message
    which = f"run {at[0] + 1} of {count}" if len(at) == 1 else f"{len(at)} of {count} runs"
    return place, f"{message} ({which}{'' if len(at) == 1 else ', the first'}: {first})"


def _with(spec: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Returns a spec with the value at a path. Raises InvalidSpec if a section is none."""
    name, _, rest = path.partition(".")
    if not rest:
        return {**spec, name: value}
    below = spec.get(name)
    if below is not None and not isinstance(below, Mapping):
        raise InvalidSpec([(name, "must be a mapping of settings")])
    return {**spec, name: _with(below or {}, rest, value)}
