"""The requests of other trainers, body by body, and their answers, read as they read them.

prime-rl's opd asks through the openai client and takes the first entry of each position; slime
takes the first value of each; TRL's asynchronous trainer sorts by rank. TRL's synchronous trainer
itself is run in test_trl.py.
"""

import asyncio
import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from tests.support.models import write_tiny_model
from tests.support.servers import TeacherThread, http_teacher

TOKEN = "0123456789abcdef" * 2
IDS = [5, 17, 3, 88, 3, 41]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("peers") / "tiny", vocab_size=97, spread=0.5)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Iterator[TeacherThread]:
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    with http_teacher(engine, token=TOKEN) as teacher:
        yield teacher


def realised(folder: Path, temperature: float) -> np.ndarray:
    """float64 log-probability of each token but the first."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits_SV = model(torch.tensor([IDS])).logits[0].double() / temperature
    found: np.ndarray = logits_SV.log_softmax(-1)[torch.arange(len(IDS) - 1), IDS[1:]].numpy()
    return found


def test_prime_rl_scores_a_rollout(folder: Path, teacher: TeacherThread) -> None:
    openai = pytest.importorskip("openai")

    async def asked() -> Any:
        client = openai.AsyncOpenAI(
            base_url=f"{teacher.url}/v1",
            api_key=TOKEN,
            http_client=httpx.AsyncClient(trust_env=False),
        )
        async with client:
            reply = await client.post(
                f"{teacher.url}/inference/v1/generate",
                cast_to=httpx.Response,
                body={
                    "model": folder.name,
                    "token_ids": IDS,
                    "sampling_params": {
                        "max_tokens": 1,
                        "temperature": 1.0,
                        "top_p": 1.0,
                        "prompt_logprobs": 1,
                    },
                },
            )
        return reply.json()

    reply = asyncio.run(asked())
    assert isinstance(reply["request_id"], str) and isinstance(reply["choices"], list)
    found = [
        next(iter(row.values()))["logprob"] if row else 0.0 for row in reply["prompt_logprobs"]
    ]
    assert found[0] == 0.0
    np.testing.assert_allclose(found[1:], realised(folder, 1.0), atol=3e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_slime_scores_a_rollout(folder: Path, teacher: TeacherThread, temperature: float) -> None:
    payload = {
        "input_ids": IDS,
        "sampling_params": {
            "temperature": temperature,
            "max_new_tokens": 0,
            "skip_special_tokens": False,
        },
        "return_logprob": True,
        "logprob_start_len": 0,
    }

    url = f"{teacher.url}/generate".replace("://", f"://slime:{TOKEN}@")
    reward = httpx.post(url, json=payload, trust_env=False, timeout=60).json()
    found = [item[0] for item in reward["meta_info"]["input_token_logprobs"][1:]]
    np.testing.assert_allclose(found, realised(folder, temperature), atol=3e-6)


def test_trl_asynchronous_scores_a_rollout(folder: Path, teacher: TeacherThread) -> None:
    url = teacher.url.replace("://", f"://trl-async:{TOKEN}@")
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        model = client.get("/v1/models").json()["data"][0]["id"]
        reply = client.post(
            "/v1/completions",
            json={
                "model": model,
                "prompt": IDS,
                "max_tokens": 1,
                "temperature": 2.0,
                "prompt_logprobs": 4,
            },
        ).json()
    found = []
    for position, row in enumerate(reply["choices"][0]["prompt_logprobs"][1:], 1):
        entries = sorted(row.items(), key=lambda item: item[1]["rank"])
        values = [entry["logprob"] for _, entry in entries]
        assert values == sorted(values, reverse=True) and len(entries) in (4, 5)
        found.append(row[str(IDS[position])]["logprob"])
    np.testing.assert_allclose(found, realised(folder, 2.0), atol=3e-6)


def test_a_candidate_per_position_is_scored_from_its_context(
    folder: Path, teacher: TeacherThread
) -> None:
    """As trainers ask that know which ids they want: the written tokens, or the student's top."""
    body = {
        "token_ids": IDS,
        "model": folder.name,
        "sampling_params": {
            "temperature": 0.7,
            "max_tokens": 1,
            "skip_special_tokens": False,
            "prompt_logprob_start": 3,
            "prompt_logprob_token_ids": [[3], [41]],
        },
    }
    headers = {"authorization": f"Bearer {TOKEN}"}
    reply = httpx.post(
        f"{teacher.url}/inference/v1/generate", json=body, headers=headers, trust_env=False
    ).json()
    scores = np.load(io.BytesIO(base64.b64decode(reply["prompt_token_id_logprobs"])))
    assert scores.dtype == np.float32 and scores.shape == (2, 1)
    np.testing.assert_allclose(scores[:, 0], realised(folder, 0.7)[3:], atol=3e-6)
