"""The numbers of every route, position by position, against float64 over a local forward."""

import base64
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lectern_models.logits.blocks import AskedLogits
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.fixture import FixtureEngine
from teacher_server.engine.representations import rows_of_logits
from teacher_server.engine.seam import ComputedRows, SequenceAsk
from teacher_server.engine.transformers import EngineSettings
from tests.support.models import write_tiny_model
from tests.support.servers import http_teacher

V = 97
IDS = [5, 17, 3, 88, 3, 41, 96, 0, 12]
OTHER = [7, 7, 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), vocab_size=V, spread=0.5)


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    with (
        http_teacher(engine) as teacher,
        httpx.Client(base_url=teacher.url, trust_env=False, timeout=60) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def logits(folder: Path) -> dict[tuple[int, ...], np.ndarray]:
    """float64 logits [S, V] of each sequence, from plain transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return {
            tuple(ids): model(torch.tensor([ids])).logits[0].double().numpy()
            for ids in (IDS, OTHER)
        }


def log_probs(logits_SV: np.ndarray, temperature: float) -> np.ndarray:
    scaled = logits_SV / temperature
    largest = scaled.max(-1, keepdims=True)
    sums: np.ndarray = np.exp(scaled - largest).sum(-1, keepdims=True)
    return np.asarray(scaled - largest - np.log(sums))


def post(client: httpx.Client, path: str, body: object) -> Any:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def npy(reply: Any) -> np.ndarray:
    data = base64.b64decode(reply["prompt_token_id_logprobs"])
    found: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return found


@pytest.mark.parametrize("k", [0, 1, 5, V])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_completions_give_log_probabilities_at_the_asked_temperature(
    client: httpx.Client, logits: dict[tuple[int, ...], np.ndarray], temperature: float, k: int
) -> None:
    body = {"prompt": [IDS, OTHER], "max_tokens": 0, "prompt_logprobs": k}
    reply = post(client, "/v1/completions", {**body, "temperature": temperature})
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    for ids, choice in zip((IDS, OTHER), reply["choices"], strict=True):
        expected_SV = log_probs(logits[tuple(ids)], temperature)
        rows = choice["prompt_logprobs"]
        assert rows[0] is None and len(rows) == len(ids)
        for position, row in enumerate(rows[1:], 1):
            expected_V = expected_SV[position - 1]
            falling = np.argsort(-expected_V, kind="stable")
            realised = ids[position]
            assert next(iter(row)) == str(realised)
            top = falling[:k].tolist()
            assert set(map(int, row)) == {*top, realised}
            for token_id, entry in row.items():
                assert math.isclose(entry["logprob"], expected_V[int(token_id)], abs_tol=3e-6)
                assert entry["rank"] == 1 + falling.tolist().index(int(token_id))
                assert entry["decoded_token"] is None
    assert reply["usage"] == {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12}


def test_absent_temperature_is_1(
    client: httpx.Client, logits: dict[tuple[int, ...], np.ndarray]
) -> None:
    body = {"prompt": IDS, "max_tokens": 1, "prompt_logprobs": 0}
    (choice,) = post(client, "/v1/completions", body)["choices"]
    rows = choice["prompt_logprobs"][1:]
    own = [row[str(token)]["logprob"] for row, token in zip(rows, IDS[1:], strict=True)]
    expected_SV = log_probs(logits[tuple(IDS)], 1.0)
    np.testing.assert_allclose(own, expected_SV[np.arange(8), IDS[1:]], atol=3e-6)


def test_candidates_come_as_npy_with_minus_inf_where_a_row_is_padded(
    client: httpx.Client, logits: dict[tuple[int, ...], np.ndarray]
) -> None:
    rows = [[1, 2, 3], [96], [0, 0], [41, -1, 7]]
    sampling = {
        "max_tokens": 1,
        "temperature": 1.7,
        "prompt_logprob_token_ids": rows,
        "prompt_logprob_start": 4,
    }
    body = {"token_ids": IDS, "sampling_params": sampling}
    reply = post(client, "/inference/v1/generate", body)
    assert reply["prompt_logprobs"] is None
    found = npy(reply)
    assert found.dtype == np.float32 and found.shape == (4, 3)
    expected_SV = log_probs(logits[tuple(IDS)], 1.7)
    expected = np.full((4, 3), -np.inf)
    for row, ids in enumerate(rows):
        for column, token in enumerate(ids):
            if token >= 0:
                expected[row, column] = expected_SV[4 + row, token]
    np.testing.assert_allclose(found, expected, atol=3e-6)
    # Both kinds at once: the list covers all rows, the matrix only its own.
    sampling["prompt_logprobs"] = 2
    both = post(client, "/inference/v1/generate", body)
    np.testing.assert_allclose(npy(both), expected, atol=3e-6)
    assert len(both["prompt_logprobs"]) == len(IDS)
    first = both["prompt_logprobs"][1][str(IDS[1])]["logprob"]
    assert math.isclose(first, expected_SV[0, IDS[1]], abs_tol=3e-6)


@pytest.mark.parametrize("start", [0, 3, 8])
def test_generate_answers_in_the_shape_of_sglang(
    client: httpx.Client, logits: dict[tuple[int, ...], np.ndarray], start: int
) -> None:
    body = {
        "input_ids": IDS,
        "sampling_params": {"temperature": 2.0, "max_new_tokens": 0},
        "return_logprob": True,
        "logprob_start_len": start,
        "top_logprobs_num": 3,
    }
    meta = post(client, "/generate", body)["meta_info"]
    expected_SV = log_probs(logits[tuple(IDS)], 2.0)
    own, top = meta["input_token_logprobs"], meta["input_top_logprobs"]
    assert own[0] == [None, IDS[start], None] and top[0] is None
    assert len(own) == len(top) == len(IDS) - start
    for position in range(start + 1, len(IDS)):
        value, token, text = own[position - start]
        assert (token, text) == (IDS[position], None)
        assert math.isclose(value, expected_SV[position - 1, token], abs_tol=3e-6)
        falling = np.argsort(-expected_SV[position - 1], kind="stable")[:3]
        assert [entry[1] for entry in top[position - start]] == falling.tolist()
        values = [entry[0] for entry in top[position - start]]
        np.testing.assert_allclose(values, expected_SV[position - 1, falling], atol=3e-6)
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(IDS), 0)
    assert meta["output_token_logprobs"] == []


def test_generate_answers_a_list_with_a_list(client: httpx.Client) -> None:
    body = {
        "input_ids": [IDS, OTHER],
        "sampling_params": {"max_new_tokens": 1},
        "return_logprob": True,
        "logprob_start_len": 0,
        "rid": "batch",
    }
    replies = post(client, "/generate", body)
    assert [reply["meta_info"]["id"] for reply in replies] == ["batch_0", "batch_1"]
    lengths = [len(reply["meta_info"]["input_token_logprobs"]) for reply in replies]
    assert lengths == [len(IDS), len(OTHER)]
    assert all("input_top_logprobs" not in reply["meta_info"] for reply in replies)


def test_a_sequence_of_one_token_has_nothing_to_predict(client: httpx.Client) -> None:
    body = {"prompt": [[4], OTHER, [9]], "max_tokens": 0, "prompt_logprobs": 2}
    rows = [
        choice["prompt_logprobs"] for choice in post(client, "/v1/completions", body)["choices"]
    ]
    assert rows[0] == rows[2] == [None] and len(rows[1]) == 3
    alone = {"prompt": [4], "max_tokens": 0, "prompt_logprobs": 2}
    assert post(client, "/v1/completions", alone)["choices"][0]["prompt_logprobs"] == [None]


# The lowest of float32, of which a T below 1 would make -inf and one above 1 a larger number.
@pytest.mark.parametrize(
    ("mask", "temperature"),
    [(-math.inf, 1.0), (-3.4028234663852886e38, 1.0), (-3.4e38, 2.0), (-3.3895314e38, 0.5)],
)
def test_a_masked_token_has_minus_9999_and_leaves_the_others_theirs(
    mask: float, temperature: float
) -> None:
    class Masking(FixtureEngine):
        """Even ids are ruled out, odd ones are equally likely."""

        def score(self, asks: Any) -> list[ComputedRows]:
            return [self._masked(ask) for ask in asks]

        def _masked(self, ask: SequenceAsk) -> ComputedRows:
            row_V = torch.where(torch.arange(8) % 2 == 0, mask, 0.0)
            return rows_of_logits(AskedLogits.of(ask.asked_S, row_V.expand(ask.num_tokens, 8)), ask)

    sampling = {"max_tokens": 0, "prompt_logprobs": 5, "temperature": temperature}
    also = {**sampling, "prompt_logprob_token_ids": [[4, 3], [0, 6]]}
    with (
        http_teacher(Masking(8)) as teacher,
        httpx.Client(base_url=teacher.url, trust_env=False, timeout=60) as client,
    ):
        reply = post(client, "/v1/completions", {"prompt": [1, 2, 3], **sampling})
        scores = npy(
            post(
                client, "/inference/v1/generate", {"token_ids": [1, 2, 3], "sampling_params": also}
            )
        )
    _, masked, likely = reply["choices"][0]["prompt_logprobs"]
    assert masked["2"] == {"logprob": -9999.0, "rank": 6, "decoded_token": None}
    assert list(masked) == ["2", "1", "3", "5", "7", "0"] and masked["0"]["logprob"] == -9999.0
    assert [likely[name]["logprob"] for name in ("3", "1")] == pytest.approx([-math.log(4)] * 2)
    assert list(likely) == ["3", "1", "5", "7", "0"] and likely["3"]["rank"] == 2
    assert np.isneginf(scores[[0, 1, 1], [0, 0, 1]]).all()
    assert scores[0, 1] == pytest.approx(-math.log(4))


def test_a_log_probability_near_0_keeps_its_digits() -> None:
    """The float32 normaliser alone would leave nothing of 1e-8."""

    class Sharp(FixtureEngine):
        def score(self, asks: Any) -> list[ComputedRows]:
            logits_V = torch.full((8,), 20.0)
            logits_V[3] = 40.0
            return [
                rows_of_logits(AskedLogits.of(ask.asked_S, logits_V.expand(ask.num_tokens, 8)), ask)
                for ask in asks
            ]

    body = {"prompt": [1, 3], "max_tokens": 0, "prompt_logprobs": 1}
    with http_teacher(Sharp(8)) as teacher:
        reply = httpx.post(f"{teacher.url}/v1/completions", json=body, trust_env=False).json()
    found = reply["choices"][0]["prompt_logprobs"][1]["3"]["logprob"]
    assert found == pytest.approx(-math.log1p(7 * math.exp(-20.0)), rel=1e-5)


def test_the_fixture_ranks_as_its_logits_do() -> None:
    body = {"prompt": [3, 3, 5, 1], "max_tokens": 0, "prompt_logprobs": 3}
    with http_teacher(FixtureEngine(8)) as teacher:
        reply = httpx.post(f"{teacher.url}/v1/completions", json=body, trust_env=False).json()
    rows = reply["choices"][0]["prompt_logprobs"][1:]
    ranks = [{token: entry["rank"] for token, entry in row.items()} for row in rows]
    assert ranks == [
        {"3": 1, "0": 2, "1": 3},
        {"5": 6, "3": 1, "0": 2, "1": 3},
        {"1": 3, "5": 1, "0": 2},
    ]
    normalizer = math.log(math.exp(10.0) + 7)
    assert rows[0]["3"]["logprob"] == pytest.approx(10 - normalizer, rel=1e-6)
    assert rows[1]["5"]["logprob"] == pytest.approx(-normalizer, rel=1e-6)
