"""Who may import whom. The rules stand here; a change of them is a change of the design."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lectern

ROOT = Path(__file__).parents[2]

# protos <- lectern_common <- lectern_models <- {teacher_server | student_trainer}; the control
# plane knows no model, and the three processes never import each other. Data is prepared without
# any of them. The roof may import all.
MAY_IMPORT = {
    "protos": set(),
    "lectern_common": {"protos"},
    "lectern_models": {"protos", "lectern_common"},
    "teacher_server": {"protos", "lectern_common", "lectern_models"},
    "student_trainer": {"protos", "lectern_common", "lectern_models"},
    "control_plane": {"protos", "lectern_common"},
    "lectern_data": {"protos", "lectern_common"},
    "lectern": {"protos", "lectern_common", "lectern_data", "student_trainer"},
}
# Of the roof only the front door imports the trainer, and only when a name that needs it is used.
FRONT_DOOR = "lectern/__init__.py"
TORCH_PACKAGES = {"lectern_models", "teacher_server", "student_trainer"}

# Folders and files of a package: each imports only those that stand left of it.
ORDER_WITHIN = {
    package: order.split()
    for package, order in {
        "lectern_common": "errors words logs roots threads ranks files json_lines "
        "callers listening http_server wire tokens teacher spec run checks stages",
        "teacher_server": "engine ranks scheduling rpc http observing options __main__",
        "student_trainer": "stop seeds targets batch ranks data objective journal "
        "student teacher generating evaluation evaluating record run exporting publishing stages "
        "pipeline __main__",
        "control_plane": "runs tasks views readiness disk_space reading trainers teachers "
        "sweeps housekeeping observing plane api __main__",
        "lectern_data": "read left_out document_split chats tokens write settings found prepare "
        "shown asking",
        "lectern": "console reconnect client options terminal local commands demo __main__",
    }.items()
}

# The files that speak gRPC; everything else is tested without it.
GRPC_FILES = {
    "protos/teacher_pb2_grpc.py",
    "lectern_common/teacher/channel.py",
    "student_trainer/teacher/calls.py",
    "teacher_server/rpc/auth.py",
    "teacher_server/rpc/server.py",
    "teacher_server/rpc/servicer.py",
}


def modules() -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def imported_names(path: Path) -> Iterator[str]:
    """Yields the dotted name of every import anywhere in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports by relative path"
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "import_module",
            "importlib.import_module",
        ):
            if relative(path) == FRONT_DOOR:
                yield from lectern._HOMES.values()
                continue
            assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno} hides an import"
            yield str(node.args[0].value)


def imported_from(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (package, folder or file in it) of every import of one of our packages."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                parts = f"{node.module}.{alias.name}".split(".")
                yield parts[0], parts[1]


def imported_packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported_names(path)}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_stands_left_of_it(package):
    for path in (ROOT / package).rglob("*.py"):
        ours = imported_packages(path) & MAY_IMPORT.keys()
        assert ours <= MAY_IMPORT[package] | {package}, relative(path)


@pytest.mark.parametrize("package", ORDER_WITHIN)
def test_a_folder_imports_only_those_left_of_it(package):
    order = ORDER_WITHIN[package]
    seen = set()
    for path in (ROOT / package).rglob("*.py"):
        room = path.relative_to(ROOT / package).with_suffix("").parts[0]
        if room in ("__init__", "migrations"):
            continue
        seen.add(room)
        for name, module in imported_from(path):
            if name == package and module in order:
                assert order.index(module) <= order.index(room), f"{relative(path)}: {module}"
    assert seen == set(order)


def test_only_the_front_door_of_the_roof_imports_the_trainer():
    for path in (ROOT / "lectern").rglob("*.py"):
        if relative(path) != FRONT_DOOR:
            assert "student_trainer" not in imported_packages(path), relative(path)


def test_no_folder_is_fuller_than_a_screen():
    """At most 12 entries besides __init__, 20 at a package's top."""
    for package in MAY_IMPORT:
        for folder in (ROOT / package, *(ROOT / package).rglob("*/")):
            if "vendor" in folder.parts or folder.name in ("__pycache__", "versions"):
                continue
            besides = {"__init__.py", "__pycache__", "py.typed"}
            entries = {path.name for path in folder.iterdir()} - besides
            assert len(entries) <= (20 if folder.name == package else 12), relative(folder)


def test_torch_is_imported_only_by_teacher_and_trainer():
    for path in modules():
        if path.relative_to(ROOT).parts[0] not in TORCH_PACKAGES:
            assert not imported_packages(path) & {"torch", "transformers"}, relative(path)


def test_grpc_is_imported_only_by_the_files_that_speak_it():
    speakers = {
        relative(path)
        for path in modules()
        if imported_packages(path) & {"grpc", "grpc_health", "grpc_reflection"}
    }
    assert speakers == GRPC_FILES


def test_fastapi_is_imported_only_where_http_is_served():
    homes = ("control_plane/", "teacher_server/http/", "lectern_common/http_server.py")
    for path in modules():
        if not relative(path).startswith(homes):
            assert not imported_packages(path) & {"fastapi", "starlette", "uvicorn"}, relative(path)


def loaded_by(module: str) -> set[str]:
    """Returns the top-level modules that a new process holds after importing `module`."""
    program = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["control_plane.__main__", "control_plane.api.app"])
def test_the_control_plane_starts_without_torch(module):
    assert not loaded_by(module) & {"torch", "transformers"}


def test_the_command_line_starts_with_next_to_nothing():
    heavy = {"torch", "transformers", "grpc", "fastapi", "numpy", "pydantic", "httpx", "rich"}
    assert not loaded_by("lectern.__main__") & heavy


@pytest.mark.parametrize("package", ["lectern_data", "lectern"])
def test_every_module_behind_the_command_line_loads_without_torch(package):
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("[!_]*.py")]
    names = [".".join(path.parts) for path in paths]
    assert not loaded_by(", ".join(names)) & {"torch", "transformers"}
