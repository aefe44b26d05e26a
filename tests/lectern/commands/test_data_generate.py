"""`lectern data generate` as a user types it: against a scripted server, and a real one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lectern_common.tokens.shards import read_manifest
from tests.support.models import write_tiny_model
from tests.support.openai_server import echo, openai_server, prompt_of
from tests.support.tokenizer_files import CHATML, write_tokenizer


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "lectern", "data", "generate", *map(str, words)]


def test_the_report_says_how_many_answers_and_why_not_more(lectern, tmp_path) -> None:
    rows = [{"prompt": f"q{at % 4}"} for at in range(6)] + [{"prompt": ""}]
    inputs = written(tmp_path / "p.jsonl", rows)
    with openai_server() as server:
        server.says = lambda body: "" if prompt_of(body) == "q3" else echo(body)
        words = ("--from", server.url, "--model", "m", "--output", tmp_path / "a.jsonl")
        ended = lectern("data", "generate", inputs, *words, "--concurrency", 1)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[0] == f"{tmp_path}/a.jsonl: 3 answers of 21 tokens to 4 prompts"
    assert lines[1] == "2 rows ask what another row asks; asked once"
    assert lines[2:4] == ["1 request refused or empty", "  1: empty"]
    assert lines[4].startswith("4 requests answered in ")
    assert "left out: 1 document\n  p.jsonl#7: empty\n" in ended.err


def test_json_has_the_counts_and_the_dataset(lectern, tmp_path) -> None:
    write_tokenizer(tmp_path / "t", config={"eos_token": "<|endoftext|>", "chat_template": CHATML})
    inputs = written(tmp_path / "p.jsonl", [{"prompt": f"q{at}"} for at in range(4)])
    with openai_server() as server:
        words = ("--from", server.url.removesuffix("/v1"), "--model", "m", "--json")
        more = ("--output", "answers", "--home", tmp_path, "--tokenizer", tmp_path / "t")
        ended = lectern("data", "generate", inputs, *words, *more)
    found = json.loads(ended.out)
    assert found["written"]["answers"] == 4 and found["way"] == "chat"
    assert found["prepared"]["training"]["path"] == str(tmp_path / "data/answers")
    assert read_manifest(tmp_path / "data/answers").content == "chats"


def test_what_is_wrong_is_one_sentence(lectern, tmp_path) -> None:
    with openai_server() as gone:
        pass
    inputs = written(tmp_path / "p.jsonl", [{"prompt": "q"}])
    words = ("--from", gone.url, "--model", "m", "--output", tmp_path / "a.jsonl")
    ended = lectern("data", "generate", inputs, *words)
    assert ended.code == 7
    assert ended.err.startswith(f"error: cannot reach {gone.url}") and ended.err.count("\n") == 1
    assert lectern("data", "generate", tmp_path / "none", *words).code == 3


def test_without_the_library_it_says_what_to_install(lectern, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    inputs = written(tmp_path / "p.jsonl", [{"prompt": "q"}])
    words = ("--from", "http://127.0.0.1:9", "--model", "m", "--output", tmp_path / "a.jsonl")
    ended = lectern("data", "generate", inputs, *words)
    assert ended.code == 2 and "pip install 'lectern[openai]'" in ended.err


@pytest.mark.long
@pytest.mark.parametrize("signals", [[signal.SIGKILL], [signal.SIGKILL, signal.SIGINT] * 2])
def test_a_killed_command_goes_on_and_writes_the_same(tmp_path, signals) -> None:
    inputs = written(tmp_path / "p.jsonl", [{"prompt": f"q{at}"} for at in range(60)])
    with openai_server() as server:
        answered, ended = [0], [threading.Event()]

        def says(body: dict[str, Any]) -> str:
            if len(server.got) > answered[0]:
                ended[-1].wait(60)
            return f"{prompt_of(body)} with {body['seed']}"

        server.says = says
        words = (inputs, "--from", server.url, "--model", "m", "--concurrency", 4, "--samples", 2)
        to = ("--output", tmp_path / "a.jsonl", "--json")
        for sent in signals:
            answered[0] = len(server.got) + 20
            with subprocess.Popen(command(*words, *to), stderr=subprocess.PIPE) as running:
                while len(server.got) < answered[0] + 4:
                    assert running.poll() is None
                    time.sleep(0.01)
                running.send_signal(sent)
                running.communicate(timeout=60)
            ended[-1].set()
            ended.append(threading.Event())
            assert running.returncode == (130 if sent == signal.SIGINT else -sent)
            assert not (tmp_path / "a.jsonl").exists()
        answered[0] = 1000
        done = subprocess.run(command(*words, *to), capture_output=True, check=True)
        assert json.loads(done.stdout)["asked"] == 120 - 20 * len(signals)
        subprocess.run(command(*words, "--output", tmp_path / "b.jsonl"), check=True)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that ends some of its texts, with a tokenizer and a chat template."""
    folder = tmp_path_factory.mktemp("served") / "model"
    config = {
        "eos_token": "<|im_end|>",
        "chat_template": CHATML,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    special = ("<|im_start|>", "<|im_end|>")
    tokenizer = write_tokenizer(folder, special=special, config=config)
    write_tiny_model(folder, vocab_size=tokenizer.get_vocab_size())
    return folder


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve` with this model."""
    log = tmp_path_factory.mktemp("served") / "log"
    serve = Path(sys.executable).with_name("transformers")
    with openai_server() as free:
        port = free.url.rpartition(":")[2].removesuffix("/v1")
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [serve, "serve", model, "--device", "cpu", "--host", "127.0.0.1", "--port", port],
            stdout=file,
            stderr=file,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        ) as running,
    ):
        try:
            while True:
                assert running.poll() is None, log.read_text()
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            running.kill()


@pytest.mark.long
def test_transformers_serve_answers_chats_and_texts(lectern, tmp_path, model, served) -> None:
    talk = [
        {"messages": [{"role": "user", "content": f"question {at}"}, {"role": "assistant"}]}
        for at in range(6)
    ]
    texts = [{"prompt": f"def f{at}(x):"} for at in range(6)]
    sizes = ("--max-tokens", 12, "--validation-fraction", 0, "--concurrency", 3)
    for name, rows, more in (
        ("chats", talk, ()),
        ("rendered", talk, ("--send", "text")),
        ("texts", texts, ("--send", "text")),
    ):
        inputs = written(tmp_path / f"{name}-prompts.jsonl", rows)
        words = ("--from", served, "--model", model, "--home", tmp_path, "--output", name)
        ended = lectern("data", "generate", inputs, *words, *sizes, *more)
        assert ended.code == 0, ended.err
        found = rows_of(tmp_path / "data" / f"{name}.jsonl")
        assert len(found) == 6
        manifest = read_manifest(tmp_path / "data" / name)
        assert manifest.content == ("text" if name == "texts" else "chats")
        assert manifest.document_count == 6
    greedy = [rows_of(tmp_path / "data" / f"{name}.jsonl") for name in ("chats", "rendered")]
    for one, other in zip(*greedy, strict=True):
        said = [row["messages"][-1]["content"].strip() for row in (one, other)]
        assert said[0].endswith(said[1]) or said[1].endswith(said[0])


@pytest.mark.long
def test_transformers_serve_names_another_model(lectern, tmp_path, served) -> None:
    inputs = written(tmp_path / "p.jsonl", [{"prompt": "q"}])
    words = ("--from", served, "--model", "other", "--output", tmp_path / "a.jsonl")
    ended = lectern("data", "generate", inputs, *words)
    assert ended.code == 2 and "Server is pinned to" in ended.err
