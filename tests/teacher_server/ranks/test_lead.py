"""Models that two ranks share on the CPU, against the same models in one process, value by value.

Legend: S tokens of one sequence, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor, Shard

from lectern_common.errors import Misconfigured
from lectern_common.tokens.weights import safetensors_files, weights_sha256
from lectern_models.loading import load_causal_lm
from lectern_models.ranks import whole
from lectern_models.tensor_parallel import require_shardable
from teacher_server.engine import transformers as transformers_engine
from teacher_server.engine.seam import Engine, base_ask
from teacher_server.engine.transformers import EngineSettings
from teacher_server.ranks.lead import Fitted
from tests.support.models import ARCHITECTURES, write_tiny_model
from tests.support.tensor_parallel import TwoRanks, two_ranks
from tests.teacher_server.engine.test_architectures import (
    D,
    V,
    answer,
    asked,
    floats,
    standalone,
    tokens,
)

# transformers has no plan for gpt2 and opt, and none for the body of falcon_h1.
SHARED = [name for name in ARCHITECTURES if name not in ("gpt2", "opt", "falcon_h1", "hyperclovax")]
QUICK = ("qwen2", "gemma2", "mixtral")


@pytest.fixture(scope="module")
def ranks() -> Iterator[TwoRanks]:
    with two_ranks() as pair:
        yield pair


def rows_alone(engine: Engine, ids_S: np.ndarray) -> bytes:
    (rows,) = engine.score([base_ask(asked(ids_S, "hidden"), engine.facts)])
    return bytes(rows.payload)


@pytest.mark.parametrize(
    "architecture",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SHARED],
)
def test_two_ranks_give_the_models_own_logits_at_every_position(
    ranks: TwoRanks, tmp_path: Path, architecture: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture, layers=3)
    engine = ranks.engine(folder)
    own = standalone(folder, tokens()).numpy()
    dense = floats(answer(engine, asked(tokens(), "dense")))
    np.testing.assert_allclose(dense, own, atol=1e-5, rtol=1e-6)
    few = floats(answer(engine, asked(tokens(), "dense", vocab_size=60)))
    np.testing.assert_allclose(few, own[:, :60], atol=1e-5, rtol=1e-6)
    assert engine.facts.tensor_parallel == 2 and engine.facts.device == "cpu"
    assert "tensor parallel over 2" in engine.facts.arithmetic


def test_what_ranks_hold_together_is_the_model_itself(ranks: TwoRanks, tmp_path: Path) -> None:
    """Identity, head and fingerprint are those of a whole model; only the layout differs."""
    folder = write_tiny_model(tmp_path, "phi")  # its head has a bias
    shared = ranks.engine(folder)
    alone = transformers_engine.load(str(folder), EngineSettings(device="cpu"))
    for name in ("weights_sha256", "fingerprint", "num_parameters", "logit_width", "head"):
        assert getattr(shared.facts, name) == getattr(alone.facts, name), name
    assert shared.facts.weights_sha256 == weights_sha256(safetensors_files(folder))
    for part, own in zip(shared.head_bytes(V), alone.head_bytes(V), strict=True):
        assert bytes(part) == bytes(own)
    assert len(shared.head_bytes(V)[0]) == 4 * V * D
    ask = asked(tokens(), "hidden")
    assert base_ask(ask, shared.facts).key != base_ask(ask, alone.facts).key


def test_the_slices_that_ranks_load_are_those_of_the_files(ranks: TwoRanks, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen2")
    engine = ranks.engine(folder)
    own = dict(load_causal_lm(folder).named_parameters())
    sharded = 0
    for name, parameter in engine._model.named_parameters():
        local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
        sharded += local.shape != own[name].shape
        if local.shape != own[name].shape:
            assert isinstance(parameter, DTensor)
            (placed,) = parameter.placements
            assert isinstance(placed, Shard)
            first = own[name].chunk(2, placed.dim)[0]
            assert torch.equal(local, first), name
        else:
            assert torch.equal(local, own[name]), name
    assert sharded > len(own) / 2
    assert whole(torch.ones(2)).tolist() == [1, 1]


def test_an_answers_bytes_depend_only_on_its_own_sequence(ranks: TwoRanks, tmp_path: Path) -> None:
    engine = ranks.engine(write_tiny_model(tmp_path, "qwen2", layers=3))
    batch = [tokens(seed) for seed in range(4)]
    alone = [rows_alone(engine, ids_S) for ids_S in batch]
    for _ in range(4):  # trials of the shape, then it is computed together or not at all
        together = engine.score(
            [base_ask(asked(ids_S, "hidden"), engine.facts) for ids_S in reversed(batch)]
        )
        assert [bytes(rows.payload) for rows in reversed(together)] == alone
    assert [rows_alone(engine, ids_S) for ids_S in batch] == alone


def test_padding_does_not_change_what_ranks_compute_together(
    ranks: TwoRanks, tmp_path: Path
) -> None:
    folder = write_tiny_model(tmp_path, "llama")
    engine = ranks.engine(folder, "throughput")
    asks = [asked(tokens(seed)[:length], "dense") for seed, length in enumerate((37, 35, 3, 20))]
    batch = engine.score([base_ask(ask, engine.facts) for ask in asks])
    for rows, ask in zip(batch, asks, strict=True):
        dense = engine.derived(rows, ask, lambda: True)
        ours = np.frombuffer(dense.payload, "<f4").reshape(ask.num_tokens, V)
        own = standalone(folder, ask.token_ids_S).numpy()
        np.testing.assert_allclose(ours, own, atol=2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "count", "says"),
    [
        ("qwen2", 4, "does not divide the 2 heads of num_key_value_heads"),
        ("qwen2", 3, "does not divide the 4 heads of num_attention_heads"),
        ("gpt2", 2, "has no plan for sharing a model of type gpt2"),
        ("falcon_h1", 2, "has no plan for sharing a model of type falcon_h1"),
    ],
)
def test_what_cannot_be_shared_is_refused_from_its_config(
    tmp_path: Path, architecture: str, count: int, says: str
) -> None:
    folder = write_tiny_model(tmp_path, architecture, weights=False)
    with pytest.raises(Misconfigured, match=says):
        require_shardable(folder, count)


def test_numbers_of_ranks_that_fit_are_named(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, "qwen2", weights=False, num_attention_heads=8, hidden=64)
    with pytest.raises(Misconfigured, match="that divides all of them: 2"):
        require_shardable(folder, 4)
    require_shardable(folder, 2)


def test_a_shape_is_covered_only_by_one_that_takes_as_much_memory() -> None:
    fitted = Fitted()
    fitted.add((4, 100))
    assert fitted.covers((4, 100)) and fitted.covers((8, 50)) and fitted.covers((1, 100))
    assert not fitted.covers((5, 100))
    assert not fitted.covers((1, 101))  # fewer tokens, but a longer sequence
    fitted.add((1, 200))
    assert fitted.covers((1, 200)) and fitted.covers((4, 100)) and not fitted.covers((2, 200))
