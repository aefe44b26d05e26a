"""The teacher without a model."""

import numpy as np
import pytest
import torch

from teacher_server.engine.fixture import FixtureEngine
from tests.support.asking import request, score
from tests.support.servers import teacher_thread


def test_argmax_is_the_last_input_token() -> None:
    """F-DISTILL-FIXTURE-001, served: the token at each position, for the last position or all."""
    with teacher_thread(FixtureEngine(97)) as address:
        batch = [[5, 17, 42], [96], [0, 0, 3, 8]]
        last = score(address, request(batch, last=True)).floats
        every = score(address, request(batch)).floats
    assert last.argmax(-1).tolist() == [42, 96, 8]
    assert every.argmax(-1).tolist() == [5, 17, 42, 96, 0, 0, 3, 8]


def test_a_token_outside_the_vocabulary_counts_as_id_0() -> None:
    """F-DISTILL-FIXTURE-001: the asked vocabulary is narrower than the token's id."""
    with teacher_thread(FixtureEngine(97)) as address:
        rows = score(address, request([[50, 3, 96]], vocab_size=50)).floats
    assert rows.argmax(-1).tolist() == [0, 3, 0]


@pytest.mark.parametrize("temperature", [0.01, 1.0, 4.0])
@pytest.mark.parametrize("k", [1, 2, 9, 20])
def test_top_k_equals_the_top_k_of_the_dense_rows(k: int, temperature: float) -> None:
    with teacher_thread(FixtureEngine(20)) as address:
        batch = [[5, 0, 19, 1]]
        dense = score(address, request(batch, vocab_size=20)).floats
        message = request(batch, "top_k", vocab_size=20, top_k=k, temperature=temperature)
        records = score(address, message).records
    logits = torch.tensor(dense, dtype=torch.float64)
    for index, row in enumerate(dense.tolist()):
        ids = sorted(range(20), key=lambda i: -row[i])[:k]
        assert records["ids"][index].tolist() == ids
        assert records["logits"][index].tolist() == [row[i] for i in ids]
    left_out = torch.ones_like(logits).scatter_(1, torch.tensor(records["ids"].astype(int)), 0)
    rest = (logits / temperature).masked_fill(left_out == 0, -torch.inf)
    np.testing.assert_allclose(records["rest_t"], torch.logsumexp(rest, -1), rtol=1e-6)
    np.testing.assert_allclose(
        records["norm_t"], torch.logsumexp(logits / temperature, -1), rtol=1e-6
    )
