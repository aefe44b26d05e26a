"""The stage evaluate: numbers against plain float64, every kind of model, and going on."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from lectern_common.errors import (
    InvalidRequest,
    InvalidSpec,
    NotFound,
    TokenizerMismatch,
)
from lectern_common.roots import Roots
from lectern_common.stages.requests import parse_request
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.loading import load_causal_lm
from student_trainer.evaluating.stage import evaluate
from student_trainer.evaluating.texts import windows
from student_trainer.evaluating.words import TextTokenizer
from student_trainer.stop import Stop, StopRequested
from teacher_server.engine.transformers import EngineSettings, load
from teacher_server.rpc.limits import Limits
from tests.support.models import write_tiny_model, write_tiny_tokenizer
from tests.support.servers import teacher_thread
from tests.support.training.runs import Home, curve, trained

TEXTS = ["".join(f"{i * i % 97} def f{i}(a) " for i in range(30)), "short", "tail " * 30]


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    roots = Roots.of_home(tmp_path_factory.mktemp("home"))
    write_tiny_model(roots.models / "tiny", vocab_size=300, tokenizer=True, max_positions=32)
    big: dict[str, Any] = {"vocab_size": 310, "layers": 3, "seed": 5, "max_positions": 64}
    write_tiny_model(roots.models / "big", **big)
    write_tiny_tokenizer(roots.models / "big", 300)
    roots.data.mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (roots.data / "t.jsonl").write_text(lines)
    return roots


def evaluated(roots, work, *, stop=None, report=lambda *_: None, **asked):
    work.mkdir(exist_ok=True, parents=True)
    body = {"batch_sequences": 3, "device": "cpu", **asked}
    request: Any = parse_request("evaluate", body)
    return evaluate(request, roots, work, stop=stop or Stop(), report=report)


@torch.no_grad()
def plainly(roots, name, window=32):
    """Returns (log-probabilities in float64 [N, V], tokens that follow [N]) of all texts."""
    folder = roots.models / name
    model, tokenizer = load_causal_lm(folder, "float32").double(), TextTokenizer(folder)
    rows, labels = [], []
    for text in TEXTS:
        for context, predicted in windows(tokenizer.ids(text), 0, window):
            logits = model(torch.tensor([[*context, *predicted[:-1]]])).logits[0]
            rows.append(logits[len(context) - 1 :].log_softmax(-1))
            labels += predicted
    return torch.cat(rows), torch.tensor(labels)


def test_perplexity_is_that_of_a_plain_forward(roots, tmp_path):
    asked = {"model": "tiny", "suites": ["perplexity"], "text": {"data": "t.jsonl"}}
    found = evaluated(roots, tmp_path, **asked)["suites"]["perplexity"]
    log_p, labels = plainly(roots, "tiny")
    nats = -log_p[torch.arange(len(labels)), labels].sum().item()
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert found["tokens"] == len(labels)
    assert found["loss"] == pytest.approx(nats / len(labels), abs=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(nats / len(labels)), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-6)
    assert found["bytes"] == num_bytes


def expected_agreement(roots):
    ours, labels = plainly(roots, "tiny")
    theirs, _ = plainly(roots, "big")
    theirs = theirs[:, :300].log_softmax(-1)  # over the ids that both have
    confidence, top = ours.max(-1)
    confidence = confidence.exp().numpy()
    found = {
        "kl": (theirs.exp() * (theirs - ours)).sum(-1).mean().item(),
        "top1_agreement": (top == theirs.argmax(-1)).double().mean().item(),
    }
    for name, right in (
        ("calibration_error", top == theirs.argmax(-1)),
        ("label_calibration_error", top == labels),
    ):
        error = 0.0
        for low in range(4):
            inside = (confidence > low / 4) & (confidence <= (low + 1) / 4)
            if inside.any():
                gap = right.numpy()[inside].mean() - confidence[inside].mean()
                error += inside.mean() * abs(gap)
        found[name] = error
    return found


AGREEMENT = {
    "model": "tiny",
    "suites": ["agreement"],
    "text": {"data": "t.jsonl"},
    "agreement": {"bins": 4},
}


def test_agreement_is_that_of_plain_forwards(roots, tmp_path):
    found = evaluated(roots, tmp_path, against="big", **AGREEMENT)["suites"]["agreement"]
    for name, value in expected_agreement(roots).items():
        assert found[name] == pytest.approx(value, abs=2e-6), name
    assert found["teacher"]["words"] == "big"


@pytest.mark.parametrize("representation", ["hidden", "dense"])
def test_agreement_with_a_server_is_that_with_its_model(roots, tmp_path, representation):
    options = {**AGREEMENT, "agreement": {"bins": 4, "representation": representation}}
    engine = load(str(roots.models / "big"), EngineSettings(dtype="float32", device="cpu"))
    with teacher_thread(engine) as address:
        found = evaluated(roots, tmp_path, against=address, **options)["suites"]["agreement"]
    for name, value in expected_agreement(roots).items():
        assert found[name] == pytest.approx(value, abs=2e-6), name


def test_a_server_is_asked_no_more_at_a_time_than_it_takes(roots, tmp_path):
    engine = load(str(roots.models / "big"), EngineSettings(dtype="float32", device="cpu"))
    with teacher_thread(engine, Limits(max_tokens=40)) as address:
        found = evaluated(roots, tmp_path, against=address, **AGREEMENT)["suites"]["agreement"]
    assert found["kl"] == pytest.approx(expected_agreement(roots)["kl"], abs=2e-6)


def test_top_k_bounds_the_kl_from_below(roots, tmp_path):
    options = {**AGREEMENT, "agreement": {"bins": 4, "representation": "top_k", "top_k": 8}}
    found = evaluated(roots, tmp_path, against="big", **options)["suites"]["agreement"]
    expected = expected_agreement(roots)
    assert 0 < found["kl"] < expected["kl"]
    assert found["top1_agreement"] == expected["top1_agreement"]
    assert found["teacher_loss"] is None
    assert found["kl_is"].startswith("lower bound")


def test_a_model_agrees_with_itself(roots, tmp_path):
    found = evaluated(roots, tmp_path, against="tiny", **AGREEMENT)["suites"]["agreement"]
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["top1_agreement"] == 1
    assert found["teacher_loss"] == pytest.approx(found["loss"], abs=1e-7)


def test_a_teacher_of_other_tokens_is_refused(roots, tmp_path):
    write_tiny_model(roots.models / "other", vocab_size=300)
    tokens = json.loads((roots.models / "tiny" / "tokenizer.json").read_text())
    vocab = tokens["model"]["vocab"]
    a, b = "a", "t"
    vocab[a], vocab[b] = vocab[b], vocab[a]
    (roots.models / "other" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(TokenizerMismatch, match="bits_per_byte"):
        evaluated(roots, tmp_path, against="other", **AGREEMENT)


def test_a_stopped_evaluation_goes_on_with_the_next_batch(roots, tmp_path):
    asked = {"model": "tiny", "suites": ["perplexity"], "text": {"data": "t.jsonl"}}
    whole = evaluated(roots, tmp_path / "one", **asked)
    stop, seen = Stop(), []

    def report(what, done, of):
        if what == "batches of perplexity":
            seen.append(done)
            if done == 2:
                stop.request()

    with pytest.raises(StopRequested):
        evaluated(roots, tmp_path / "two", stop=stop, report=report, **asked)
    seen.clear()
    stop = Stop()
    again = evaluated(
        roots,
        tmp_path / "two",
        report=lambda what, done, of: seen.append(done) if what.startswith("batches") else None,
        **asked,
    )
    assert seen[0] == 2
    assert again["suites"] == whole["suites"]


def test_what_is_counted_names_its_suite(roots, tmp_path):
    seen: dict[str, list[int]] = {}
    evaluated(
        roots,
        tmp_path,
        report=lambda what, done, of: seen.setdefault(what, []).append(done),
        **{**AGREEMENT, "against": "big", "suites": ["perplexity", "agreement"]},
    )
    for suite in ("perplexity", "agreement"):
        done = seen[f"batches of {suite}"]
        assert done[0] == 0 and done == sorted(done)
    assert not {"batches", "answers"} & set(seen)


def test_a_result_is_json_and_has_a_page(roots, tmp_path):
    found = evaluated(
        roots, tmp_path, **{**AGREEMENT, "against": "big", "suites": ["perplexity", "agreement"]}
    )
    json.dumps(found, allow_nan=False)
    assert "| bits per byte | " in found["markdown"]
    assert "| same likeliest token | " in found["markdown"]


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"model": "nowhere/at-all-123"}, NotFound, "nowhere"),
        ({"model": "/nowhere"}, NotFound, "/nowhere"),
        ({"model": "../tiny"}, InvalidRequest, "outside"),
        ({"model": "tiny", "weights": "initial"}, InvalidRequest, "not a run"),
        ({"model": "tiny", "weights": 3}, InvalidRequest, "not a run"),
    ],
)
def test_a_model_that_is_not_there_is_named(roots, tmp_path, monkeypatch, asked, kind, words):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(kind, match=words):
        evaluated(roots, tmp_path, suites=["perplexity"], text={"data": "t.jsonl"}, **asked)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = Home(tmp_path_factory.mktemp("run"))
    folder = home.run("taught", schedule={"steps": 4}, checkpoint={"keep_last": 9})
    assert trained(home, folder) == 0
    return home, folder


@pytest.mark.parametrize(("weights", "place"), [("initial", 0), (None, -1), (4, -1)])
def test_the_perplexity_of_a_run_is_its_validation_loss(run, tmp_path, weights, place):
    home, folder = run
    found = evaluated(home.roots, tmp_path, model="taught", weights=weights, suites=["perplexity"])
    loss = found["suites"]["perplexity"]["loss"]
    assert loss == pytest.approx(curve(folder, "loss/val")[place], abs=1e-6)
    assert found["model"]["run"] == "taught"
    assert found["model"]["weights"] == (weights or "export")
    export = home.roots.runs / "taught" / "export"
    digest = weights_sha256(safetensors_files(export)) if weights is None else None
    assert found["model"].get("weights_sha256") == digest


def test_a_step_without_a_checkpoint_is_refused_with_those_there_are(run, tmp_path):
    with pytest.raises(NotFound, match=r"no checkpoint of step 3; there: 2, 4"):
        evaluated(run[0].roots, tmp_path, model="taught", weights=3, suites=["perplexity"])


def test_a_server_is_evaluated_on_a_dataset_of_its_tokens(roots, tmp_path):
    from lectern_common.tokens.tokenizer_map import read_tokenizer_map, tokenizer_sha256
    from tests.support.training.shards import write_shards

    tokenizer = TextTokenizer(roots.models / "big")
    documents = [tokenizer.ids(text) for text in TEXTS]
    starts = np.cumsum([0, *(len(one) for one in documents[:-1])])
    write_shards(
        roots.data / "set",
        np.concatenate([np.array(one, np.uint32) for one in documents]),
        vocab_size=300,
        tokenizer_sha256=tokenizer_sha256(
            read_tokenizer_map(roots.models / "big" / "tokenizer.json")
        ),
        documents=starts,
    )
    (roots.data / "set" / "tokenizer.json").write_bytes(
        (roots.models / "big" / "tokenizer.json").read_bytes()
    )
    (roots.data / "set" / "tokenizer_config.json").write_bytes(
        (roots.models / "big" / "tokenizer_config.json").read_bytes()
    )
    asked = {"suites": ["perplexity"], "text": {"data": "set", "window": 32}}
    engine = load(str(roots.models / "big"), EngineSettings(dtype="float32", device="cpu"))
    with teacher_thread(engine) as address:
        served = evaluated(roots, tmp_path / "one", model=address, **asked)
    own = evaluated(roots, tmp_path / "two", model="big", **asked)
    ours, theirs = own["suites"]["perplexity"], served["suites"]["perplexity"]
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-6)
    assert theirs["bits_per_byte"] == pytest.approx(ours["bits_per_byte"], abs=1e-6)


def test_a_server_has_no_tokenizer_for_a_text(roots, tmp_path):
    engine = load(str(roots.models / "big"), EngineSettings(dtype="float32", device="cpu"))
    with teacher_thread(engine) as address, pytest.raises(NotFound, match=r"set text\.data to a"):
        evaluated(roots, tmp_path, model=address, suites=["perplexity"], text={"data": "t.jsonl"})


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"suites": []}, "suites: expected at least 1"),
        ({"suites": ["perplexity", "perplexity"]}, "must not repeat"),
        ({"suites": ["humaneval"]}, "suites.0"),
        ({"suites": ["agreement"]}, "against"),
        ({"suites": ["perplexity"], "against": "big"}, "against"),
        ({"model": "h:1", "suites": ["code"]}, "never generates"),
        ({"model": "h:1", "suites": ["lm-eval:a"]}, "never generates"),
        ({"suites": ["code"], "text": {"data": "a"}}, "text has no effect"),
        ({"suites": ["perplexity"], "code": {"samples": 1, "k": [2]}}, "code"),
        ({"suites": ["code"], "code": {"samples": 2}}, "temperature"),
        ({"suites": ["code"], "code": {"k": [2]}}, "pass@2 needs at least 2"),
        ({"suites": ["code"], "code": {"top_p": 0.5}}, "top_p has no effect"),
        ({"suites": ["perplexity"], "token_file": "t"}, "host:port"),
        ({"suites": ["perplexity"], "text": {"window": 8}}, "window has no effect without data"),
        ({"suites": ["perplexity"], "nonsense": 1}, "nonsense"),
    ],
)
def test_requests_that_cannot_be_are_refused(asked, words):
    with pytest.raises(InvalidSpec, match=words):
        parse_request("evaluate", {"model": "tiny", **asked})
