"""Identifies the model that teaches a run: recorded when the run is accepted, then enforced.

A run may wait in a queue for hours before its first request, and may lose its trainer before the
first checkpoint. By then its address may serve a different model.
"""

from dataclasses import dataclass

from lectern_common.errors import WrongModel
from protos import teacher_pb2

_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class TeacherIdentity:
    """A model's name, for people, and its fingerprint, which guarantees equal answers."""

    model_id: str
    fingerprint: str

    @classmethod
    def of(cls, model: teacher_pb2.Model) -> "TeacherIdentity":
        return cls(model.model_id, model.fingerprint)

    def __str__(self) -> str:
        return f"{self.model_id} (fingerprint {self.fingerprint[:_SHOWN_DIGITS]})"


def ranks_of(model: teacher_pb2.Model) -> int:
    """Returns how many ranks share a teacher's model; 1 for a server that does not say."""
    return model.tensor_parallel or 1


def layout_of_bytes(model: teacher_pb2.Model) -> int | None:
    """Returns `ranks_of` if bytes of answers depend on it as promised; None if nothing is cut up.

    Only in mode "independent": in "throughput" answers agree up to rounding anyway.
    """
    return ranks_of(model) if model.mode == "independent" and ranks_of(model) > 1 else None


def require_same_teacher(found: TeacherIdentity, expected: TeacherIdentity, where: str) -> None:
    """Raises WrongModel unless the model that was found is the run's.

    Args:
        found: what is there now.
        expected: what the run was accepted with.
        where: subject and verb, such as "teacher.address 127.0.0.1:50051 serves".
    """
    if found.fingerprint != expected.fingerprint:
        raise WrongModel(
            f"{where} {found}, but the run was accepted with {expected}; put that model "
            "there again and resume the run, or create a new run for the other"
        )
