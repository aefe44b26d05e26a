"""`lectern evaluate`: its options reach the request, and a real process gives the result."""

import json
from typing import Any

import pytest

from lectern_common.roots import Roots
from lectern_common.stages.evaluate import EvaluateRequest
from tests.support.models import write_tiny_model
from tests.support.servers import ROOT
from tests.support.training.runs import Home, trained

OPTIONS = (
    "m --against big --suite perplexity --suite agreement --suite code --suite lm-eval:a,b "
    "--weights 30 --revision main --data t.jsonl --window 9 --max-documents 3 "
    "--representation top_k --problems p.jsonl --mode chat --samples 4 --k 1 --k 2 "
    "--temperature 0.5 --top-p 0.75 --max-new-tokens 7 --stop-at \\ndef --stop-at end "
    "--max-problems 5 --seconds 1.5 --memory 99 --no-sandbox --tasks-path tasks --num-fewshot 2 "
    "--limit 6 --seed 8 --batch 3 --device cpu --dtype float32"
)


@pytest.fixture(autouse=True)
def _python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that would have been run, and their folders."""
    from lectern.commands.stages import foreground

    seen: list[Any] = []

    def run_stage(stage: str, request: Any, roots: Roots, folder: Any = None) -> dict[str, Any]:
        seen.append((request, folder))
        return {"markdown": "# done\n", "suites": {}}

    monkeypatch.setattr(foreground, "run_stage", run_stage)
    return seen


def test_every_option_reaches_the_request(lectern, tmp_path, asked) -> None:
    lectern("evaluate", *OPTIONS.split(), "--home", tmp_path)
    [(request, folder)] = asked
    assert folder is None
    assert request.model_dump(exclude_defaults=True) == {
        "model": "m",
        "against": "big",
        "suites": ["perplexity", "agreement", "code", "lm-eval:a,b"],
        "weights": 30,
        "revision": "main",
        "text": {"data": "t.jsonl", "window": 9, "max_documents": 3},
        "agreement": {"representation": "top_k", "top_k": 64},
        "code": {
            "problems": "p.jsonl",
            "mode": "chat",
            "samples": 4,
            "k": (1, 2),
            "temperature": 0.5,
            "top_p": 0.75,
            "max_new_tokens": 7,
            "stop": ["\ndef", "end"],
            "max_problems": 5,
            "seconds": 1.5,
            "memory_mib": 99,
            "sandbox": False,
        },
        "lm_eval": {"tasks_path": "tasks", "num_fewshot": 2, "limit": 6},
        "seed": 8,
        "batch_sequences": 3,
        "device": "cpu",
        "dtype": "float32",
    }


def test_secrets_of_a_teacher_server_reach_the_request(lectern, tmp_path, asked) -> None:
    words = "--teacher-token-file t --teacher-tls-ca ca --teacher-tls-cert c --teacher-tls-key k"
    lectern("evaluate", "h:1", "--suite", "perplexity", "--data", "d", *words.split())
    request: EvaluateRequest = asked[0][0]
    assert (request.token_file, request.tls_ca_file) == ("t", "ca")
    assert (request.tls_cert_file, request.tls_key_file) == ("c", "k")


def test_a_folder_elsewhere_is_named_by_its_whole_path(
    lectern, tmp_path, asked, monkeypatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "home" / "models" / "known").mkdir(parents=True)
    (tmp_path / "known").mkdir()
    monkeypatch.chdir(tmp_path)
    home = ["--home", tmp_path / "home"]
    for name in ("here", "./here", "known", "org/model"):
        lectern("evaluate", name, "--suite", "code", *home)
    here = str((tmp_path / "here").resolve())
    assert [request.model for request, _ in asked] == [here, here, "known", "org/model"]
    result = lectern("evaluate", "./gone", "--suite", "code", *home)
    assert result.code == 3
    assert "no folder ./gone" in result.err


def test_what_cannot_be_asked_is_refused_before_anything_starts(lectern, tmp_path, asked) -> None:
    result = lectern("evaluate", "m", "--suite", "agreement", "--home", tmp_path)
    assert result.code == 2
    assert "against" in result.err
    assert not asked


@pytest.mark.slow
def test_a_model_is_measured_in_a_process_of_its_own(lectern, tmp_path) -> None:
    write_tiny_model(tmp_path / "models" / "tiny", vocab_size=300, tokenizer=True, max_positions=32)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "t.txt").write_text("hello world " * 20)
    words = ["tiny", "--suite", "perplexity", "--data", "t.txt", "--home", tmp_path]
    assert "| bits per byte |" in lectern("evaluate", *words).out


@pytest.mark.long
def test_results_of_a_run_are_kept_beside_it(lectern, tmp_path) -> None:
    home = Home(tmp_path)
    folder = home.run("taught")
    assert trained(home, folder) == 0
    words = ["evaluate", "taught", "--suite", "perplexity", "--home", tmp_path, "--json"]
    found = lectern(*words).json
    [task] = folder.tasks_path.glob("evaluate-*")
    kept = json.loads((task / "result.json").read_text())
    assert kept["suites"] == found["suites"]
    assert "loss (nats per token)" in (task / "result.md").read_text()
    # One that was stopped goes on in its folder.
    (task / "result.json").unlink()
    lectern(*words)
    assert list(folder.tasks_path.glob("evaluate-*")) == [task]
