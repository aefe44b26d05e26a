"""What the routes refuse, each by name and with the reason; nothing of it reaches an engine."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from lectern_common.errors import InvalidRequest
from lectern_common.teacher.channel import TeacherChannel
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.http import vllm
from teacher_server.http.body import MAX_BODY_BYTES
from teacher_server.http.fields import Fields
from teacher_server.http.question import Question
from teacher_server.rpc.limits import Limits
from tests.support.servers import http_teacher

V = 97
LIMITS = Limits(
    max_sequences=3,
    max_tokens=20,
    max_sequence_tokens=12,
    max_top_k=8,
    max_reply_bytes=4000,
)
COMPLETION = {"prompt": [1, 2, 3], "max_tokens": 0, "prompt_logprobs": 2}
GENERATE = {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 0, "prompt_logprobs": 2}}
SGLANG = {
    "input_ids": [1, 2, 3],
    "sampling_params": {"max_new_tokens": 0},
    "return_logprob": True,
    "logprob_start_len": 0,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": COMPLETION,
    "/inference/v1/generate": GENERATE,
    "/generate": SGLANG,
}


class Untouched(FixtureEngine):
    def score(self, asks: Any) -> Any:
        raise AssertionError("a refused request reached the engine")


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with (
        http_teacher(Untouched(V), LIMITS) as teacher,
        httpx.Client(base_url=teacher.url, trust_env=False, timeout=60) as client,
    ):
        yield client


def changed(body: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy in which a dotted field has another value; ... removes it."""
    copy = json.loads(json.dumps(body))
    *outer, name = path.split(".")
    inner = copy
    for part in outer:
        inner = inner[part]
    inner.pop(name, None)
    if value is not ...:
        inner[name] = value
    return copy  # type: ignore[no-any-return]


# (route, field as refused, value; ... means absent). The field is what the message must name.
WRITING = [
    ("/v1/completions", "max_tokens", 2),
    ("/v1/completions", "max_tokens", 16),
    ("/v1/completions", "max_tokens", ...),
    ("/v1/completions", "max_tokens", None),
    ("/v1/completions", "max_tokens", -1),
    ("/v1/completions", "max_tokens", True),
    ("/v1/completions", "stream", True),
    ("/v1/completions", "n", 2),
    ("/v1/completions", "best_of", 4),
    ("/v1/completions", "echo", True),
    ("/v1/completions", "logprobs", 1),
    ("/v1/completions", "logprobs", 0),
    ("/v1/completions", "min_tokens", 5),
    ("/v1/completions", "use_beam_search", True),
    ("/v1/completions", "suffix", "end"),
    ("/v1/completions", "prompt", "text"),
    ("/v1/completions", "prompt[0]", ["text"]),
    ("/inference/v1/generate", "sampling_params.max_tokens", 9),
    ("/inference/v1/generate", "sampling_params.max_tokens", ...),
    ("/inference/v1/generate", "sampling_params.n", 3),
    ("/inference/v1/generate", "sampling_params.logprobs", 5),
    ("/inference/v1/generate", "stream", True),
    ("/inference/v1/generate", "output_mode", "text"),
    ("/generate", "sampling_params.max_new_tokens", 128),
    ("/generate", "sampling_params.max_new_tokens", ...),
    ("/generate", "sampling_params.n", 2),
    ("/generate", "stream", True),
    ("/generate", "text", "hello"),
    ("/generate", "return_text_in_logprobs", True),
    ("/generate", "return_hidden_states", True),
    ("/generate", "token_ids_logprob", [1]),
    ("/generate", "image_data", ["x"]),
]
WRONG = [
    ("/v1/completions", "prompt", ...),
    ("/v1/completions", "prompt", []),
    ("/v1/completions", "prompt", 5),
    ("/v1/completions", "prompt[1]", [[1], []]),
    ("/v1/completions", "prompt[1]", [[1], 2]),
    ("/v1/completions", "prompt[1]", [1, [2]]),
    ("/v1/completions", "prompt[1]", [1, -1]),
    ("/v1/completions", "prompt[2]", [1, 2, V]),
    ("/v1/completions", "prompt[0][1]", [[1, 2.5]]),
    ("/v1/completions", "prompt[0][1]", [[1, True]]),
    ("/v1/completions", "prompt[1]", [1, "2"]),
    ("/v1/completions", "prompt[1]", [1, 1 << 70]),
    ("/v1/completions", "prompt", [1] * 13),
    ("/v1/completions", "prompt", [[1]] * 4),
    ("/v1/completions", "prompt", [[1] * 12, [1] * 12]),
    ("/v1/completions", "prompt", [[1] * 12, [1] * 8]),  # the reply would be too large
    ("/v1/completions", "prompt_logprobs", ...),
    ("/v1/completions", "prompt_logprobs", -1),
    ("/v1/completions", "prompt_logprobs", 9),
    ("/v1/completions", "prompt_logprobs", True),
    ("/v1/completions", "prompt_logprobs", "2"),
    ("/v1/completions", "temperature", 0),
    ("/v1/completions", "temperature", 0.0),
    ("/v1/completions", "temperature", -1),
    ("/v1/completions", "temperature", "1"),
    ("/v1/completions", "temperature", True),
    ("/v1/completions", "temperature", 10**400),
    ("/v1/completions", "top_p", 0.9),
    ("/v1/completions", "top_k", 50),
    ("/v1/completions", "min_p", 0.1),
    ("/v1/completions", "frequency_penalty", 0.5),
    ("/v1/completions", "logit_bias", {"5": 1}),
    ("/v1/completions", "temprature", 1),
    ("/v1/completions", "request_id", "x" * 65),
    ("/v1/completions", "request_id", "a\nb"),
    ("/v1/completions", "user", "No Run"),
    ("/inference/v1/generate", "token_ids", ...),
    ("/inference/v1/generate", "token_ids", [[1], [2]]),
    ("/inference/v1/generate", "sampling_params.temperature", 0),
    ("/inference/v1/generate", "sampling_params", 5),
    ("/inference/v1/generate", "sampling_params.prompt_logprobs", ...),
    ("/inference/v1/generate", "sampling_params.prompt_logprobs", 9),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_start", 1),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_token_ids", [1, 2]),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_token_ids", [[1]]),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_token_ids", [[1], [2], [3]]),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_token_ids", [[], []]),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_token_ids", [[1], [2] * 9]),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_token_ids[1][0]", [[1], [V]]),
    ("/inference/v1/generate", "sampling_params.prompt_logprob_token_ids[0][1]", [[1, -2], [3]]),
    ("/generate", "input_ids", ...),
    ("/generate", "input_ids", "text"),
    ("/generate", "sampling_params.temperature", 0),
    ("/generate", "return_logprob", ...),
    ("/generate", "return_logprob", False),
    ("/generate", "logprob_start_len", ...),
    ("/generate", "logprob_start_len", -1),
    ("/generate", "logprob_start_len", 3),
    ("/generate", "top_logprobs_num", 9),
    ("/generate", "top_logprobs_num", [1]),
    ("/generate", "sampling_params.top_p", 0.5),
    ("/generate", "sampling_params.max_tokens", 1),
]


@pytest.mark.parametrize(("route", "field", "value"), [*WRITING, *WRONG])
def test_a_field_is_refused_by_its_name(
    client: httpx.Client, route: str, field: str, value: object
) -> None:
    body = changed(BODIES[route], field.partition("[")[0], value)
    reply = client.post(route, json=body)
    assert reply.status_code == 422, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request", field, 422)
    assert field in error["message"] or error["message"].startswith("the reply could be")


@pytest.mark.parametrize(("route", "field", "value"), WRITING[:4] + WRITING[17:18])
def test_a_request_to_write_is_told_that_nothing_is_written(
    client: httpx.Client, route: str, field: str, value: object
) -> None:
    reply = client.post(route, json=changed(BODIES[route], field, value))
    assert "never writes any" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b'"x"', b"null", b'{"prompt": [NaN]}', b'{"prompt": [Infinity]}',
     b"\xff\xfe", b"[" * 100_000, b'{"prompt": [1], "temperature": 1e999, "max_tokens": 0}'],
)  # fmt: skip
@pytest.mark.parametrize("route", BODIES)
def test_a_body_that_is_no_object_is_refused(client: httpx.Client, route: str, body: bytes) -> None:
    reply = client.post(route, content=body)
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["type"] == "invalid_request"


def test_another_model_is_not_found(client: httpx.Client) -> None:
    for route in ("/v1/completions", "/inference/v1/generate"):
        reply = client.post(route, json={**BODIES[route], "model": "other"})
        assert reply.status_code == 404
        assert f"fixture-{V}" in reply.json()["error"]["message"]


def test_a_body_over_the_cap_is_refused_declared_or_not(client: httpx.Client) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // (1 << 20) + 1):
            yield b" " * (1 << 20)

    declared = client.post("/generate", content=b" " * (MAX_BODY_BYTES + 1))
    assert declared.status_code == 413
    undeclared = client.post("/generate", content=pieces())
    assert undeclared.status_code == 413
    assert str(MAX_BODY_BYTES) in undeclared.json()["error"]["message"]


def test_unknown_paths_and_methods_have_the_same_shape(client: httpx.Client) -> None:
    for reply, status in (
        (client.post("/v1/chat/completions", json={}), 404),
        (client.get("/generate"), 405),
        (client.get("/docs"), 404),
        (client.get("/openapi.json"), 404),
    ):
        assert reply.status_code == status
        assert reply.json()["error"]["code"] == status


def test_refused_requests_are_counted() -> None:
    with http_teacher(Untouched(V), LIMITS) as teacher, TeacherChannel(teacher.address) as channel:
        for _ in range(3):
            httpx.post(f"{teacher.url}/generate", json={}, trust_env=False)
        assert channel.get_stats().refused_requests == 3


NEUTRAL: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        **{"n": 1, "best_of": 1, "stream": False, "echo": False, "logprobs": None, "top_p": 1.0},
        **{"top_k": -1, "min_p": 0.0, "presence_penalty": 0, "frequency_penalty": 0.0},
        **{"repetition_penalty": 1.0, "seed": 7, "stop": None, "skip_special_tokens": False},
        **{"logit_bias": None, "suffix": None, "ignore_eos": True, "add_special_tokens": False},
    },
    "/generate": {"stream": False, "text": None, "image_data": None, "log_metrics": True},
    "/inference/v1/generate": {"stream": False, "priority": 0, "features": None},
}


@pytest.mark.parametrize("route", BODIES)
def test_fields_that_change_nothing_are_accepted(route: str) -> None:
    with http_teacher(FixtureEngine(V), LIMITS) as teacher:
        reply = httpx.post(
            f"{teacher.url}{route}", json={**BODIES[route], **NEUTRAL[route]}, trust_env=False
        )
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("name", ["x" * 100_000, "\x1b[2J" * 5000, "a\nb" * 100])
def test_a_made_up_name_is_told_short_and_inert(client: httpx.Client, name: str) -> None:
    error = client.post("/v1/completions", json={**COMPLETION, name: 1}).json()["error"]
    assert len(error["message"]) < 500 and error["message"].isprintable()
    assert "is not known here" in error["message"] and len(error["param"]) <= 300


@pytest.mark.parametrize("longest", [4096, 40])
def test_rows_that_are_mostly_padding_are_refused_before_they_take_room(longest: int) -> None:
    tokens = 32_768
    rows = [[1] * longest, *([] for _ in range(tokens - 2))]
    sampling = {"max_tokens": 0, "prompt_logprob_token_ids": rows}
    fields = Fields({"token_ids": [1] * tokens, "sampling_params": sampling}, "")
    with pytest.raises(InvalidRequest, match=f"32767 rows and a longest of {longest} ids") as error:
        vllm.generate(fields, FixtureEngine(5000).facts, Limits())
    assert error.value.field == "sampling_params.prompt_logprob_token_ids"


def test_a_reply_over_http_has_a_limit_of_its_own() -> None:
    ids_S = np.ones(30_000, np.uint32)
    question = Question([ids_S], "prompt", 1.0, 60)
    with pytest.raises(InvalidRequest, match="over HTTP; send fewer tokens, or ask for fewer ids"):
        question.require_reply_fits(Limits())
    Question([ids_S], "prompt", 1.0, 50).require_reply_fits(Limits())
