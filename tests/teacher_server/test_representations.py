"""Rows as bytes: accuracy of the normalisers, chunks, and what is never sent."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lectern_common.errors import InvalidRequest, TeacherError
from lectern_common.wire import top_k_record
from teacher_server import representations
from teacher_server.representations import dense_rows, hidden_rows, top_k_rows


def rows_of(logits: torch.Tensor):
    return lambda start, stop: logits[start:stop]


def random_logits(rows: int, width: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [2048, 151_936])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_normalisers_are_float64s_to_float32_precision(width: int, temperature: float) -> None:
    logits = random_logits(3, width)
    records = np.frombuffer(top_k_rows(3, width, rows_of(logits), 4, temperature), top_k_record(4))
    scaled = logits.double() / temperature
    rest = scaled.scatter(-1, logits.topk(4).indices, -torch.inf)
    for name, outcomes in (("log_rest_t", rest), ("log_normalizer_t", scaled)):
        exact = torch.logsumexp(outcomes, -1).numpy()
        np.testing.assert_allclose(records[name], exact, rtol=2.5e-7, atol=0)


def test_huge_logits_do_not_overflow_the_normaliser() -> None:
    logits = torch.tensor([[3e4, -3e4, 2.9e4]])
    record = np.frombuffer(top_k_rows(1, 3, rows_of(logits), 1, 0.01), top_k_record(1))[0]
    assert record["log_rest_t"] == 2.9e6
    assert record["log_normalizer_t"] == 3e6


def test_nothing_is_left_of_the_whole_vocabulary_and_it_is_served() -> None:
    records = np.frombuffer(top_k_rows(2, 6, rows_of(random_logits(2, 6)), 6, 2.0), top_k_record(6))
    assert np.isneginf(records["log_rest_t"]).all()


@pytest.mark.parametrize(
    ("logits", "temperature"), [([1.0, 2.0, 3.0], 1e-300), ([0.0, -3e4, -2e4], 1e-35)]
)
def test_a_temperature_beyond_float32_is_the_requests_fault(
    logits: list[float], temperature: float
) -> None:
    with pytest.raises(InvalidRequest, match="temperature") as caught:
        top_k_rows(1, 3, rows_of(torch.tensor([logits])), 1, temperature)
    assert caught.value.field == "temperature"


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_top_k_takes_no_memory_beyond_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(12, 64)
    chunks = [logits[row : row + 3].clone() for row in range(0, 12, 3)]
    monkeypatch.setattr(representations, "CHUNK_BYTES", 3 * 64 * 4)
    with LargestTensor() as largest:
        top_k_rows(12, 64, lambda start, stop: chunks[start // 3], 5, 2.0)
    assert largest.elements == 3 * 64


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(11, 64)
    whole = (
        bytes(dense_rows(11, 64, rows_of(logits))),
        bytes(top_k_rows(11, 64, rows_of(logits), 5, 2.0)),
    )
    for rows_a_chunk in (1, 2, 4):
        monkeypatch.setattr(representations, "CHUNK_BYTES", rows_a_chunk * 64 * 4)
        assert bytes(dense_rows(11, 64, rows_of(logits))) == whole[0]
        assert bytes(top_k_rows(11, 64, rows_of(logits), 5, 2.0)) == whole[1]


def test_logits_of_a_chunk_alone_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(10, 64)
    seen: list[int] = []

    def watched(start: int, stop: int) -> torch.Tensor:
        seen.append(stop - start)
        return logits[start:stop]

    monkeypatch.setattr(representations, "CHUNK_BYTES", 3 * 64 * 4)
    dense_rows(10, 64, watched)
    assert seen == [3, 3, 3, 1]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_never_leave(poison: float) -> None:
    values = random_logits(6, 16)
    values[4, 9] = poison
    with pytest.raises(TeacherError, match="asked position 4"):
        dense_rows(6, 16, rows_of(values))
    with pytest.raises(TeacherError, match="asked position 4"):
        top_k_rows(6, 16, rows_of(values), 3, 1.0)
    with pytest.raises(TeacherError, match="asked position 4"):
        hidden_rows(values)
    with pytest.raises(TeacherError):
        hidden_rows(values.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_rows_are_the_tensors_own_bytes(dtype: torch.dtype) -> None:
    values = random_logits(5, 7).to(dtype)
    rows = hidden_rows(values)
    assert len(rows) == 5 * 7 * values.element_size()
    back = torch.frombuffer(bytearray(rows), dtype=dtype).view(5, 7)
    assert torch.equal(back, values)
