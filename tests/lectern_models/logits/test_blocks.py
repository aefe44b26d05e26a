"""Logits in blocks: a row depends on nothing but its own hidden state and its position."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lectern_models.logits.blocks import AskedLogits, draws_of, top_k_of, values_and_ranks
from lectern_models.logits.output_head import HeadTransform, OutputHead

# MKL chooses its kernels when torch is loaded.
CHECK = """
import torch
from tests.lectern_models.logits.test_blocks import differing
for threads in (1, 2):
    torch.set_num_threads(threads)
    print(threads, differing())
"""


def inputs(positions: int, vocab_size: int, hidden_size: int) -> tuple[torch.Tensor, OutputHead]:
    generator = torch.Generator().manual_seed(positions)
    weight = torch.randn(vocab_size, hidden_size, generator=generator)
    bias = torch.randn(vocab_size, generator=generator)
    hidden = torch.randn(positions, hidden_size, generator=generator)
    return hidden, OutputHead(weight, bias, HeadTransform(soft_cap=30.0))


def rows(hidden: torch.Tensor, head: OutputHead, asked: np.ndarray) -> dict[str, np.ndarray]:
    found = list(AskedLogits.of_hidden(asked, hidden, head).blocks())
    top_k = [top_k_of(block, 5, 1.7) for block in found]
    uniforms = np.linspace(0, 0.999, 7)[None].repeat(asked.sum(), 0)
    draws = [draws_of(block, uniforms, 1.7) for block in found]
    values = {
        "logits": [block.taken(block.logits_CV) for block in found],
        "ids": [part[1] for part in top_k],
        "log rest": [part[2] for part in top_k],
        "log normalizer": [part[3] for part in top_k],
        "draws": [part.row_lengths_C for part in draws],
    }
    joined = {name: torch.cat(parts).numpy() for name, parts in values.items()}
    log_probs = torch.cat([part.log_probs_R for part in draws]).split(joined["draws"].tolist())
    wide = np.zeros((len(log_probs), 7), "f4")
    for row, values_R in zip(wide, log_probs, strict=True):
        row[: len(values_R)] = values_R
    return joined | {"log probs": wide}


def differing() -> list[str]:
    """Returns the parts of answers that differ if fewer positions are asked."""
    draw = np.random.default_rng(0)
    found = []
    for positions, vocab_size, hidden_size in ((1, 37, 8), (45, 517, 24), (34, 33_001, 16)):
        hidden, head = inputs(positions, vocab_size, hidden_size)
        everywhere = rows(hidden, head, np.ones(positions, bool))
        masks = [np.arange(positions) >= positions - count for count in (1, 2, 3)]
        if vocab_size < 1000:
            masks += [np.arange(positions) == index for index in range(0, positions, 7)]
            masks += [np.arange(positions) >= positions - count for count in (7, 11, 33)]
            masks += [draw.random(positions) < share for share in (0.1, 0.5, 0.9)]
        for mask in filter(np.any, masks):
            for name, part in rows(hidden, head, mask).items():
                if part.tobytes() != everywhere[name][mask].tobytes():
                    found.append(f"{name} of {mask.sum()} of {positions} positions")
    return found


@pytest.mark.parametrize(
    "kernels",
    [
        *(None, "COMPATIBLE"),
        *(pytest.param(other, marks=pytest.mark.long) for other in ("AVX2", "SSE4_2")),
    ],
)
def test_rows_are_byte_equal_whichever_positions_are_asked(kernels: str | None) -> None:
    chosen = {} if kernels is None else {"MKL_CBWR": kernels}
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "OMP_NUM_THREADS": "2", **chosen},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["1 []", "2 []"]


def test_rows_equal_the_head_in_float64() -> None:
    hidden, head = inputs(70, 517, 24)
    asked = np.arange(70) % 3 == 0
    exact = OutputHead(head.weight_VD.double(), head.bias_V, head.transform).logits(hidden.double())
    for block in AskedLogits.of_hidden(asked, hidden, head).blocks():
        taken = block.taken(block.logits_CV)
        torch.testing.assert_close(
            taken.double(), exact[np.flatnonzero(asked)[block.rows]], rtol=0, atol=1e-5
        )


def test_places_count_equal_logits_by_rising_id() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randint(-4, 4, (50, 23), generator=generator).float()  # full of equal ones
    logits[7, 5:] = -torch.inf
    asked = np.arange(50) % 2 == 1
    ids = np.random.default_rng(0).integers(0, 23, (25, 3))
    values, places = [], []
    for block in AskedLogits.of(asked, logits).blocks():
        found = values_and_ranks(block, ids[block.rows])
        values.append(found[0])
        places.append(found[1])
    rows = logits[torch.from_numpy(asked)]
    expected = []
    for row, first in zip(rows.tolist(), ids[:, 0].tolist(), strict=True):
        falling = sorted((-value, token_id) for token_id, value in enumerate(row))
        expected.append(falling.index((-row[first], first)) + 1)
    assert torch.cat(places).tolist() == expected
    assert torch.equal(torch.cat(values), rows.gather(1, torch.from_numpy(ids)))
    (whole,) = AskedLogits.of(np.ones(4, bool), logits[:4]).blocks()
    _, top_ids, *_ = top_k_of(whole, 23, 1.0)
    for place in range(23):
        _, ranks = values_and_ranks(whole, top_ids[:, place : place + 1].numpy())
        assert ranks.tolist() == [place + 1] * 4
