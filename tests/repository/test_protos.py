"""The committed stubs are what the locked generator makes of the committed .proto."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = ["teacher_pb2.py", "teacher_pb2.pyi", "teacher_pb2_grpc.py"]


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stubs")
    flags = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "pyi")]
    program = [sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *flags]
    subprocess.run([*program, "protos/teacher.proto"], cwd=ROOT, check=True)
    return out / "protos"


def test_the_generator_is_the_locked_one():
    locked = re.search(r"(?m)^grpcio-tools==(\S+)", (ROOT / "requirements.lock").read_text())
    assert locked is not None
    assert version("grpcio-tools") == locked.group(1)


@pytest.mark.parametrize("name", STUBS)
def test_committed_stubs_are_fresh(regenerated, name):
    assert (ROOT / "protos" / name).read_bytes() == (regenerated / name).read_bytes(), (
        "make protos, and commit what it writes"
    )


def test_nothing_else_is_generated(regenerated):
    assert sorted(path.name for path in regenerated.iterdir()) == STUBS


def test_every_message_and_field_of_the_contract_is_told_apart_by_name():
    """Field numbers and names are the wire: this list changes only when the contract does."""
    from protos import teacher_pb2

    service = teacher_pb2.DESCRIPTOR.services_by_name["Teacher"]
    assert teacher_pb2.DESCRIPTOR.package == "lectern.v1"
    assert {method.name: method.server_streaming for method in service.methods} == {
        "GetModel": False,
        "LogitsForBatch": True,
        "GetOutputHead": True,
        "GetTokenizerMap": True,
        "GetStats": False,
    }
    assert not any(method.client_streaming for method in service.methods)
