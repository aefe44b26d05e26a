"""Functions as documents: what is taken of a file, and what of it is a prompt."""

from lectern.demo.functions import Function, functions_of

FILE = """
import os

class Reader:
    @property
    def size(self):
        # in bytes

        return os.stat(self.path).st_size

    async def read(self, start: int,
                   stop: int) -> bytes:
        def part():
            return start, stop
        return part()

def short(): return 1
"""


def test_methods_lose_their_indentation_and_prompts_end_before_the_body():
    assert sorted(functions_of(FILE)) == [
        Function(
            "async def read(self, start: int,\n               stop: int) -> bytes:\n"
            "    def part():\n        return start, stop\n    return part()\n",
            len("async def read(self, start: int,\n               stop: int) -> bytes:\n"),
        ),
        Function(
            "def size(self):\n    # in bytes\n\n    return os.stat(self.path).st_size\n",
            len("def size(self):\n"),
        ),
    ]


def test_a_file_that_does_not_parse_has_no_functions():
    assert list(functions_of("def broken(:\n    pass\n")) == []
    assert list(functions_of("nul = '\0'")) == []
