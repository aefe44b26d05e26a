"""What is asked for is what was tried: floors, the lock, stubs, the image; the wheel is whole."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from lectern_common.spec.run_spec import RunSpec

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGES = (
    *("protos", "lectern_common", "lectern_models", "teacher_server", "student_trainer"),
    *("control_plane", "lectern_data", "lectern"),
)
# Where another release may compute or store other things, none older than the tried one will do.
TRIED = {
    *("accelerate", "bitsandbytes", "datasets", "gguf", "huggingface-hub", "peft", "pyarrow"),
    *("safetensors", "tensorboard", "tokenizers", "torch", "transformers", "wandb"),
}


def name_of(package: str) -> str:
    return package.lower().replace("_", "-")


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def locked() -> dict[str, str]:
    lines = (line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines())
    return {name_of(pair[0]): pair[1] for pair in lines if len(pair) == 2}


def floors() -> list[tuple[str, str]]:
    asked = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    return [(name_of(name), floor) for name, _, floor in (one.partition(">=") for one in asked)]


def test_no_floor_is_above_what_is_locked() -> None:
    found = locked()
    for name, floor in floors():
        assert not floor or numbers(floor) <= numbers(found[name]), name


def test_floors_of_what_computes_and_stores_are_what_was_tried() -> None:
    found, seen = locked(), set()
    for name, floor in floors():
        if name in TRIED:
            seen.add(name)
            asked = numbers(floor)
            assert asked == numbers(found[name])[: len(asked)], name
    assert seen == TRIED


def test_floors_of_the_wire_are_what_its_stubs_ask_for() -> None:
    messages = (ROOT / "protos" / "teacher_pb2.py").read_text()
    calls = (ROOT / "protos" / "teacher_pb2_grpc.py").read_text()
    protobuf = re.search(r"Protobuf Python Version: (\S+)", messages)
    grpc = re.search(r"GRPC_GENERATED_VERSION = '(\S+)'", calls)
    assert protobuf is not None and grpc is not None
    for name, floor in floors():
        if name == "protobuf":
            assert floor == protobuf[1]
        elif name.startswith("grpcio"):
            assert floor == grpc[1], name


def test_the_image_has_every_place_that_metrics_may_go_to() -> None:
    """Without what is for work on this repository, for preparing data and for evaluating code."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    line = re.search(r"extras = \((.*?)\)", dockerfile)
    assert line is not None
    extras = set(re.findall(r"\w+", line[1]))
    (place,) = get_args(get_type_hints(RunSpec)["report_to"])
    assert extras >= set(get_args(place))
    assert extras == set(EXTRAS) - {"data", "bench", "dev", "humaneval", "lm-eval", "openai"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, unpacked. Built from a copy, so that no build/ of before gets in."""
    source, unpacked = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("unpacked")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(source / "made"), str(source)], check=True, timeout=300)
    (made,) = (source / "made").glob("lectern-*.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_every_module_of_the_tree_is_in_the_wheel(wheel: Path) -> None:
    """An editable install hides a folder that is left out."""
    there = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert str(path.relative_to(ROOT)) in there


@pytest.mark.long
def test_every_module_of_the_wheel_is_imported_from_it(wheel: Path) -> None:
    modules = sorted(
        ".".join(path.relative_to(wheel).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (wheel / package).rglob("*.py")
        if "migrations" not in path.parts and path.name != "__main__.py"
    )
    assert len(modules) > 150
    program = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(wheel)!r})\n"
        "for name in sys.argv[1:]:\n"
        "    found = importlib.import_module(name)\n"
        f"    assert found.__file__.startswith({str(wheel)!r}), found.__file__\n"
    )
    # -I leaves out this folder, and the finder of an editable install is asked last.
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *modules],
        capture_output=True,
        text=True,
        cwd=wheel,
    )
    assert done.returncode == 0, done.stderr[-2000:]
