"""What the faults and sabotages replace in our programs is there: read from the sources alone.

A name that a program no longer has would be found only when its row is tried, which takes minutes.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    f"faults/{side}/{name}.py"
    for side in ("control", "rollouts", "teacher", "trainer")
    for name in ("injections", "sabotage")
] + ["faults/control/stand_in.py", "faults/launcher.py", "faults/record/sabotage.py"]
OURS = [
    "control_plane",
    "faults",
    "lectern",
    "lectern_common",
    "lectern_data",
    "lectern_models",
    "student_trainer",
    "teacher_server",
]


def source_of(module: str) -> Path | None:
    """Returns the file of one of our modules, or of a package; None for another's."""
    if module.partition(".")[0] not in OURS:
        return None
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def defined(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yields (name, statement) of everything that a module's or class's body defines."""
    for statement in body:
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield statement.name, statement
            case ast.Import() | ast.ImportFrom():
                for alias in statement.names:
                    yield (alias.asname or alias.name).partition(".")[0], statement
            case ast.Assign():
                for name in ast.walk(ast.Tuple([*statement.targets])):
                    if isinstance(name, ast.Name):
                        yield name.id, statement
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, statement
            case ast.If():
                yield from defined([*statement.body, *statement.orelse])


class Thing:
    """A module, or what a module defines, whose attributes are looked up in the source."""

    def __init__(self, module: str, inner: str = "") -> None:
        self.module, self.inner = module, inner

    def problem_of(self, name: str) -> str:
        """Returns "" if it has an attribute of that name."""
        path = source_of(self.module)
        told = f"{self.module} {self.inner} has no {name}"
        if path is None:
            return ""
        if not path.exists():
            return f"there is no module {self.module}"
        tree = ast.parse(path.read_text())
        body = dict(defined(tree.body))
        if not self.inner:
            beside = path.parent / name
            is_module = path.name == "__init__.py" and (
                beside.is_dir() or beside.with_suffix(".py").exists()
            )
            return "" if name in body or is_module else told
        if self.inner not in body:
            return f"{self.module} has no {self.inner}"
        statement = body[self.inner]
        # A class may inherit its __init__, and what is no class is only checked to be there.
        if not isinstance(statement, ast.ClassDef) or name == "__init__":
            return ""
        if name in dict(defined(statement.body)):
            return ""
        names = imported(tree)
        bases = [ast.unparse(base).partition("[")[0] for base in statement.bases]
        inherited = (names.get(base, Thing(self.module, base)).problem_of(name) for base in bases)
        return told if all(inherited) else ""


def imported(node: ast.AST) -> dict[str, Thing]:
    """Returns what the imports anywhere in a node name."""
    found: dict[str, Thing] = {}
    for statement in ast.walk(node):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                whole = alias.name if alias.asname else alias.name.partition(".")[0]
                found[alias.asname or whole] = Thing(whole)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                inner = f"{statement.module}.{alias.name}"
                thing = Thing(inner) if is_module(inner) else Thing(statement.module, alias.name)
                found[alias.asname or alias.name] = thing
    return found


def is_module(name: str) -> bool:
    path = source_of(name)
    return path is not None and path.exists()


def used(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, str]]:
    """Yields (owner, name) of every attribute that a function reads or replaces."""
    loops = {
        node.target.id: node.iter.elts
        for node in ast.walk(function)
        if isinstance(node, ast.For)
        and isinstance(node.target, ast.Name)
        and isinstance(node.iter, ast.Tuple)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            yield node.value, node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("put", "getattr"):
            owner, name, *_ = node.args
            owners = loops.get(getattr(owner, "id", ""), [owner])
            for one in owners:
                for value in loops.get(getattr(name, "id", ""), [name]):
                    if isinstance(value, ast.Constant):
                        yield one, str(value.value)


@pytest.mark.parametrize("file", FILES)
def test_what_is_replaced_is_there(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    checked = 0
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        names = imported(function)
        for owner, name in used(function):
            if isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name):
                thing = names.get(owner.value.id)
                if thing is not None and not thing.inner and is_module(thing.module):
                    thing = Thing(thing.module, owner.attr)
            else:
                thing = names.get(owner.id) if isinstance(owner, ast.Name) else None
            if thing is not None:
                assert thing.problem_of(name) == "", f"{file}: {function.name}"
                checked += 1
    assert checked


@pytest.mark.parametrize("file", [file for file in FILES if file.endswith("sabotage.py")])
def test_every_sabotage_replaces_something(file: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    rows = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "ROWS"
    )
    assert isinstance(rows, ast.Dict)
    for row, function in zip(rows.keys, rows.values, strict=True):
        if row is not None and isinstance(function, ast.Name):
            calls = [
                node for node in ast.walk(functions[function.id]) if isinstance(node, ast.Call)
            ]
            assert any(getattr(call.func, "id", "") == "put" for call in calls), ast.unparse(row)


@pytest.mark.parametrize(
    ("thing", "name"),
    [
        (Thing("control_plane.trainers.launching.processes"), "NoSuchThing"),
        (Thing("control_plane.trainers.launching.processes", "LocalProcesses"), "no_such_method"),
        (Thing("control_plane.trainers.launching.processes", "NoSuchClass"), "start"),
        (Thing("control_plane.no_such_module"), "anything"),
    ],
)
def test_a_name_that_is_gone_is_found(thing: Thing, name: str) -> None:
    assert thing.problem_of(name)


def test_names_that_are_there_are_found() -> None:
    assert (
        Thing("control_plane.trainers.launching.processes", "LocalProcesses").problem_of("start")
        == ""
    )
    assert Thing("control_plane.runs.commands", "RunCommands").problem_of("claim") == ""
    assert Thing("control_plane.trainers").problem_of("reconciler") == ""
    assert Thing("control_plane.trainers.launching.processes").problem_of("TRAINER_ARGV") == ""
