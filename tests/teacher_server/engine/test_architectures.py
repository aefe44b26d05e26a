"""Small random models of many architectures, against plain transformers, position by position.

Legend: S tokens of one sequence, V vocabulary, D hidden size.
"""

import dataclasses
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lectern_common.teacher.channel import TeacherChannel
from lectern_common.wire.formats import Representation
from lectern_models.loading import load_causal_lm
from protos import teacher_pb2 as pb
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.seam import ComputedRows, Engine, SequenceAsk, base_ask
from teacher_server.engine.transformers import EngineSettings
from tests.support.asking import request, score
from tests.support.gguf_models import write_gguf
from tests.support.models import ARCHITECTURES, write_tiny_model
from tests.support.servers import teacher_process, teacher_thread

V, D, S = 97, 32, 37
KNOWN = [name for name in ARCHITECTURES if name != "hyperclovax"]


def asked(ids_S: np.ndarray, kind: str, vocab_size: int = V) -> SequenceAsk:
    top_k = 5 if kind == "top_k" else None
    everywhere = np.ones(len(ids_S), bool)
    return SequenceAsk(ids_S, everywhere, vocab_size, Representation(kind, top_k), 1.0)


def answer(engine: Engine, ask: SequenceAsk) -> ComputedRows:
    base = base_ask(ask, engine.facts)
    (rows,) = engine.score([base])
    same = base.representation == ask.representation
    return rows if same else engine.derived(rows, ask, lambda: True)


def floats(rows: ComputedRows) -> np.ndarray:
    return np.frombuffer(rows.payload, "<f4").reshape(S, -1)


def tokens(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(V, size=S).astype(np.uint32)


def standalone(folder: Path, ids_S: np.ndarray, dtype: str = "float32") -> torch.Tensor:
    """Logits [S, V] by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.no_grad():
        logits: torch.Tensor = model(torch.from_numpy(ids_S.astype(np.int64))[None]).logits[0]
    return logits.float()


@pytest.mark.parametrize("architecture", KNOWN)
def test_dense_rows_are_the_models_own_logits(tmp_path: Path, architecture: str) -> None:
    folder = write_tiny_model(tmp_path, architecture, layers=3)
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    own = standalone(folder, tokens()).numpy()
    dense = floats(answer(engine, asked(tokens(), "dense")))
    np.testing.assert_allclose(dense, own, atol=1e-5, rtol=1e-6)
    few = floats(answer(engine, asked(tokens(), "dense", vocab_size=60)))
    np.testing.assert_allclose(few, own[:, :60], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("architecture", KNOWN)
def test_hidden_states_in_16_bits_lose_nothing(tmp_path: Path, architecture: str) -> None:
    """Hidden states times the served head, in the model's arithmetic, are its logits to the bit."""
    folder = write_tiny_model(tmp_path, architecture)
    engine = transformers_engine.load(str(folder), EngineSettings(dtype="bfloat16", device="cpu"))
    facts = engine.facts
    rows = answer(engine, asked(tokens(), "hidden"))
    hidden = torch.frombuffer(bytearray(rows.payload), dtype=torch.bfloat16).view(S, D)
    weight, *bias = (
        torch.frombuffer(bytearray(part), dtype=torch.bfloat16) for part in engine.head_bytes(V)
    )
    logits = torch.nn.functional.linear(hidden, weight.view(V, D), bias[0] if bias else None)
    assert facts.head.has_bias == bool(bias) == (architecture == "phi")
    if facts.head.scale != 1:
        logits = logits * facts.head.scale
    if facts.head.divisor != 1:
        logits = logits / facts.head.divisor
    if facts.head.soft_cap is not None:
        logits = torch.tanh(logits / facts.head.soft_cap) * facts.head.soft_cap
    assert torch.equal(logits.float(), standalone(folder, tokens(), "bfloat16"))


@pytest.mark.parametrize("architecture", KNOWN)
def test_padding_does_not_change_answers_in_throughput_mode(
    tmp_path: Path, architecture: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture)
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu", mode="throughput"))
    asks = [asked(tokens(seed)[:length], "dense") for seed, length in enumerate((S, 35, 3, 20))]
    batch = engine.score([base_ask(ask, engine.facts) for ask in asks])
    for rows, ask in zip(batch, asks, strict=True):
        dense = engine.derived(rows, ask, lambda: True)
        own = standalone(folder, ask.token_ids_S).numpy()
        ours = np.frombuffer(dense.payload, "<f4").reshape(ask.num_tokens, V)
        np.testing.assert_allclose(ours, own, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["qwen2", "mixtral", "falcon_h1"])
def test_requested_attention_is_used_and_in_the_fingerprint(
    tmp_path: Path, architecture: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture)
    by_default = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    engines = {
        name: transformers_engine.load(str(folder), EngineSettings(device="cpu", attention=name))
        for name in ("sdpa", "eager")
    }
    own = standalone(folder, tokens()).numpy()
    for engine in engines.values():
        dense = floats(answer(engine, asked(tokens(), "dense")))
        np.testing.assert_allclose(dense, own, atol=1e-5, rtol=1e-6)
    assert by_default.facts.fingerprint == engines["sdpa"].facts.fingerprint
    assert by_default.facts.fingerprint != engines["eager"].facts.fingerprint


@pytest.mark.parametrize(
    "architecture",
    ["gemma2", *(pytest.param(other, marks=pytest.mark.long) for other in ("mixtral", "olmo2"))],
)
def test_a_server_process_answers_with_the_models_own_logits(
    tmp_path: Path, architecture: str
) -> None:
    folder = write_tiny_model(tmp_path / "model", architecture)
    batch = [tokens(1), tokens(2)[:5]]
    with teacher_process(tmp_path, "--model", str(folder), "--attention", "eager") as teacher:
        answered = score(teacher.address, request([ids.tolist() for ids in batch])).floats
        with TeacherChannel(teacher.address) as channel:
            assert channel.get_model().measured_tokens_per_second > 0
        _, output, _ = teacher.stop()
    own = torch.cat([standalone(folder, ids) for ids in batch]).numpy()
    np.testing.assert_allclose(answered, own, atol=1e-5, rtol=1e-6)
    assert " tokens/s, measured on this device" in output


@pytest.mark.parametrize(
    "form", [pytest.param(one, marks=pytest.mark.long) for one in ("gguf", "int8", "int4")]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_a_server_process_serves_a_quantised_model(tmp_path: Path, form: str) -> None:
    folder = write_tiny_model(tmp_path / "model", "qwen2", hidden=64)
    options = ["--model", str(folder)]
    if form == "gguf":
        write_gguf(folder, folder / "q8.gguf", "q8_0")
        options += ["--gguf-file", "q8.gguf"]
        model = load_causal_lm(folder, gguf_file="q8.gguf")
    else:
        options += ["--quantization", form]
        model = load_causal_lm(folder, quantization=form)
    ids_S = tokens()
    with torch.no_grad():
        own = model(torch.from_numpy(ids_S.astype(np.int64))[None]).logits[0].numpy()
    with teacher_process(tmp_path, *options) as teacher:
        answered = score(teacher.address, request([ids_S.tolist()])).floats
        with TeacherChannel(teacher.address) as channel:
            served, stats = (
                channel.get_model(),
                channel.stub.GetStats(pb.GetStatsRequest(protocol_version=1)),
            )
        _, output, _ = teacher.stop()
    np.testing.assert_allclose(answered, own, atol=1e-4, rtol=1e-5)
    assert not np.allclose(own, standalone(folder, ids_S).numpy(), atol=1e-2)  # it is quantised
    assert served.quantization == stats.quantization == form
    assert stats.measured_tokens_per_second == served.measured_tokens_per_second > 0
    assert not stats.HasField("device_utilization")
    said = "read from a GGUF file" if form == "gguf" else f"the body's weights in {form}"
    assert f"dtype        float32, {said}" in output


def test_a_short_limit_under_another_name_starts_and_refuses_what_is_longer(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mpt", d_model=D, n_layers=1, n_heads=4, max_seq_len=70, vocab_size=V, expansion_ratio=2
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    engine = transformers_engine.load(str(tmp_path), EngineSettings(device="cpu"))
    engine.measure(1024)
    assert engine.facts.max_positions == 70 and engine.facts.measured_tokens_per_second > 0
    with teacher_thread(engine) as address, TeacherChannel(address) as channel:
        assert channel.get_model().limits.max_sequence_tokens == 70
        assert score(address, request([[3] * 70], last=True)).header.num_rows == 1
        with pytest.raises(grpc.RpcError) as refusal:
            score(address, request([[3] * 71], last=True))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is 71 tokens; it must be between 1 and 70" in str(refusal.value.details())


def test_a_limit_that_the_config_hides_is_found_before_serving(tmp_path: Path) -> None:
    engine = transformers_engine.load(
        str(write_tiny_model(tmp_path, "gpt2", max_positions=50)), EngineSettings(device="cpu")
    )
    engine._facts = dataclasses.replace(engine.facts, max_positions=None)
    engine.measure(1024)
    assert engine.facts.max_positions == 50 and engine.facts.measured_tokens_per_second > 0
