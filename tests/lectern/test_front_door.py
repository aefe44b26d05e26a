"""`from lectern import ...`: the names that programs import are typed and loaded on first use."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lectern

ROOT = Path(__file__).parents[2]


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", lectern.__all__)
def test_every_name_is_loaded_from_its_module(name: str) -> None:
    found = getattr(lectern, name)
    if name != "__version__":
        assert found.__module__ == lectern._HOMES[name]


def test_type_checkers_see_the_names_that_are_loaded() -> None:
    tree = ast.parse((ROOT / "lectern" / "__init__.py").read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.name: node.module
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == lectern._HOMES
    assert sorted([*imported, "__version__"]) == sorted(lectern.__all__) == dir(lectern)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        lectern.Pipelin  # noqa: B018


def test_importing_it_loads_neither_torch_nor_the_client() -> None:
    done = run("import lectern, sys; print(*sys.modules)")
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "grpc", "numpy", "httpx", "student_trainer"}


def test_the_client_needs_no_torch() -> None:
    done = run("from lectern import Client, RunSpec, load_spec; import sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert "torch" not in done.stdout.split()


def test_without_torch_the_message_says_what_to_install() -> None:
    done = run("import sys; sys.modules['torch'] = None; from lectern import Pipeline")
    assert "lectern.Pipeline needs torch and transformers; install lectern[torch]" in done.stderr


_PROGRAM = """
from pathlib import Path
from lectern import Client, Pipeline, RunSpec, connect_teacher, load_spec

spec: RunSpec = load_spec(Path("run.yaml"))
with Client("http://127.0.0.1:8080") as client:
    state: str = client.create_run(spec).state
with connect_teacher("127.0.0.1:50051", vocab_size=16) as teacher:
    width: int = teacher.vocab_size()
    Pipeline(epochs=1, batches_per_epoch=1, learning_rate=0.1).with_teacher(teacher)
"""


def test_mypy_checks_programs_against_the_real_signatures(tmp_path: Path) -> None:
    """mypy does not find an editable install, so it is told where the packages are.

    Other packages are left out: to read torch and transformers takes minutes.
    """
    (tmp_path / "right.py").write_text(_PROGRAM)
    (tmp_path / "wrong.py").write_text(_PROGRAM.replace("width: int", "width: str"))
    # The generated stubs are no part of what a program is checked for.
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-protos.*]\nignore_errors = True\n")
    options = ["--strict", "--follow-imports", "silent", "--cache-dir", str(tmp_path / "cache")]
    options += ["--no-site-packages", "--ignore-missing-imports"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "right.py", "wrong.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert errors and all(line.startswith("wrong.py:") for line in errors), done.stdout


@pytest.mark.parametrize(
    "package", sorted({home.partition(".")[0] for home in lectern._HOMES.values()})
)
def test_each_package_says_that_it_has_types(package: str) -> None:
    """PEP 561; test_packages.py sees the file in the wheel."""
    assert (ROOT / package / "py.typed").exists()
