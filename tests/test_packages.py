"""What is asked for is what was tried: floors of pyproject.toml, the lock, stubs, the image."""

import re
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

from lectern_common.spec.run_spec import RunSpec

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
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
    """With every extra but those for work on this repository, and for preparing data."""
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    line = re.search(r"extras = \((.*?)\)", dockerfile)
    assert line is not None
    extras = set(re.findall(r"\w+", line[1]))
    (place,) = get_args(get_type_hints(RunSpec)["report_to"])
    assert extras >= set(get_args(place))
    assert extras == set(EXTRAS) - {"data", "bench", "dev"}
