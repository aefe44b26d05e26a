"""Tasks of lm-evaluation-harness: one of our own on disk, and perplexity beside the harness's."""

import json
import math
from importlib.util import find_spec
from typing import Any

import pytest

from lectern_common.errors import InvalidRequest, LecternError, Misconfigured
from lectern_common.roots import Roots
from lectern_common.stages.requests import parse_request
from student_trainer.evaluating import harness
from student_trainer.evaluating.stage import evaluate
from student_trainer.stop import Stop
from tests.support.models import write_tiny_model

TEXTS = ["".join(f"{i * i % 97} def f{i}(a) " for i in range(40)), "short", "tail " * 60]
needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None,
    reason="needs the package lm-eval: pip install 'lectern[lm-eval]'",
)
# The harness and what it imports warn of themselves.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    roots = Roots.of_home(tmp_path_factory.mktemp("home"))
    # Of gpt2, transformers takes the tokenizer.json as it is.
    write_tiny_model(
        roots.models / "tiny", "gpt2", vocab_size=300, tokenizer=True, max_positions=64
    )
    tasks = roots.data / "tasks"
    tasks.mkdir(parents=True)
    path = roots.data / "t.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tasks / "ours.yaml").write_text(
        f"""
task: ours
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {path}}}}}
output_type: loglikelihood_rolling
validation_split: validation
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}}
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
metadata: {{version: 1.0}}
"""
    )
    return roots


def evaluated(roots, work, monkeypatch, **asked):
    monkeypatch.setenv("HF_HOME", str(work / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(work / "hf" / "datasets"))
    body = {"model": "tiny", "lm_eval": {"tasks_path": "tasks"}, "device": "cpu", **asked}
    request: Any = parse_request("evaluate", body)
    return evaluate(request, roots, work, stop=Stop(), report=lambda *_: None)


@needs_harness
def test_perplexity_and_the_harness_agree_to_1e_4_a_token(roots, tmp_path, monkeypatch):
    found = evaluated(
        roots,
        tmp_path,
        monkeypatch,
        suites=["perplexity", "lm-eval:ours"],
        text={"data": "t.jsonl"},
    )["suites"]
    own = found["perplexity"]
    theirs = found["lm_eval"]["tasks"]["ours"]["bits_per_byte"]
    assert own["bytes"] == sum(len(text) for text in TEXTS)
    nats_per_token = theirs * math.log(2) * own["bytes"] / own["tokens"]
    assert own["loss"] == pytest.approx(nats_per_token, abs=1e-4)


@needs_harness
def test_a_task_that_is_done_is_not_run_again(roots, tmp_path, monkeypatch):
    first = evaluated(roots, tmp_path, monkeypatch, suites=["lm-eval:ours"])

    def fail(*_):
        raise AssertionError("it ran again")

    monkeypatch.setattr(harness.Harness, "scores", fail)
    assert (
        evaluated(roots, tmp_path, monkeypatch, suites=["lm-eval:ours"])["suites"]
        == (first["suites"])
    )


@needs_harness
def test_an_unknown_task_is_refused_with_one_that_is_alike(roots, tmp_path, monkeypatch):
    with pytest.raises(InvalidRequest, match=r"has no task hellaswg; did you mean .*hellaswag"):
        evaluated(roots, tmp_path, monkeypatch, suites=["lm-eval:hellaswg"])


@needs_harness
def test_a_task_that_fails_is_an_error_and_no_score(roots, tmp_path, monkeypatch):
    (roots.data / "t.jsonl").rename(roots.data / "gone.jsonl")
    try:
        with pytest.raises(LecternError, match="lm-eval:ours failed"):
            evaluated(roots, tmp_path, monkeypatch, suites=["lm-eval:ours"])
    finally:
        (roots.data / "gone.jsonl").rename(roots.data / "t.jsonl")


def test_without_the_package_it_is_refused_with_what_to_install(roots, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    with pytest.raises(Misconfigured, match=r"pip install 'lectern\[lm-eval\]'"):
        evaluated(roots, tmp_path, monkeypatch, suites=["lm-eval:ours"])
