"""The Python interface: everything that programs import with `from lectern import ...`.

A name is loaded when it is first used, so importing `lectern` loads neither torch nor anything
else. docs/python.md shows how to use each.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lectern.client.client import Client
    from lectern_common.errors import LecternError
    from lectern_common.spec.load import load_spec
    from lectern_common.spec.run_spec import RunSpec
    from student_trainer.data.sources import ShardBatchSource, SyntheticBatchSource
    from student_trainer.pipeline import Pipeline
    from student_trainer.student.student import CausalStudent
    from student_trainer.teacher.local import FixtureTeacher, InProcessTeacher
    from student_trainer.teacher.remote import connect_teacher

    __version__: str

__all__ = [
    "CausalStudent",
    "Client",
    "FixtureTeacher",
    "InProcessTeacher",
    "LecternError",
    "Pipeline",
    "RunSpec",
    "ShardBatchSource",
    "SyntheticBatchSource",
    "__version__",
    "connect_teacher",
    "load_spec",
]

_HOMES = {
    "CausalStudent": "student_trainer.student.student",
    "Client": "lectern.client.client",
    "FixtureTeacher": "student_trainer.teacher.local",
    "InProcessTeacher": "student_trainer.teacher.local",
    "LecternError": "lectern_common.errors",
    "Pipeline": "student_trainer.pipeline",
    "RunSpec": "lectern_common.spec.run_spec",
    "ShardBatchSource": "student_trainer.data.sources",
    "SyntheticBatchSource": "student_trainer.data.sources",
    "connect_teacher": "student_trainer.teacher.remote",
    "load_spec": "lectern_common.spec.load",
}


def __getattr__(name: str) -> object:
    """Loads a name on first use. Raises ImportError if it needs torch, which is not installed."""
    if name == "__version__":
        from importlib.metadata import version

        return version("lectern")
    if name not in _HOMES:
        raise AttributeError(f"module 'lectern' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "transformers", "safetensors"):
            raise
        raise ImportError(
            f"lectern.{name} needs torch and transformers; install lectern[torch]"
        ) from error


def __dir__() -> list[str]:
    return sorted(__all__)
