"""Compares served answers with a standalone forward of the same model, over a real socket."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from protos import teacher_pb2 as pb
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.transformers import EngineSettings
from teacher_server.scheduling.sharing import Sharing
from tests.support.asking import connect, request, score, stub
from tests.support.models import write_tiny_model
from tests.support.servers import teacher_thread

V, D = 97, 32


def sequences(seed: int, lengths: list[int], vocab_size: int = V) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(vocab_size, size=length).tolist() for length in lengths]


def standalone(folder: Path, batch: list[list[int]], dtype: str = "float32") -> list[np.ndarray]:
    """Logits [S, V] of each sequence, by itself, by plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.no_grad():
        return [model(torch.tensor([tokens])).logits[0].float().numpy() for tokens in batch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen fixture: three layers, weights from seed 0."""
    return write_tiny_model(tmp_path_factory.mktemp("teacher"), "qwen2", layers=3, vocab_size=V)


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with teacher_thread(
        transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    ) as address:
        yield address


def test_served_logits_equal_the_models_own_forward(folder: Path, address: str) -> None:
    """F-DISTILL-TEACHER-001: a frozen three-layer model, 1e-3 absolute, every position."""
    batch = sequences(0, [40])
    answer = score(address, request(batch))
    assert answer.floats.shape == (40, V)
    np.testing.assert_allclose(answer.floats, standalone(folder, batch)[0], atol=1e-3, rtol=0)


def test_each_element_of_a_batch_equals_its_standalone_forward(folder: Path, address: str) -> None:
    """F-DISTILL-TEACHER-002: float32, 1e-6, each sequence of a ragged batch by itself."""
    batch = sequences(1, [1, 17, 5, 64, 2, 33])
    answer = score(address, request(batch))
    np.testing.assert_allclose(
        answer.floats, np.concatenate(standalone(folder, batch)), atol=1e-6, rtol=0
    )


def test_last_positions_are_the_last_rows(folder: Path, address: str) -> None:
    batch = sequences(2, [3, 9, 1])
    answer = score(address, request(batch, last=True))
    expected = np.stack([rows[-1] for rows in standalone(folder, batch)])
    np.testing.assert_allclose(answer.floats, expected, atol=1e-6, rtol=0)


def test_a_position_mask_picks_its_rows_in_request_order(folder: Path, address: str) -> None:
    batch = sequences(3, [6, 4, 7])
    mask = [[0, 1, 0, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1]]
    answer = score(address, request(batch, mask=mask))
    picked = [
        rows[np.asarray(asked, bool)]
        for rows, asked in zip(standalone(folder, batch), mask, strict=True)
    ]
    assert answer.header.num_rows == 5
    np.testing.assert_allclose(answer.floats, np.concatenate(picked), atol=1e-6, rtol=0)


def test_vocab_size_slices_the_head_before_any_softmax(folder: Path, address: str) -> None:
    batch = sequences(4, [12], vocab_size=V)
    full = standalone(folder, batch)[0].astype(np.float64)
    dense = score(address, request(batch, vocab_size=50))
    np.testing.assert_allclose(dense.floats, full[:, :50], atol=1e-6, rtol=0)
    sparse = score(address, request(batch, "top_k", vocab_size=50, top_k=4)).records
    expected = torch.logsumexp(torch.tensor(full[:, :50]), -1).numpy()
    np.testing.assert_allclose(sparse["norm_t"], expected, atol=1e-6, rtol=0)
    assert (sparse["ids"] < 50).all()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 2.0, 10.0])
def test_top_k_is_torchs_with_float64_normalisers(
    folder: Path, address: str, temperature: float
) -> None:
    batch = sequences(5, [20, 8])
    records = score(address, request(batch, "top_k", top_k=7, temperature=temperature)).records
    logits = torch.tensor(np.concatenate(standalone(folder, batch)))
    values, ids = torch.topk(logits, 7)
    np.testing.assert_array_equal(records["ids"], ids.numpy())
    np.testing.assert_allclose(records["logits"], values.numpy(), atol=1e-6, rtol=0)
    wide = logits.double()
    rest = (wide / temperature).scatter(-1, ids, -torch.inf)
    np.testing.assert_allclose(
        records["rest_t"], torch.logsumexp(rest, -1).numpy(), atol=4e-6, rtol=1e-6
    )
    np.testing.assert_allclose(
        records["norm_t"], torch.logsumexp(wide / temperature, -1).numpy(), atol=2e-6, rtol=1e-6
    )


def test_top_k_at_the_whole_vocabulary_is_dense(address: str) -> None:
    batch = sequences(6, [15])
    records = score(address, request(batch, "top_k", top_k=V)).records
    dense = score(address, request(batch)).floats
    assert (np.sort(records["ids"], axis=-1) == np.arange(V)).all()
    scattered = np.empty_like(dense)
    np.put_along_axis(scattered, records["ids"].astype(np.int64), records["logits"], axis=-1)
    np.testing.assert_array_equal(scattered, dense)
    assert (np.diff(records["logits"], axis=-1) <= 0).all()
    assert (records["rest_t"].view("<u4") == 0xFF800000).all()  # nothing is left: -infinity


def served_head(address: str, vocab_size: int, carrier: str) -> tuple:
    """(header, weight [V, D], bias or None) of GetOutputHead, checksum checked."""
    import zlib

    with connect(address) as channel:
        parts = list(
            stub(channel).GetOutputHead(
                pb.GetOutputHeadRequest(protocol_version=1, vocab_size=vocab_size)
            )
        )
    header, trailer = parts[0].header, parts[-1].trailer
    data = b"".join(part.piece for part in parts[1:-1])
    assert len(data) == header.total_bytes
    assert zlib.crc32(data) == trailer.crc32
    values = np.frombuffer(data, carrier)
    split_at = header.vocab_size * header.hidden_size
    weight = values[:split_at].reshape(header.vocab_size, header.hidden_size)
    bias = values[split_at:] if header.transform.has_bias else None
    assert bias is None or len(bias) == header.vocab_size
    return header, weight, bias


@pytest.mark.parametrize("architecture", ["qwen2", "phi", "gemma2", "cohere", "granite", "gpt2"])
def test_hidden_times_the_served_head_is_the_models_logits(
    tmp_path: Path, architecture: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture, vocab_size=V)
    batch = sequences(7, [11, 3])
    expected = np.concatenate(standalone(folder, batch))[:, :80]
    with teacher_thread(
        transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    ) as address:
        hidden = score(address, request(batch, "hidden", vocab_size=80)).floats
        header, weight, bias = served_head(address, 80, "<f4")
    config = json.loads((folder / "config.json").read_text())
    assert header.transform.has_bias == (architecture == "phi")
    assert header.transform.soft_cap == (config.get("final_logit_softcapping") or 0)
    assert header.transform.scale == config.get("logit_scale", 1)
    assert header.transform.divisor == config.get("logits_scaling", 1)
    logits = hidden.astype(np.float64) @ weight.T.astype(np.float64)
    if bias is not None:
        logits += bias
    logits = logits * header.transform.scale / header.transform.divisor
    if header.transform.soft_cap:
        logits = np.tanh(logits / header.transform.soft_cap) * header.transform.soft_cap
    np.testing.assert_allclose(logits, expected, atol=2e-6, rtol=2e-6)


def bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def test_hidden_states_travel_in_the_models_dtype_without_loss(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, vocab_size=V, dtype="bfloat16")
    batch = sequences(8, [10])
    with teacher_thread(
        transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    ) as address:
        answer = score(address, request(batch, "hidden"))
        _header, weight, _ = served_head(address, V, "<u2")
        dense = score(address, request(batch)).floats
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        own = model.model(torch.tensor(batch)).last_hidden_state[0]
    assert answer.header.row_bytes == 2 * D
    bits = np.frombuffer(answer.payload, "<u2").reshape(10, D)
    np.testing.assert_array_equal(bits, own.view(torch.uint16).numpy())
    own_head = model.lm_head.weight.detach().view(torch.uint16).numpy()
    np.testing.assert_array_equal(weight, own_head)
    # Dense rows of a 16-bit model are not rounded to 16 bits.
    exact = bfloat16(bits).astype(np.float64) @ bfloat16(weight).T.astype(np.float64)
    np.testing.assert_allclose(dense, exact, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["dense", "hidden", "top_k", "sampled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sequence_alone_and_among_others_has_identical_bytes(
    tmp_path: Path, kind: str, dtype: str
) -> None:
    folder = write_tiny_model(tmp_path, vocab_size=V, dtype=dtype)
    top_k = 5 if kind == "top_k" else 0
    mine = sequences(9, [23])[0]
    others = sequences(10, [1, 23, 64, 23])
    num_draws = 7 if kind == "sampled" else 0
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    with teacher_thread(engine, sharing=Sharing(cache_bytes=0)) as address:
        alone = score(address, request([mine], kind, top_k=top_k, num_draws=num_draws))
        for _ in range(4):  # the first ones try the shape, the others rest on that
            batch = [*others[:2], mine, *others[2:]]
            among = score(address, request(batch, kind, top_k=top_k, num_draws=num_draws))
            rows = among.rows[24 : 24 + 23]
            assert b"".join(rows) == alone.payload


def test_draws_follow_the_served_distribution_and_depend_only_on_their_sequence(
    address: str,
) -> None:
    batch, draws = sequences(12, [9, 30]), 256
    message = request(batch, "sampled", num_draws=draws, temperature=0.7, seed=5)
    answer = score(address, message)
    log_p = torch.log_softmax(
        torch.tensor(score(address, request(batch)).floats, dtype=torch.float64) / 0.7, -1
    ).numpy()
    assert len(answer.rows) == 39 and answer.trailer.total_bytes == len(answer.payload)
    frequencies = np.zeros_like(log_p)
    for row, data in enumerate(answer.rows):
        records = np.frombuffer(data, [("word", "<u4"), ("log_prob", "<f4")])
        ids, counts = records["word"] & 0xFFFFFF, (records["word"] >> 24) + 1
        assert (np.diff(ids.astype(int)) > 0).all() and ids.max() < V
        assert counts.sum() == draws
        np.testing.assert_allclose(records["log_prob"], log_p[row, ids], atol=1e-5, rtol=0)
        frequencies[row, ids] = counts / draws
    # As far from their distribution as its draws are on average, and far from another row's.
    p = np.exp(log_p)
    expected = np.sqrt(2 * p * (1 - p) / (np.pi * draws)).sum()
    assert np.abs(frequencies - p).sum() == pytest.approx(expected, rel=0.1)
    assert np.abs(np.roll(frequencies, 1, axis=0) - p).sum() > 2 * expected

    mask = [[0] * 9, [0] * 10 + [1] * 20]
    part = score(
        address,
        request(batch, "sampled", num_draws=draws, temperature=0.7, seed=5, mask=mask),
    )
    assert part.rows == answer.rows[19:]
    other = score(address, request(batch, "sampled", num_draws=draws, temperature=0.7, seed=6))
    assert other.payload != answer.payload


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_throughput_agrees_with_a_standalone_forward(tmp_path: Path, architecture: str) -> None:
    folder = write_tiny_model(tmp_path, architecture, vocab_size=V)
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu", mode="throughput"))
    assert engine.facts.mode == "throughput"
    batch = sequences(13, [60, 59, 20, 60, 1, 58, 21])
    with teacher_thread(engine, sharing=Sharing(cache_bytes=0)) as address:
        answer = score(address, request(batch))
        with connect(address) as channel:
            stats = stub(channel).GetStats(pb.GetStatsRequest(protocol_version=1))
    logits = np.concatenate(standalone(folder, batch))
    difference = np.abs(answer.floats - logits).max(-1)
    assert (difference <= 1e-6 * np.abs(logits).max(-1)).all()  # docs/teacher.md
    assert stats.scored_sequences == 7 and stats.forwards < 7
    assert stats.padding_tokens > 0


def test_a_cached_sequence_is_answered_in_every_representation_without_a_forward(
    folder: Path,
) -> None:
    batch = sequences(14, [12, 30])
    messages = [
        request(batch, "hidden"),
        request(batch, "dense", vocab_size=60, mask=[[1] + [0] * 11, [0] * 29 + [1]]),
        request(batch, "top_k", top_k=5, temperature=3.0, run_id="run-2"),
        request(batch, "sampled", num_draws=5),
    ]
    fresh = []
    for message in messages:
        engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
        with teacher_thread(engine, sharing=Sharing(cache_bytes=0)) as address:
            fresh.append(score(address, message).payload)
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    with teacher_thread(engine) as address:
        for message, payload in zip(messages, fresh, strict=True):
            answer = score(address, message)
            assert answer.payload == payload
            assert answer.trailer.cache_hits == (0 if message is messages[0] else 2)
        with connect(address) as channel:
            stats = stub(channel).GetStats(pb.GetStatsRequest(protocol_version=1))
    assert (stats.scored_sequences, stats.cache.hits, stats.cache.misses) == (2, 6, 2)
    counted = {run.run_id: (run.cache_hits, run.cache_misses) for run in stats.runs}
    assert counted == {"run-1": (4, 2), "run-2": (2, 0)}
    assert {run.run_id: run.asked_tokens for run in stats.runs} == {"run-1": 3 * 42, "run-2": 42}


def test_a_model_whose_head_is_unknown_serves_its_own_logits_but_no_hidden(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "hyperclovax", vocab_size=V)
    batch = sequences(11, [9])
    engine = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    assert "differ from the model's own logits" in (engine.facts.not_offered["hidden"] or "")
    with teacher_thread(engine) as address:
        dense = score(address, request(batch, vocab_size=60)).floats
        records = score(address, request(batch, "top_k", vocab_size=60, top_k=3)).records
    expected = standalone(folder, batch)[0][:, :60]
    np.testing.assert_allclose(dense, expected, atol=1e-6, rtol=0)
    np.testing.assert_array_equal(records["ids"], np.argsort(-expected, axis=-1)[:, :3])


def test_a_model_whose_head_is_unknown_does_not_teach_in_16_bits(tmp_path: Path) -> None:
    from lectern_common.errors import Misconfigured

    folder = write_tiny_model(tmp_path, "hyperclovax", vocab_size=V, dtype="bfloat16")
    with pytest.raises(Misconfigured, match="load it with --dtype float32"):
        transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    engine = transformers_engine.load(str(folder), EngineSettings(dtype="float32", device="cpu"))
    assert engine.facts.not_offered["dense"] is None
