"""The student and teacher that most test files use."""

import pytest

from student_trainer.student.student import CausalStudent
from student_trainer.teacher.local import InProcessTeacher
from tests.support.training.parts import tiny_student, tiny_teacher, twin


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> CausalStudent:
    return tiny_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def student(untouched: CausalStudent) -> CausalStudent:
    """A copy for each test: it is trained."""
    return twin(untouched)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> InProcessTeacher:
    return tiny_teacher(tmp_path_factory.mktemp("teacher"))
