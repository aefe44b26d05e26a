"""Rules that close whole classes of faults, checked over every file of the repository."""

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "protos",
    "lectern_common",
    "lectern_models",
    "teacher_server",
    "student_trainer",
    "control_plane",
    "lectern_data",
    "lectern",
    "benchmarks",
    "docker",
    "faults",
]
GENERATED = {"protos/teacher_pb2.py", "protos/teacher_pb2_grpc.py"}
# Copied in as they are.
VENDORED = ("control_plane/web/vendor/",)

CODE_RUNNING_MODULES = {
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}
CODE_RUNNING_CALLS = {
    "eval",
    "exec",
    "compile",
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
# Runs in a sandbox only, on a program that is not trusted; nothing imports it.
INSIDE_THE_SANDBOX = "student_trainer/evaluating/sandbox/inside.py"
# Put together here, so that this file does not name them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download", "pytorch", "org"),
        ("huggingface", "co"),
        ("registry", "npmjs"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("nvcr", "io"),
        ("quay", "io"),
    )
]
MACHINE_PATHS = ["/" + "work/main", "/" + "work/shared"]


def sources() -> list[Path]:
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(path for path in found if relative(path) not in GENERATED)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Yields ("file:line", node) for every node of every source file."""
    for path in sources():
        for node in ast.walk(tree_of(path)):
            yield f"{relative(path)}:{getattr(node, 'lineno', 0)}", node


def repository_texts() -> Iterator[tuple[str, bytes]]:
    """Yields (path, bytes) of each file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        is_text = path.suffix not in {".png", ".ico", ".woff2"}
        if name and path.is_file() and is_text and not name.startswith(VENDORED):
            yield name, path.read_bytes()


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def in_package(where: str) -> bool:
    """Returns True for what is installed; the other folders are programs of our own."""
    return not where.startswith(("benchmarks/", "docker/", "faults/"))


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_nothing_that_can_run_code_from_data_is_imported():
    for where, node in nodes():
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        else:
            continue
        assert not names & CODE_RUNNING_MODULES, where


def test_nothing_that_can_run_code_from_data_is_called():
    for where, node in nodes():
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if not where.startswith(INSIDE_THE_SANDBOX) or called not in ("exec", "compile"):
                assert called not in CODE_RUNNING_CALLS, where
            for keyword in node.keywords:
                assert not (keyword.arg == "shell" and not is_false(keyword.value)), where
                assert not (keyword.arg == "allow_pickle" and not is_false(keyword.value)), where


def test_trust_remote_code_is_a_literal_false_wherever_it_stands():
    for where, node in nodes():
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert is_false(node.value), where
        names = {
            ast.Name: lambda found: found.id,
            ast.Attribute: lambda found: found.attr,
            ast.arg: lambda found: found.arg,
            ast.Constant: lambda found: found.value,
        }.get(type(node))
        if names is not None:
            assert names(node) != "trust_remote_code", f"{where} passes it on"


def test_models_are_loaded_with_remote_code_refused():
    """Every from_pretrained and from_config of transformers says so in so many words."""
    for where, node in nodes():
        if (
            in_package(where)
            and isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("from_pretrained", "from_config")
            and ast.unparse(node.func.value).startswith("Auto")
        ):
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            assert "trust_remote_code" in given and is_false(given["trust_remote_code"]), where


def test_checks_are_exceptions_never_asserts():
    for where, node in nodes():
        if not in_package(where):
            continue
        assert not isinstance(node, ast.Assert), where
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert not ast.unparse(node.exc).startswith("AssertionError"), where


def test_no_module_is_called_after_what_it_is_not():
    vague = {"utils", "util", "helpers", "core", "manager", "misc", "common"}
    for path in sources():
        assert path.stem not in vague, relative(path)


def test_every_file_is_ascii():
    for name, data in repository_texts():
        if not data.isascii():
            line = next(n for n, text in enumerate(data.splitlines(), 1) if not text.isascii())
            pytest.fail(f"{name}:{line} is not ASCII")


@pytest.mark.parametrize("words", [REGISTRIES, MACHINE_PATHS], ids=["registries", "paths"])
def test_no_file_names_a_registry_or_a_path_of_one_machine(words):
    for name, data in repository_texts():
        for word in words:
            assert word.encode() not in data, f"{name} has {word}"


def test_every_module_says_what_it_is_for():
    for path in sources():
        tree = tree_of(path)
        assert ast.get_docstring(tree) or not tree.body, relative(path)
