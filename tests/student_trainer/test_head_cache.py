"""Output heads on disk."""

from pathlib import Path

import pytest
import torch

from lectern_models.output_head import HeadTransform, OutputHead
from student_trainer.head_cache import cached_head_path, read_cached_head, write_cached_head


def test_a_head_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    transform = HeadTransform(scale=0.5, divisor=3.0, soft_cap=30.0)
    head = OutputHead(torch.randn(7, 3).bfloat16(), torch.randn(7).bfloat16(), transform)
    path = cached_head_path(tmp_path, "f" * 64, 7)
    write_cached_head(path, head)
    again = read_cached_head(path)
    assert again is not None
    assert torch.equal(again.weight_VD, head.weight_VD)
    assert again.bias_V is not None
    assert head.bias_V is not None
    assert torch.equal(again.bias_V, head.bias_V)
    assert again.transform == transform
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_head_without_bias_has_none_again(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    write_cached_head(path, OutputHead(torch.randn(4, 2)))
    again = read_cached_head(path)
    assert again is not None
    assert again.bias_V is None
    assert again.transform == HeadTransform()


def test_an_absent_head_is_none(tmp_path: Path) -> None:
    assert read_cached_head(tmp_path / "none") is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_head_counts_as_absent(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "head.safetensors"
    write_cached_head(path, OutputHead(torch.randn(8, 4)))
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    elif damage == "truncate":
        del data[-4:]
    elif damage == "empty":
        data.clear()
    else:
        data = bytearray(b"not safetensors at all")
    path.write_bytes(bytes(data))
    assert read_cached_head(path) is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "heads").write_text("a file where the folder should be")
    path = cached_head_path(tmp_path, "f" * 64, 4)
    write_cached_head(path, OutputHead(torch.randn(4, 2)))
    assert read_cached_head(path) is None
