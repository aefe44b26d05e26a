"""From prompts to answers and to a dataset, by a server that answers as told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lectern_common.errors import (
    Conflict,
    CorruptData,
    InvalidRequest,
    NotFound,
    TeacherUnavailable,
    Unauthenticated,
)
from lectern_common.tokens.shards import read_manifest
from lectern_data.asking import pool
from lectern_data.asking.generate import Generated, generate
from lectern_data.asking.settings import GenerateSettings
from tests.support.chat_files import CHATML, byte_tokenizer
from tests.support.openai_server import (
    CHAT,
    TEXT,
    OpenAiServer,
    echo,
    openai_server,
    prompt_of,
    write,
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAiServer]:
    monkeypatch.setattr(pool, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with openai_server() as running:
        yield running


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def prompts(folder: Path, count: int = 3) -> Path:
    return written(folder / "prompts.jsonl", [{"prompt": f"q{at}"} for at in range(count)])


def chats(folder: Path, count: int = 3) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"q{at}"}, {"role": "assistant", "content": "x"}]}
        for at in range(count)
    ]
    return written(folder / "chats.jsonl", rows)


def tokenizer_in(folder: Path, template: str | None = CHATML) -> Path:
    folder.mkdir()
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": template}
    said = {name: value for name, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def run(
    server: OpenAiServer, inputs: Path, output: Path, events: list[str] | None = None, **more: Any
) -> Generated:
    told: list[str] = [] if events is None else events
    settings: dict[str, Any] = {"server": server.url, "model": "m", **more}
    return generate(
        GenerateSettings(inputs=[inputs], output=output, **settings), on_event=told.append
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_stand_in_the_order_of_the_prompts_whoever_comes_first(server, tmp_path) -> None:
    answers = tmp_path / "a.jsonl"
    done = run(server, prompts(tmp_path, 9), answers, concurrency=4)
    assert rows_of(answers) == [
        {
            "messages": [
                {"role": "user", "content": f"q{at}"},
                {"role": "assistant", "content": f"answer to q{at}"},
            ]
        }
        for at in range(9)
    ]
    assert (done.written.answers, done.prompts, done.asked, done.way) == (9, 9, 9, "chat")
    assert done.written.tokens == 63 and done.prepared is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_request_says_what_is_set_and_nothing_else(server, tmp_path) -> None:
    run(server, prompts(tmp_path, 1), tmp_path / "a.jsonl")
    [(path, body, headers)] = server.got
    assert path == CHAT and headers["authorization"] == "Bearer none"
    assert body.pop("seed") in range(2**31)
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "q0"}],
        "max_tokens": 1024,
    }
    more: dict[str, Any] = {"max_tokens": 7, "temperature": 0.0, "top_p": 0.5, "send": "text"}
    run(server, prompts(tmp_path, 1), tmp_path / "b.jsonl", **more)
    (path, body, _) = server.got[1]
    seed = body.pop("seed")
    assert path == TEXT and isinstance(seed, int)
    assert body == {
        "model": "m",
        "prompt": "q0",
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 0.5,
    }


def test_the_key_of_the_environment_is_sent(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    run(server, prompts(tmp_path, 1), tmp_path / "a.jsonl")
    assert server.got[0][2]["authorization"] == "Bearer secret"


def test_a_seed_is_of_the_prompt_and_the_sample_not_of_their_place(server, tmp_path) -> None:
    def seeds(rows: list[Any], name: str, **more: Any) -> dict[str, list[int]]:
        server.got.clear()
        run(server, written(tmp_path / "p.jsonl", rows), tmp_path / name, **more)
        found: dict[str, list[int]] = {}
        for body in server.bodies:
            found.setdefault(prompt_of(body), []).append(body["seed"])
        return {prompt: sorted(each) for prompt, each in found.items()}

    one, other = {"prompt": "one"}, {"prompt": "other"}
    first = seeds([one, other], "1.jsonl", samples=3)
    assert len({seed for each in first.values() for seed in each}) == 6
    assert seeds([other, {"prompt": "third"}, one], "2.jsonl", samples=3).items() >= first.items()
    assert not set(seeds([one], "3.jsonl", samples=3, seed=1)["one"]) & set(first["one"])
    assert seeds([one], "4.jsonl")["one"][0] in first["one"]


def test_equal_prompts_are_asked_once_and_equal_answers_kept_once(server, tmp_path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a", "id": 7}]
    server.says = lambda body: "same" if prompt_of(body) == "a" else f"s{body['seed']}"
    done = run(server, written(tmp_path / "p.jsonl", rows), tmp_path / "a.jsonl", samples=3)
    assert (done.prompts, done.duplicates, len(server.got)) == (2, 1, 6)
    assert (done.written.answers, done.written.equal) == (4, 2)


def test_a_chat_is_asked_up_to_its_last_answer_and_earlier_ones_are_context(
    server, tmp_path
) -> None:
    said = [("system", "s"), ("user", "1"), ("assistant", "a1"), ("user", "2"), ("assistant", "a2")]
    messages = [{"role": role, "content": content} for role, content in said]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    row = {"messages": messages, "tools": tools, "chat_template_kwargs": {"think": False}}
    run(server, written(tmp_path / "p.jsonl", [row]), tmp_path / "a.jsonl")
    [body] = server.bodies
    assert body["messages"] == messages[:4] and body["tools"] == tools
    assert body["chat_template_kwargs"] == {"think": False}
    [found] = rows_of(tmp_path / "a.jsonl")
    answer = {"role": "assistant", "content": "answer to 2"}
    earlier = {**messages[2], "weight": 0}
    assert found == {**row, "messages": [*messages[:2], earlier, messages[3], answer]}


def test_what_a_prompt_stands_under_is_found_or_set(server, tmp_path) -> None:
    talk = [{"role": "user", "content": "hello"}]
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"prompt": "hello"}, {}),
        ({"prompt": talk}, {}),
        ({"messages": talk}, {}),
        ({"messages": json.dumps(talk)}, {}),
        ({"question": "hello", "prompt": "no"}, {"prompt_field": "question"}),
        ({"talk": talk, "messages": []}, {"messages_field": "talk"}),
        ({"prompt": "no", "messages": talk}, {"messages_field": "messages"}),
        ({"prompt": "hello", "messages": talk[:0]}, {"prompt_field": "prompt"}),
    ]
    for number, (row, options) in enumerate(cases):
        server.got.clear()
        run(server, written(tmp_path / "p.jsonl", [row]), tmp_path / f"{number}.jsonl", **options)
        assert [body["messages"] for body in server.bodies] == [talk], row


def test_rows_with_both_a_chat_and_a_prompt_are_refused_until_one_is_named(
    server, tmp_path
) -> None:
    row = {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}
    with pytest.raises(InvalidRequest, match="--messages-field messages or --prompt-field prompt"):
        run(server, written(tmp_path / "p.jsonl", [row]), tmp_path / "a.jsonl")
    assert server.got == []


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([{"prompt": 7}], "has no messages under 'prompt'"),
        ([{"text": "a"}], "has no prompt under 'prompt', but 'text'; set --prompt-field"),
        (["a"], "is not an object with a prompt"),
        ([{"prompt": "\ud800"}], "lone surrogate"),
        ([{"prompt": [{"role": "assistant", "content": "a"}]}], "before anything is asked"),
        ([{"prompt": ""}, {"prompt": None}], "no text in the inputs"),
    ],
)
def test_rows_that_are_no_prompt_are_named(server, tmp_path, rows, why) -> None:
    with pytest.raises(InvalidRequest, match=why):
        run(server, written(tmp_path / "p.jsonl", rows), tmp_path / "a.jsonl")
    assert server.got == []


def test_a_file_without_rows_is_no_file_of_prompts(server, tmp_path) -> None:
    (tmp_path / "p.txt").write_text("hello")
    with pytest.raises(InvalidRequest, match=r"not a file of prompts; those end in \.jsonl"):
        run(server, tmp_path / "p.txt", tmp_path / "a.jsonl")


def test_prompts_are_read_from_columns_too(server, tmp_path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"prompt": ["a", "b"], "id": [1, 2]}), tmp_path / "p.parquet")
    assert run(server, tmp_path / "p.parquet", tmp_path / "a.jsonl").written.answers == 2
    talk = [[{"role": "user", "content": "c", "name": None}]]
    parquet.write_table(arrow.table({"messages": talk}), tmp_path / "c.parquet")
    run(server, tmp_path / "c.parquet", tmp_path / "b.jsonl")
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "c"}]


def test_a_server_without_chats_gets_texts_and_it_is_said(server, tmp_path) -> None:
    server.offers, events = (TEXT,), list[str]()
    done = run(server, prompts(tmp_path, 2), tmp_path / "a.jsonl", events)
    assert done.way == "text"
    assert rows_of(tmp_path / "a.jsonl") == [{"text": f"q{at}answer to q{at}"} for at in range(2)]
    assert [path for path, _, _ in server.got] == [CHAT, TEXT, TEXT]
    assert events[0].startswith("prompts are sent as text (--send text): ")


def test_a_first_prompt_on_which_the_template_fails_is_one_refusal(server, tmp_path) -> None:
    template = "{{ raise_exception('no tools') if tools else 'x' }}" + CHATML
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"q{at}"}]} for at in range(3)
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    rows[0]["tools"] = [tool]
    server.behaviours = [400]  # the first prompt as a chat; as text it cannot be written
    inputs, tokenizer = written(tmp_path / "p.jsonl", rows), tokenizer_in(tmp_path / "t", template)
    done = run(server, inputs, tmp_path / "a.jsonl", tokenizer=tokenizer)
    assert done.way == "chat" and done.written.answers == 3
    server.got.clear()
    done = run(server, inputs, tmp_path / "b.jsonl", tokenizer=tokenizer, send="text")
    assert done.written.answers == 2 and len(server.got) == 2
    assert "no tools" in " ".join(done.written.refused)


@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_server_that_takes_no_chats_gets_texts(server, tmp_path, status) -> None:
    server.behaviours = [status] * (2 if status == 500 else 1)
    done = run(server, prompts(tmp_path, 2), tmp_path / "a.jsonl")
    assert done.way == "text" and done.written.answers == 2


def test_chats_are_rendered_by_the_template_of_the_tokenizer(server, tmp_path) -> None:
    template = "{{ bos_token }}" + CHATML
    tokenizer = tokenizer_in(tmp_path / "t", template)
    done = run(server, chats(tmp_path, 1), tmp_path / "a.jsonl", send="text", tokenizer=tokenizer)
    [body] = server.bodies
    assert body["prompt"] == "<s><|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\n"
    [row] = rows_of(tmp_path / "a.jsonl")
    assert done.way == "text" and row["messages"][-1]["content"] == echo(body)


def test_a_beginning_that_the_server_adds_is_not_sent_twice(server, tmp_path) -> None:
    tokenizer = tokenizer_in(tmp_path / "t", "{{ bos_token }}" + CHATML)
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    run(server, chats(tmp_path, 1), tmp_path / "a.jsonl", send="text", tokenizer=tokenizer)
    assert server.bodies[0]["prompt"].startswith("<|im_start|>user")


def test_chats_without_a_template_are_not_sent_as_text(server, tmp_path) -> None:
    with pytest.raises(InvalidRequest, match="set --tokenizer to a folder with one"):
        run(server, chats(tmp_path), tmp_path / "a.jsonl", send="text")
    server.offers = (TEXT,)
    with pytest.raises(InvalidRequest, match=r"/chat/completions answers 404.*set --from"):
        run(server, chats(tmp_path), tmp_path / "a.jsonl")


def test_texts_and_chats_together_are_only_sent_as_chats(server, tmp_path) -> None:
    rows = [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}]
    tokenizer = tokenizer_in(tmp_path / "t")
    mixed = written(tmp_path / "p.jsonl", rows)
    with pytest.raises(InvalidRequest, match="set --send chat"):
        run(server, mixed, tmp_path / "a.jsonl", send="text", tokenizer=tokenizer)
    assert run(server, mixed, tmp_path / "b.jsonl").written.answers == 2


def test_refusals_are_counted_by_reason_and_not_asked_again(server, tmp_path) -> None:
    said = {
        "q1": {"finish_reason": "content_filter", "message": {"content": ""}},
        "q2": {"message": {"content": None, "refusal": "I cannot"}},
        "q3": "",
    }
    server.says = lambda body: said.get(prompt_of(body), echo(body))
    server.behaviours = [lambda handler: write(handler, 200, _whole("first"))]
    done = run(server, prompts(tmp_path, 6), tmp_path / "a.jsonl", concurrency=1)
    assert done.written.answers == 3 and done.written.missing == 0
    assert sorted(done.written.refused.values()) == [1, 1, 1]
    assert len(server.got) == 6


def _whole(content: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}


def test_too_long_prompts_are_refused_one_by_one(server, tmp_path) -> None:
    def too_long(handler: Any) -> None:
        write(handler, 400, {"error": {"message": "This model's maximum context length is 9"}})

    server.behaviours = [lambda handler: write(handler, 200, _whole("hi")), too_long]
    done = run(server, prompts(tmp_path, 3), tmp_path / "a.jsonl", concurrency=1)
    why = "the server answers 400: This model's maximum context length is 9"
    assert dict(done.written.refused) == {why: 1} and done.written.answers == 2


def test_a_server_that_refuses_everything_is_left_after_twenty(server, tmp_path) -> None:
    server.behaviours = [400] * 999
    with pytest.raises(InvalidRequest, match="no answer to each of the first 20 requests"):
        run(server, prompts(tmp_path, 60), tmp_path / "a.jsonl", send="chat", concurrency=4)
    assert len(server.got) <= 24
    server.behaviours = []
    assert run(server, prompts(tmp_path, 60), tmp_path / "a.jsonl").written.answers == 60


def test_a_request_that_keeps_failing_leaves_the_others_alone(server, tmp_path) -> None:
    def says(body: dict[str, Any]) -> Any:
        if prompt_of(body) == "q3":
            return {"finish_reason": "abort", "message": {"content": ""}}
        return echo(body)

    server.says, output = says, tmp_path / "a.jsonl"
    with pytest.raises(TeacherUnavailable, match="1 of 4 requests failed 5 times each") as failed:
        run(server, prompts(tmp_path, 4), output)
    assert failed.value.exit_code == 7 and not output.exists()
    done = run(server, prompts(tmp_path, 4), output, max_fault_fraction=0.3)
    assert done.written.missing == 1 and list(done.failed.values()) == [1]
    assert len(rows_of(output)) == 3


def _aborts(*keys: str) -> Any:
    """Returns what a server says that breaks off at these prompts."""
    broken = {"finish_reason": "abort", "message": {"content": ""}}
    return lambda body: broken if prompt_of(body) in keys else echo(body)


@pytest.mark.parametrize("name", ["a.jsonl", "data"])
def test_answers_that_are_missing_are_asked_again_by_the_same_call(server, tmp_path, name) -> None:
    more: dict[str, Any] = {"max_fault_fraction": 0.3, "validation_fraction": 0}
    more["tokenizer"], output = tokenizer_in(tmp_path / "t"), tmp_path / name
    for broken, asked in ((["q1", "q3"], 6), (["q3"], 1), (["q3"], 0), ([], 1)):
        server.says, events = _aborts(*broken), list[str]()
        server.got.clear()
        done = run(server, chats(tmp_path, 8), output, events, **more)
        assert (done.asked, done.written.missing) == (asked, len(broken))
        assert len(rows_of(done.written.path)) == 8 - len(broken)
        if name == "data":
            assert read_manifest(output).document_count == 8 - len(broken)
        is_said = any("the same command asks only for those" in event for event in events)
        assert is_said == bool(broken) == any(tmp_path.glob(".*.work"))
    with pytest.raises(Conflict, match="exists"):
        run(server, chats(tmp_path, 8), output, **more)


def test_a_dataset_of_another_in_its_place_is_not_replaced(server, tmp_path) -> None:
    more: dict[str, Any] = {"max_fault_fraction": 0.3, "validation_fraction": 0}
    more["tokenizer"], output = tokenizer_in(tmp_path / "t"), tmp_path / "data"
    server.says = _aborts("q1")
    run(server, chats(tmp_path, 4), output, **more)
    text = (output / "manifest.json").read_text()
    (output / "manifest.json").write_text(text + "\n")
    with pytest.raises(Conflict, match=r"dataset .* exists"):
        run(server, chats(tmp_path, 4), output, **more)


def test_a_kill_before_the_rename_leaves_a_file_that_is_still_own(
    server, tmp_path, monkeypatch
) -> None:
    output, server.says = tmp_path / "a.jsonl", _aborts("q1")
    run(server, prompts(tmp_path, 4), output, max_fault_fraction=0.3)
    server.says = echo
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target == output:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run(server, prompts(tmp_path, 4), output)
    monkeypatch.setattr(Path, "replace", replace)
    assert len(rows_of(output)) == 3
    run(server, prompts(tmp_path, 4), output)
    assert len(rows_of(output)) == 4 and not any(tmp_path.glob(".*.work"))


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_errors_that_pass_are_tried_again(server, tmp_path, status) -> None:
    server.behaviours = [status]
    done = run(server, prompts(tmp_path, 3), tmp_path / "a.jsonl", send="chat")
    assert done.written.answers == 3 and done.retries == 1


def _broken(handler: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
    handler.close_connection = True


@pytest.mark.parametrize(
    "reply",
    [
        lambda handler: write(handler, 200, b"<html>", content_type="text/html"),
        lambda handler: write(handler, 200, b"{"),
        lambda handler: write(handler, 200, b""),
        lambda handler: write(handler, 200, b"\xff\xfe"),
        lambda handler: write(handler, 200, {"choices": []}),
        lambda handler: write(handler, 200, []),
        lambda handler: setattr(handler, "close_connection", True),
        _broken,
    ],
)
def test_a_reply_that_is_none_is_asked_for_again(server, tmp_path, reply) -> None:
    server.behaviours = [reply]
    done = run(server, prompts(tmp_path, 2), tmp_path / "a.jsonl", send="chat", concurrency=1)
    assert done.written.answers == 2 and done.retries == 1


def test_a_server_asks_to_wait(server, tmp_path, monkeypatch) -> None:
    server.behaviours = [lambda handler: write(handler, 429, {}, retry_after="0.2")] * 2
    done = run(server, prompts(tmp_path, 2), tmp_path / "a.jsonl", send="chat", concurrency=1)
    assert done.retries == 2 and done.seconds > 0.4


@pytest.mark.parametrize(
    ("status", "body", "error", "why"),
    [
        (401, {}, Unauthenticated, "the key is missing; set OPENAI_API_KEY"),
        (403, {}, Unauthenticated, "the key is missing"),
        (404, {"error": {"message": "The model `m` does not exist."}}, NotFound, "has no model m"),
        (404, {"detail": "Not Found"}, InvalidRequest, "set --from to the address before"),
        (307, {}, InvalidRequest, "redirects to another address; set --from to it"),
    ],
)
def test_what_concerns_every_request_ends_the_command(
    server, tmp_path, status, body, error, why
) -> None:
    server.behaviours = [lambda handler: write(handler, status, body)] * 9
    with pytest.raises(error, match=why):
        run(server, prompts(tmp_path, 9), tmp_path / "a.jsonl")
    assert len(server.got) <= 2 and not (tmp_path / "a.jsonl").exists()


def test_the_words_of_a_server_about_a_key_are_not_repeated(server, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    said = {"error": {"message": "Incorrect API key provided: sk-secret"}}
    server.behaviours = [lambda handler: write(handler, 401, said)]
    with pytest.raises(Unauthenticated, match="is not accepted") as refused:
        run(server, prompts(tmp_path, 1), tmp_path / "a.jsonl")
    assert "sk-secret" not in str(refused.value)


def test_nothing_listens_there(tmp_path) -> None:
    with openai_server() as gone:
        pass
    with pytest.raises(TeacherUnavailable, match="is the server running"):
        run(gone, prompts(tmp_path, 1), tmp_path / "a.jsonl")


def test_a_proxy_of_the_environment_is_not_for_this_machine(server, tmp_path, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert run(server, prompts(tmp_path, 1), tmp_path / "a.jsonl").written.answers == 1


def test_no_more_requests_are_under_way_than_wanted(server, tmp_path) -> None:
    run(server, prompts(tmp_path, 40), tmp_path / "a.jsonl", concurrency=3)
    assert server.most_at_once <= 3


def test_a_server_that_answers_for_another_model_is_told_once(server, tmp_path) -> None:
    server.model, events = "other", list[str]()
    run(server, prompts(tmp_path, 5), tmp_path / "a.jsonl", events)
    assert events == ["the server says that the answers are of other"]
    server.model = "m@main"
    run(server, prompts(tmp_path, 5), tmp_path / "b.jsonl", events)
    assert len(events) == 1


@pytest.mark.parametrize(("keep", "left"), [(True, 3), (False, 2)])
def test_cut_answers_are_counted_and_kept_or_dropped(server, tmp_path, keep, left) -> None:
    server.says = lambda body: (
        {"finish_reason": "length", "message": {"content": "and so on"}}
        if prompt_of(body) == "q1"
        else echo(body)
    )
    done = run(server, prompts(tmp_path, 3), tmp_path / "a.jsonl", keep_cut=keep)
    rows = rows_of(tmp_path / "a.jsonl")
    assert done.written.cut == 1 and len(rows) == done.written.answers == left
    marks = [row["messages"][-1].get("finish_reason") for row in rows]
    assert marks == ([None, "length", None] if keep else [None, None])


def test_if_all_are_cut_and_dropped_it_says_what_to_do(server, tmp_path) -> None:
    server.says = lambda body: {"finish_reason": "length", "message": {"content": "and"}}
    with pytest.raises(InvalidRequest, match="2 were cut; raise --max-tokens, or set --cut keep"):
        run(server, prompts(tmp_path, 2), tmp_path / "a.jsonl", keep_cut=False)
    done = run(server, prompts(tmp_path, 2), tmp_path / "a.jsonl", keep_cut=True)
    assert done.written.answers == 2 and done.asked == 0


def interrupted(server: OpenAiServer, tmp_path: Path, count: int, **more: Any) -> Path:
    """Stops after some answers; returns the output."""
    server.behaviours = [lambda handler: write(handler, 200, _whole("kept"))] * 4 + [401] * 99
    with pytest.raises(Unauthenticated):
        run(server, prompts(tmp_path, count), tmp_path / "a.jsonl", **more)
    server.behaviours = []
    server.got.clear()
    return tmp_path / "a.jsonl"


def test_a_second_call_asks_only_for_what_is_missing(server, tmp_path) -> None:
    output, events = interrupted(server, tmp_path, 9, concurrency=1), list[str]()
    assert not output.exists()
    done = run(server, prompts(tmp_path, 9), output, events, concurrency=1)
    assert [prompt_of(body) for body in server.bodies] == [f"q{at}" for at in range(4, 9)]
    said = [row["messages"][-1]["content"] for row in rows_of(output)]
    assert said == ["kept"] * 4 + [f"answer to q{at}" for at in range(4, 9)]
    assert done.asked == 5 and events == []


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_a_kill_left_incomplete_is_asked_again(server, tmp_path, cut) -> None:
    output = interrupted(server, tmp_path, 9, concurrency=1)
    [journal] = tmp_path.glob(".a.jsonl.work/answers.jsonl")
    journal.write_bytes(journal.read_bytes()[:-cut])
    done = run(server, prompts(tmp_path, 9), output, concurrency=1)
    assert done.asked == 6 and len(rows_of(output)) == 9
    assert prompt_of(server.bodies[0]) == "q3"


@pytest.mark.parametrize("line", ["", "{}", "null", '{"prompt": 7, "sample": 0}', "\x00"])
def test_kept_answers_that_are_broken_are_refused(server, tmp_path, line) -> None:
    output = interrupted(server, tmp_path, 9, concurrency=1)
    [journal] = tmp_path.glob(".a.jsonl.work/answers.jsonl")
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    with pytest.raises(CorruptData, match=r"line 4 of .*answers\.jsonl is broken; remove it"):
        run(server, prompts(tmp_path, 9), output)


def test_answers_to_prompts_that_are_no_longer_asked_are_left(server, tmp_path) -> None:
    output = interrupted(server, tmp_path, 9, concurrency=1)
    done = run(server, prompts(tmp_path, 2), output)
    assert done.asked == 0 and done.written.answers == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("model", "n"), ("max_tokens", 9), ("temperature", 0.5), ("top_p", 0.5), ("seed", 3)],
)
def test_answers_of_other_settings_are_not_mixed(server, tmp_path, option, value) -> None:
    output = interrupted(server, tmp_path, 9, concurrency=1)
    name = option.replace("_", "-")
    with pytest.raises(Conflict, match=f"--{name} was .*, now {value}"):
        run(server, prompts(tmp_path, 9), output, **{option: value})
    done = run(server, prompts(tmp_path, 9), output, **{option: value, "force": True})
    assert done.asked == 9


def test_a_way_is_kept_to(server, tmp_path) -> None:
    output = interrupted(server, tmp_path, 9, concurrency=1)
    with pytest.raises(Conflict, match="sent with --send chat"):
        run(server, prompts(tmp_path, 9), output, send="text")
    assert run(server, prompts(tmp_path, 9), output, send="chat").asked == 5


def test_more_samples_are_added_to_those_that_are_there(server, tmp_path) -> None:
    output = interrupted(server, tmp_path, 4, concurrency=1, samples=2)
    done = run(server, prompts(tmp_path, 4), output, samples=3)
    assert done.asked == 8


def test_a_file_that_is_there_is_not_replaced_unless_forced(server, tmp_path) -> None:
    output = tmp_path / "a.jsonl"
    output.write_text("mine")
    with pytest.raises(Conflict, match="exists; choose another --output, or --force"):
        run(server, prompts(tmp_path), output)
    assert output.read_text() == "mine" and server.got == []
    run(server, prompts(tmp_path), output, force=True)
    assert len(rows_of(output)) == 3


def test_one_output_is_made_by_one_process(server, tmp_path) -> None:
    from lectern_data.write.work_folder import work_folder

    with work_folder(tmp_path / "a.jsonl"), pytest.raises(Conflict, match="another process"):
        run(server, prompts(tmp_path), tmp_path / "a.jsonl")


def test_a_dataset_is_prepared_of_the_answers_at_once(server, tmp_path) -> None:
    tokenizer = tokenizer_in(tmp_path / "t")
    more: dict[str, Any] = {"tokenizer": tokenizer, "validation_fraction": 0.5}
    done = run(server, chats(tmp_path, 8), tmp_path / "data", **more)
    manifest = read_manifest(tmp_path / "data")
    assert manifest.content == "chats" and done.prepared is not None
    held_out = read_manifest(tmp_path / "data-validation")
    assert (manifest.document_count or 0) + (held_out.document_count or 0) == 8
    assert len(rows_of(tmp_path / "data.jsonl")) == 8
    ids = np.frombuffer((tmp_path / "data/shard-00000.bin").read_bytes(), "<u4")
    mask = np.frombuffer((tmp_path / "data/mask-00000.bin").read_bytes(), "u1")
    learnt = byte_tokenizer().decode(ids[mask == 1].tolist(), skip_special_tokens=False)
    assert all(part.startswith("answer to q") for part in learnt.split("<|im_end|>")[:-1])


def test_texts_give_a_dataset_of_texts(server, tmp_path) -> None:
    tokenizer = tokenizer_in(tmp_path / "t", None)
    more: dict[str, Any] = {"tokenizer": tokenizer, "validation_fraction": 0}
    done = run(server, prompts(tmp_path, 3), tmp_path / "data", **more)
    assert done.way == "text" and read_manifest(tmp_path / "data").content == "text"


def test_the_tokenizer_of_a_model_folder_is_found(server, tmp_path) -> None:
    model = str(tokenizer_in(tmp_path / "t"))
    run(server, chats(tmp_path), tmp_path / "data", model=model, validation_fraction=0)
    assert read_manifest(tmp_path / "data").document_count == 3


def test_a_dataset_that_cannot_be_prepared_is_refused_before_anything_is_asked(
    server, tmp_path
) -> None:
    with pytest.raises(InvalidRequest, match="a dataset needs the tokenizer: set --tokenizer"):
        run(server, chats(tmp_path), tmp_path / "data")
    bare = tokenizer_in(tmp_path / "t", None)
    ways: list[dict[str, Any]] = [{}, {"send": "chat"}]
    for more in ways:
        with pytest.raises(InvalidRequest, match="has no chat template"):
            run(server, chats(tmp_path), tmp_path / "data", tokenizer=bare, **more)
    (tmp_path / "data").mkdir()
    with pytest.raises(Conflict, match="is not a dataset"):
        run(server, chats(tmp_path), tmp_path / "data", tokenizer=tokenizer_in(tmp_path / "u"))
    assert server.got == []


def test_a_tokenizer_without_an_end_is_refused_before_the_many_requests(server, tmp_path) -> None:
    tokenizer = tokenizer_in(tmp_path / "t")
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    with pytest.raises(InvalidRequest, match=r"end-of-text token.*or end --output in \.jsonl"):
        run(server, chats(tmp_path, 9), tmp_path / "data", tokenizer=tokenizer)
    assert len(server.got) <= 1


def test_answers_are_kept_if_their_preparation_fails(server, tmp_path) -> None:
    template = "{{ raise_exception('no') if messages|length > 1 else 'x' }}"
    tokenizer = tokenizer_in(tmp_path / "t", template)
    with pytest.raises(InvalidRequest):
        run(server, chats(tmp_path), tmp_path / "data", tokenizer=tokenizer)
    assert len(rows_of(tmp_path / "data.jsonl")) == 3
    (tokenizer / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": CHATML, "eos_token": "</s>"})
    )
    done = run(server, chats(tmp_path), tmp_path / "data", tokenizer=tokenizer)
    assert done.asked == 0 and done.prepared is not None and len(server.got) == 3


def test_an_edited_file_of_answers_is_not_overwritten(server, tmp_path) -> None:
    template = "{{ raise_exception('no') if messages|length > 1 else 'x' }}"
    tokenizer = tokenizer_in(tmp_path / "t", template)
    with pytest.raises(InvalidRequest):
        run(server, chats(tmp_path), tmp_path / "data", tokenizer=tokenizer)
    (tmp_path / "data.jsonl").write_text("edited")
    with pytest.raises(Conflict, match="exists"):
        run(server, chats(tmp_path), tmp_path / "data", tokenizer=tokenizer)
    assert (tmp_path / "data.jsonl").read_text() == "edited"


def test_progress_counts_what_is_kept_as_done(server, tmp_path) -> None:
    output, seen = interrupted(server, tmp_path, 9, concurrency=1), list[tuple[str, int, int]]()
    settings = GenerateSettings([prompts(tmp_path, 9)], server.url, "m", output)
    generate(settings, on_progress=lambda *progress: seen.append(progress))
    asking = [(done, total) for stage, done, total in seen if stage == "asking"]
    assert asking == [(done, 9) for done in range(4, 10)]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"server": "127.0.0.1:8000"}, "is not the URL of a server"),
        ({"server": "ftp://x"}, "is not the URL of a server"),
        ({"server": "http://"}, "is not the URL of a server"),
        ({"server": "http://x:y"}, "is not the URL of a server"),
        ({"server": "http://[::1"}, "is not the URL of a server"),
        ({"server": "http://a:b@x"}, "must not hold a password"),
        ({"server": "http://x/v1?a=b"}, "must end with its path"),
        ({"model": ""}, "--model is empty"),
        ({"inputs": []}, "name files or folders with prompts"),
        ({"output": Path("a\nb.jsonl")}, "cannot be shown"),
        ({"prompt_field": "a", "messages_field": "b"}, "not both"),
        ({"samples": 0}, "--samples must be at least 1"),
        ({"max_tokens": 0}, "--max-tokens must be at least 1"),
        ({"concurrency": 0}, "--concurrency must be at least 1"),
        ({"timeout_seconds": 0.0}, "--timeout-seconds must be above 0"),
        ({"timeout_seconds": float("nan")}, "--timeout-seconds must be above 0"),
        ({"outage_seconds": float("inf")}, "--outage-seconds must be above 0"),
        ({"temperature": -1.0}, "--temperature must be at least 0"),
        ({"temperature": float("nan")}, "--temperature must be at least 0"),
        ({"top_p": 0.0}, "--top-p must be above 0"),
        ({"top_p": 1.1}, "--top-p must be above 0"),
        ({"max_fault_fraction": 1.1}, "--max-fault-fraction must be from 0 to 1"),
        ({"validation_fraction": 1.0}, "--validation-fraction must be at least 0 and below 1"),
        ({"output": Path("data")}, "a dataset needs the tokenizer"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(change, why) -> None:
    settings: dict[str, Any] = {
        "inputs": [Path("p")],
        "server": "http://x",
        "model": "m",
        "output": Path("a.jsonl"),
    }
    with pytest.raises(InvalidRequest, match=why):
        GenerateSettings(**{**settings, **change})


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://x", "http://x/v1"),
        ("http://x:8000/", "http://x:8000/v1"),
        ("http://x/v1", "http://x/v1"),
        ("http://x/v1/", "http://x/v1"),
        ("https://x/api/openai", "https://x/api/openai"),
    ],
)
def test_a_url_without_a_path_means_v1(url: str, base: str) -> None:
    settings = GenerateSettings([Path("p")], url, "m", Path("a.jsonl"))
    assert settings.base_url == base
