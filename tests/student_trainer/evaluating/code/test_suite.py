"""The suite code: pass@k, problems that could not be judged, and going on after a stop."""

import json
from concurrent.futures import Future
from itertools import combinations

import pytest

from lectern_common.errors import InvalidSpec, LecternError, Misconfigured
from lectern_common.roots import Roots
from lectern_common.spec.suites import CodeOptions
from lectern_common.stages.requests import parse_request
from student_trainer.evaluating.code import suite as module
from student_trainer.evaluating.code.suite import pass_at_k, scores_of
from student_trainer.evaluating.sandbox.limits import Outcome, Verdict
from student_trainer.evaluating.stage import evaluate
from student_trainer.generating import generator
from student_trainer.stop import Stop, StopRequested
from tests.support.models import write_tiny_model


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_draws_with_a_right_sample(n):
    for right in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations(range(n), k))
            share = sum(any(one < right for one in draw) for draw in draws) / len(draws)
            assert pass_at_k(n, right, k) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(1, 2, 1), (2, -1, 1), (2, 1, 3), (2, 1, 0)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


def entry(problem, sample, outcome):
    return {"problem": problem, "sample": sample, "outcome": outcome}


def test_a_score_is_the_mean_over_problems_not_over_samples():
    options = CodeOptions(samples=4, temperature=1.0, k=(1, 2))
    entries = [
        *(entry("a", i, "passed" if i < 1 else "failed") for i in range(4)),
        *(entry("b", i, "timed_out") for i in range(4)),
        *(entry("c", i, "passed") for i in range(4)),
    ]
    scores = scores_of(entries, options)
    assert scores.pass_at_k == pytest.approx({"1": (0.25 + 0 + 1) / 3, "2": (0.5 + 0 + 1) / 3})
    assert scores.num_judged == 3
    assert scores.standard_error["1"] == pytest.approx(0.3004626062886658)


def test_a_problem_that_could_not_be_judged_is_left_out_and_counted():
    options = CodeOptions(samples=2, temperature=1.0)
    entries = [
        entry("a", 0, "passed"),
        entry("a", 1, "not_judged"),
        entry("b", 0, "passed"),
        entry("b", 1, "passed"),
        entry("c", 0, "not_judged"),
        entry("c", 1, "not_judged"),
    ]
    scores = scores_of(entries, options)
    assert (scores.pass_at_k, scores.num_judged) == ({"1": 1.0}, 1)


class FakeJudge:
    """Passes programs that hold a letter; counts them."""

    interpreter = "fake"

    def __init__(self, outcomes=None):
        self.programs = []
        self.outcomes = outcomes

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def judging(self, program):
        self.programs.append(program)
        future: Future[Verdict] = Future()
        outcome = Outcome.PASSED if self.outcomes is None else self.outcomes(program)
        future.set_result(Verdict(outcome, "because"))
        return future


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    roots = Roots.of_home(home)
    write_tiny_model(roots.models / "tiny", vocab_size=300, tokenizer=True)
    roots.data.mkdir()
    lines = [
        {
            "task_id": f"t/{i}",
            "prompt": f"def f{i}(a):\n    '''{'x' * i}'''\n",
            "entry_point": f"f{i}",
            "test": "def check(c):\n    pass\n",
        }
        for i in range(5)
    ]
    (roots.data / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return roots


def asked(**code):
    settings = {"problems": "p.jsonl", "max_new_tokens": 6, "stop": [], **code}
    return parse_request(
        "evaluate", {"model": "tiny", "suites": ["code"], "code": settings, "batch_sequences": 4}
    )


def run(home, work, judge, monkeypatch, *, stop=None, report=lambda *_: None, **code):
    monkeypatch.setattr(module, "opened_judge", lambda options: judge)
    work.mkdir(exist_ok=True)
    return evaluate(asked(**code), home, work, stop=stop or Stop(), report=report)


SAMPLED = {"samples": 3, "temperature": 0.8, "k": [1, 3]}


def test_every_sample_of_every_problem_is_judged_once(home, tmp_path, monkeypatch):
    judge = FakeJudge()
    found = run(home, tmp_path / "work", judge, monkeypatch, **SAMPLED)["suites"]["code"]
    assert found["pass_at_k"] == {"1": 1.0, "3": 1.0}
    assert (found["problems"], found["not_judged"], len(judge.programs)) == (5, 0, 15)
    assert found["outcomes"] == {"passed": 15, "failed": 0, "timed_out": 0, "not_judged": 0}


@pytest.mark.parametrize("answers_before", [1, 5, 8])
def test_a_stopped_evaluation_goes_on_and_gives_the_same_answers(
    home, tmp_path, monkeypatch, answers_before
):
    def kept(work):
        lines = (work / "code.jsonl").read_text().splitlines()[1:]
        found = [json.loads(line) for line in lines]
        assert len({(one["problem"], one["sample"]) for one in found}) == len(found)
        return sorted((one["problem"], one["sample"], one["answer"]) for one in found)

    undisturbed = run(home, tmp_path / "one", FakeJudge(), monkeypatch, **SAMPLED)
    stop = Stop()

    def report(what, done, of):
        if what == "answers of code" and done >= answers_before:
            stop.request()

    work, first, second = tmp_path / "two", FakeJudge(), FakeJudge()
    with pytest.raises(StopRequested):
        run(home, work, first, monkeypatch, stop=stop, report=report, **SAMPLED)
    before = len(kept(work))
    assert 0 < before < 15
    found = run(home, work, second, monkeypatch, **SAMPLED)
    assert len(second.programs) == 15 - before
    assert kept(work) == kept(tmp_path / "one")
    assert found["suites"] == undisturbed["suites"]


def test_what_could_not_be_judged_is_tried_again(home, tmp_path, monkeypatch):
    broken = FakeJudge(lambda program: Outcome.NOT_JUDGED if "f3" in program else Outcome.PASSED)
    found = run(home, tmp_path / "work", broken, monkeypatch)["suites"]["code"]
    assert (found["not_judged"], found["pass_at_k"]) == (1, {"1": 1.0})
    again = FakeJudge()
    found = run(home, tmp_path / "work", again, monkeypatch)["suites"]["code"]
    assert (found["not_judged"], len(again.programs)) == (0, 1)


def test_an_evaluation_that_could_judge_nothing_is_an_error(home, tmp_path, monkeypatch):
    broken = FakeJudge(lambda program: Outcome.NOT_JUDGED)
    with pytest.raises(LecternError, match=r"no answer could be judged \(because\)"):
        run(home, tmp_path / "work", broken, monkeypatch)


def test_without_a_sandbox_nothing_is_generated(home, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Misconfigured, match="--no-sandbox"):
        evaluate(asked(), home, tmp_path, stop=Stop(), report=lambda *_: None)


def test_every_option_reaches_what_it_is_for(home, tmp_path, monkeypatch):
    options = CodeOptions(seconds=7.5, memory_mib=99, sandbox=False)
    judge = module.opened_judge(options)
    assert (judge._limits.seconds, judge._limits.memory_bytes) == (7.5, 99 << 20)
    assert not judge._sandboxed
    seen = []

    def spied(model, prompts, sampling, **rest):
        seen.append((sampling, len(prompts)))
        return generator.written(model, prompts, sampling, **rest)

    monkeypatch.setattr(module, "written", spied)
    sampled = {"samples": 2, "temperature": 0.5, "top_p": 0.75, "max_problems": 3}
    run(home, tmp_path / "work", FakeJudge(), monkeypatch, **sampled)
    assert {(one.temperature, one.top_p, one.max_new_tokens) for one, _ in seen} == {(0.5, 0.75, 6)}
    assert [count for _, count in seen] == [4, 2]


def test_the_numbers_of_an_answer_are_pinned():
    assert module.answer_uniforms(3, "HumanEval/0", 1, 2).tolist() == [
        0.04465839527565396,
        0.5417649519546445,
    ]


def test_other_problems_or_options_start_over(home, tmp_path, monkeypatch):
    run(home, tmp_path / "work", FakeJudge(), monkeypatch)
    judge = FakeJudge()
    run(home, tmp_path / "work", judge, monkeypatch, max_new_tokens=7)
    assert len(judge.programs) == 5


def test_prompts_that_do_not_fit_are_refused_by_name(home, tmp_path, monkeypatch):
    with pytest.raises(InvalidSpec, match=r"code\.max_new_tokens: is 128, and the prompt of t/0"):
        run(home, tmp_path / "work", FakeJudge(), monkeypatch, max_new_tokens=128)


def test_chat_mode_needs_a_template_and_uses_it(home, tmp_path, monkeypatch):
    from lectern_common.errors import InvalidRequest

    with pytest.raises(InvalidRequest, match="no chat template"):
        run(home, tmp_path / "work", FakeJudge(), monkeypatch, mode="chat")
    path = home.models / "tiny" / "chat_template.jinja"
    path.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content[:9] }}{% endfor %}<a>")
    try:
        found = run(home, tmp_path / "work", FakeJudge(), monkeypatch, mode="chat")
    finally:
        path.unlink()
    assert found["suites"]["code"]["mode"] == "chat"
