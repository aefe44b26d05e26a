"""Rows as bytes: accuracy of the normalisers, chunks, and what is never sent."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lectern_common.errors import InvalidRequest, TeacherError
from lectern_common.wire.formats import (
    FORMATS,
    Representation,
    Widths,
    sampled_record,
    top_k_record,
    unpack_sampled,
)
from lectern_models.logits import blocks
from lectern_models.logits.blocks import AskedLogits
from lectern_models.logits.output_head import OutputHead
from teacher_server.engine import representations
from teacher_server.engine.representations import (
    hidden_rows,
    rows_of_hidden,
    rows_of_logits,
)
from teacher_server.engine.seam import ComputedRows, NoLongerWanted, SequenceAsk


def answered(
    logits: torch.Tensor, representation: Representation, temperature: float, asked=None
) -> ComputedRows:
    rows, width = logits.shape
    asked = np.ones(rows, bool) if asked is None else asked
    ids = np.arange(rows, dtype="<u4")
    ask = SequenceAsk(ids, asked, width, representation, temperature)
    return rows_of_logits(AskedLogits.of(asked, logits), ask)


def dense_rows(logits: torch.Tensor, asked=None) -> memoryview:
    return answered(logits, Representation("dense"), 1.0, asked).payload


def top_k_rows(logits: torch.Tensor, k: int, temperature: float, asked=None) -> memoryview:
    return answered(logits, Representation("top_k", k), temperature, asked).payload


def sampled_rows(logits: torch.Tensor, seed: int = 0, asked=None) -> ComputedRows:
    return answered(logits, Representation("sampled", num_draws=9, seed=seed), 2.0, asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_rows_have_the_size_of_their_format(name: str, dtype: torch.dtype) -> None:
    num_rows, vocab_size, hidden_size = 4, 5, 6
    numbers = {"top_k": 3, "num_draws": 256, "seed": 1}  # enough draws for every id of a flat row
    taken = {key: numbers[key] for key in FORMATS[name].parameters}
    asked = Representation(name, **taken)
    widths = Widths(vocab_size, hidden_size, str(dtype).removeprefix("torch."))
    hidden = torch.full((num_rows, hidden_size), 0.5, dtype=dtype)
    head = OutputHead(torch.full((vocab_size, hidden_size), 0.5))
    ids, everywhere = np.arange(num_rows, dtype="<u4"), np.ones(num_rows, bool)
    ask = SequenceAsk(ids, everywhere, vocab_size, asked, 1.0)
    rows = (
        hidden_rows(hidden)
        if name == "hidden"
        else rows_of_hidden(hidden, head, ask, wanted=lambda: True)
    )
    row_bytes = asked.row_bytes(widths)
    assert len(rows.payload) == num_rows * row_bytes
    if FORMATS[name].rows_differ:
        assert asked.header_row_bytes(widths) == 0
        assert rows.row_lengths is not None
        assert rows.row_lengths.tolist() == [row_bytes // 8] * num_rows
    else:
        assert asked.header_row_bytes(widths) == row_bytes
        assert rows.row_lengths is None


def blocks_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blocks._BLOCK_ROWS, "cpu", rows)


def random_logits(rows: int, width: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [2048, 151_936])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_normalisers_equal_float64_to_float32_precision(width: int, temperature: float) -> None:
    logits = random_logits(3, width)
    records = np.frombuffer(top_k_rows(logits, 4, temperature), top_k_record(4))
    scaled = logits.double() / temperature
    rest = scaled.scatter(-1, logits.topk(4).indices, -torch.inf)
    for name, outcomes in (("log_rest_t", rest), ("log_normalizer_t", scaled)):
        exact = torch.logsumexp(outcomes, -1).numpy()
        np.testing.assert_allclose(records[name], exact, rtol=2.5e-7, atol=0)


def test_huge_logits_do_not_overflow_the_normaliser() -> None:
    logits = torch.tensor([[3e4, -3e4, 2.9e4]])
    record = np.frombuffer(top_k_rows(logits, 1, 0.01), top_k_record(1))[0]
    assert record["log_rest_t"] == 2.9e6
    assert record["log_normalizer_t"] == 3e6


def test_top_k_of_the_whole_vocabulary_has_no_rest() -> None:
    records = np.frombuffer(top_k_rows(random_logits(2, 6), 6, 2.0), top_k_record(6))
    assert np.isneginf(records["log_rest_t"]).all()


@pytest.mark.parametrize(
    ("logits", "temperature"), [([1.0, 2.0, 3.0], 1e-300), ([0.0, -3e4, -2e4], 1e-35)]
)
def test_a_temperature_that_overflows_float32_is_an_invalid_request(
    logits: list[float], temperature: float
) -> None:
    with pytest.raises(InvalidRequest, match="temperature") as caught:
        top_k_rows(torch.tensor([logits]), 1, temperature)
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


def test_top_k_takes_no_memory_beyond_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(12, 64)
    blocks_of(3, monkeypatch)
    parts = [logits[row : row + 3].clone() for row in range(0, 12, 3)]
    ask = SequenceAsk(
        np.arange(12, dtype="<u4"), np.ones(12, bool), 64, Representation("top_k", 5), 2.0
    )
    with LargestTensor() as largest:
        rows_of_logits(AskedLogits(ask.asked_S, "cpu", lambda start: parts[start // 3]), ask)
    assert largest.elements == 3 * 64


def test_the_size_of_blocks_does_not_change_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(11, 64)
    whole = bytes(dense_rows(logits)), bytes(top_k_rows(logits, 5, 2.0)), sampled_rows(logits)
    for rows in (1, 2, 4):
        blocks_of(rows, monkeypatch)
        assert bytes(dense_rows(logits)) == whole[0]
        assert bytes(top_k_rows(logits, 5, 2.0)) == whole[1]
        assert sampled_rows(logits).payload == whole[2].payload
    assert sampled_rows(logits, seed=1).payload != whole[2].payload


def test_only_blocks_with_an_asked_position_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = random_logits(10, 64)
    seen: list[int] = []

    def watched(start: int) -> torch.Tensor:
        seen.append(start)
        return logits[start : start + 3]

    blocks_of(3, monkeypatch)
    asked = np.zeros(10, bool)
    asked[[1, 2, 9]] = True
    ask = SequenceAsk(np.arange(10, dtype="<u4"), asked, 64, Representation("dense"), 1.0)
    rows = rows_of_logits(AskedLogits(asked, "cpu", watched), ask).payload
    assert seen == [0, 9]
    assert bytes(rows) == logits[[1, 2, 9]].numpy().tobytes()


@pytest.mark.parametrize(
    ("poison", "ids"), [("nan", 9), ("inf", 9), ("-inf", slice(None))], ids=str
)
def test_values_that_are_not_finite_are_never_sent(poison: str, ids: int | slice) -> None:
    values = random_logits(6, 16)
    values[4, ids] = float(poison)
    for rows in (dense_rows, lambda logits: top_k_rows(logits, 3, 1.0), sampled_rows):
        with pytest.raises(TeacherError, match="asked position 4"):
            rows(values)
    # Hidden states say from which row on they cannot be used.
    assert hidden_rows(values).first_bad_row == 4
    assert hidden_rows(values.bfloat16()).first_bad_row == 4
    assert hidden_rows(values[:4]).first_bad_row is None


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 3e38])
def test_positions_that_are_not_asked_never_matter(poison: float) -> None:
    values = random_logits(40, 16)
    asked = np.zeros(40, bool)
    asked[[0, 7, 33]] = True
    clean = (
        bytes(dense_rows(values, asked)),
        bytes(top_k_rows(values, 3, 0.5, asked)),
        bytes(sampled_rows(values, asked=asked).payload),
    )
    values[~asked] = poison
    assert bytes(dense_rows(values, asked)) == clean[0]
    assert bytes(top_k_rows(values, 3, 0.5, asked)) == clean[1]
    drawn = sampled_rows(values, asked=asked)
    assert bytes(drawn.payload) == clean[2]
    assert drawn.row_lengths is not None and len(drawn.row_lengths) == 3


def test_masked_ids_are_sent_as_they_are_and_never_drawn() -> None:
    values = random_logits(6, 16)
    values[4, [0, 9]] = float("-inf")
    dense = np.frombuffer(dense_rows(values), "<f4").reshape(6, 16)
    assert np.isneginf(dense).nonzero()[1].tolist() == [0, 9]
    for k, masked, rest in ((3, 0, False), (14, 0, True), (15, 1, True)):
        record = np.frombuffer(top_k_rows(values, k, 1.0), top_k_record(k))[4]
        assert np.isneginf(record["logits"]).sum() == masked
        assert np.isneginf(record["log_rest_t"]) == rest and np.isfinite(record["log_normalizer_t"])
    records = sampled_rows(values[4:5]).payload
    drawn = unpack_sampled(np.frombuffer(records, sampled_record()))
    assert not {0, 9} & set(drawn[0].tolist())


def test_nothing_more_is_computed_after_the_client_has_gone() -> None:
    answers = iter([True, True, False])
    ask = SequenceAsk(np.zeros(1000, "<u4"), np.ones(1000, bool), 8, Representation("dense"), 1.0)
    with pytest.raises(NoLongerWanted):
        rows_of_hidden(
            torch.zeros(1000, 4), OutputHead(torch.zeros(8, 4)), ask, wanted=lambda: next(answers)
        )
    assert next(answers, None) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_rows_are_the_tensors_own_bytes(dtype: torch.dtype) -> None:
    values = random_logits(5, 7).to(dtype)
    rows = hidden_rows(values).payload
    assert len(rows) == 5 * 7 * values.element_size()
    back = torch.frombuffer(bytearray(rows), dtype=dtype).view(5, 7)
    assert torch.equal(back, values)


def test_every_format_has_a_producer() -> None:
    assert {*representations._OF_LOGITS, "hidden"} == set(FORMATS)
