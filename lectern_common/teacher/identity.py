"""Which model teaches a run: seen when the run is accepted, and held to from then on.

A run may wait in a queue for hours before it asks its teacher anything, and lose its trainer before
the first checkpoint. What serves at its address by then may be another model.
"""

from dataclasses import dataclass

from lectern_common.errors import WrongModel
from protos import teacher_pb2

_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class TeacherIdentity:
    """A model by its name, which is for people, and by its fingerprint, which promises answers."""

    model_id: str
    fingerprint: str

    @classmethod
    def of(cls, model: teacher_pb2.Model) -> "TeacherIdentity":
        return cls(model.model_id, model.fingerprint)

    def __str__(self) -> str:
        return f"{self.model_id} (fingerprint {self.fingerprint[:_SHOWN_DIGITS]})"


def require_same_teacher(found: TeacherIdentity, expected: TeacherIdentity, address: str) -> None:
    """Returns where the model at `address` is the one that the run was accepted with.

    Raises:
        WrongModel: it is another one.
    """
    if found.fingerprint != expected.fingerprint:
        raise WrongModel(
            f"teacher.address {address} serves {found}, but the run was accepted with {expected}; "
            "serve that one there again and resume the run, or create a new run for the other"
        )
