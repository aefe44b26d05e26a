"""Problems in the form of HumanEval: reading them, and the programs that answers make."""

import gzip
import json

import pytest

from lectern_common.errors import CorruptData, InvalidRequest, Misconfigured, NotFound
from lectern_common.roots import Roots
from lectern_common.spec.suites import CodeOptions
from student_trainer.evaluating.code import problems as module
from student_trainer.evaluating.code.problems import Problem, read_problems, until_stop

ADD = {
    "task_id": "t/0",
    "prompt": "import math\n\ndef add(a, b):\n",
    "entry_point": "add",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
PROBLEM = Problem(**ADD)


@pytest.fixture
def roots(tmp_path):
    roots = Roots.of_home(tmp_path)
    roots.data.mkdir()
    return roots


def passes(program):
    """Runs a program of this file, which is trusted."""
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_problems_are_read_in_order_also_gzipped(roots, name):
    opened = gzip.open if name.endswith(".gz") else open
    with opened(roots.data / name, "wt") as file:
        for number in range(3):
            file.write(json.dumps({**ADD, "task_id": f"t/{number}", "more": 1}) + "\n\n")
    assert [p.task_id for p in read_problems(CodeOptions(problems=name), roots)] == [
        "t/0",
        "t/1",
        "t/2",
    ]
    assert len(read_problems(CodeOptions(problems=name, max_problems=2), roots)) == 2


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "line 1"),
        (["[]"], "line 1"),
        (['{"task_id": "a"}'], "line 1"),
        ([json.dumps({**ADD, "test": 3})], "line 1"),
        ([json.dumps({**ADD, "entry_point": "a; b"})], "entry_point"),
        ([json.dumps(ADD), json.dumps(ADD)], "line 2 .* task_id"),
        ([], "no problem"),
    ],
)
def test_a_file_that_holds_no_problems_is_refused_with_the_line(roots, lines, words):
    (roots.data / "p.jsonl").write_text("\n".join(lines))
    with pytest.raises(CorruptData, match=words):
        read_problems(CodeOptions(problems="p.jsonl"), roots)


def test_a_broken_gzip_file_is_refused(roots):
    (roots.data / "p.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(CorruptData, match="cannot be read"):
        read_problems(CodeOptions(problems="p.jsonl.gz"), roots)


def test_a_missing_file_or_package_is_named(roots, monkeypatch):
    with pytest.raises(NotFound, match=r"none\.jsonl"):
        read_problems(CodeOptions(problems="none.jsonl"), roots)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(Misconfigured, match=r"lectern\[humaneval\]"):
        read_problems(CodeOptions(), roots)


def test_a_link_out_of_the_data_root_is_not_followed(roots, tmp_path):
    (tmp_path / "outside.jsonl").write_text(json.dumps(ADD))
    (roots.data / "p.jsonl").symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(InvalidRequest, match="outside"):
        read_problems(CodeOptions(problems="p.jsonl"), roots)


def test_a_completion_continues_the_prompt():
    assert passes(PROBLEM.program("    return a + b\n"))
    assert not passes(PROBLEM.program("    return a - b\n"))
    assert not passes(PROBLEM.program(""))


@pytest.mark.parametrize(
    "answer",
    [
        "Sure:\n```python\ndef add(a, b):\n    return int(math.fsum([a, b]))\n```\nDone.",
        "```\nx = 1\n```\nand\n```py\ndef add(a, b):\n    return a + b\n```",
        "```python\n    return a + b\n```",
        "    return a + b\n",
        "def add(a, b):\n    return a + b",
        "```python\ndef add(a, b):\n    return a + b",  # cut off before the end of the block
        "```python\nimport math\n\ndef add(a, b):\n    return a + b\n```",
    ],
)
def test_the_code_of_an_answer_is_found(answer):
    assert passes(PROBLEM.program_of_answer(answer))


def test_words_without_code_do_not_pass():
    assert not passes(PROBLEM.program_of_answer("I cannot do that."))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("    return 1\n\ndef other():", "    return 1\n"),
        (
            "    x = 1\n    # inside\n    return x\n# outside",
            "    x = 1\n    # inside\n    return x",
        ),
        ("    return 1\nprint(2)\nclass A:", "    return 1"),
        ("    if x:\n        return\nif y:", "    if x:\n        return"),
        ("    return 1\n", "    return 1\n"),
    ],
)
def test_a_completion_ends_with_its_function(text, expected):
    assert until_stop(text, CodeOptions()) == expected


def test_an_answer_in_chat_ends_only_where_it_is_told_to():
    text = "    return 1\n\ndef other():"
    assert until_stop(text, CodeOptions(mode="chat")) == text
    assert until_stop(text, CodeOptions(mode="chat", stop=["1"])) == "    return "
    assert until_stop(text, CodeOptions(stop=[])) == text
