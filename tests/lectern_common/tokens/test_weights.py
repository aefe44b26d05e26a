"""The weights hash: equal for equal weights, whatever the dtype, sharding or order."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lectern_common.errors import CorruptData, NotFound
from lectern_common.tokens.weights import (
    _bfloat16_bits,
    cached_weights_sha256,
    safetensors_files,
    weights_sha256,
)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed.weight": torch.randn(33, 7, generator=generator),
        "norm.weight": torch.randn(7, generator=generator),
        "steps": torch.arange(5),
    }


def saved(path: Path, values: dict[str, torch.Tensor]) -> Path:
    save_file(values, path)
    return path


def test_a_bfloat16_copy_has_the_hash_of_its_float32_original(tmp_path: Path) -> None:
    wide = saved(tmp_path / "wide.safetensors", tensors())
    narrow = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in tensors().items()
    }
    assert weights_sha256([wide]) == weights_sha256([saved(tmp_path / "n.safetensors", narrow)])


def test_sharding_and_order_do_not_matter(tmp_path: Path) -> None:
    values = tensors()
    whole = saved(tmp_path / "whole.safetensors", values)
    first = saved(tmp_path / "1.safetensors", {"steps": values["steps"]})
    rest = saved(
        tmp_path / "2.safetensors", {name: values[name] for name in values if name != "steps"}
    )
    assert weights_sha256([whole]) == weights_sha256([rest, first])


@pytest.mark.parametrize("name", ["embed.weight", "norm.weight", "steps"])
def test_any_changed_value_changes_the_hash(tmp_path: Path, name: str) -> None:
    before = weights_sha256([saved(tmp_path / "a.safetensors", tensors())])
    changed = tensors()
    changed[name].view(-1)[-1] += 1
    assert weights_sha256([saved(tmp_path / "b.safetensors", changed)]) != before


def test_a_renamed_or_reshaped_tensor_changes_the_hash(tmp_path: Path) -> None:
    values = tensors()
    before = weights_sha256([saved(tmp_path / "a.safetensors", values)])
    reshaped = {**values, "embed.weight": values["embed.weight"].reshape(7, 33)}
    assert weights_sha256([saved(tmp_path / "b.safetensors", reshaped)]) != before


def test_rounding_to_bfloat16_equals_torchs(tmp_path: Path) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * 1e3
    ours = _bfloat16_bits(values.numpy())
    theirs = values.bfloat16().view(torch.int16).numpy().astype(np.uint16)
    assert (ours == theirs).all()


def test_the_exact_hash_sees_changes_that_rounding_hides(tmp_path: Path) -> None:
    values = tensors()
    first = saved(tmp_path / "a.safetensors", values)
    values["norm.weight"][0] = torch.nextafter(values["norm.weight"][0], torch.tensor(9.0))
    second = saved(tmp_path / "b.safetensors", values)
    assert weights_sha256([first]) == weights_sha256([second])
    assert weights_sha256([first], exact=True) != weights_sha256([second], exact=True)
    assert weights_sha256([first], exact=True) == weights_sha256([first], exact=True)


def test_truncated_and_foreign_files_are_corrupt(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", tensors())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptData, match="truncated"):
        weights_sha256([path])
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(CorruptData):
        weights_sha256([path])


def test_weight_files_come_from_the_index_or_the_single_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no model\.safetensors"):
        safetensors_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(NotFound, match="is a pickle"):
        safetensors_files(tmp_path)
    single = saved(tmp_path / "model.safetensors", tensors())
    assert safetensors_files(tmp_path) == [single]
    index = {"weight_map": {"a": "x-1.safetensors", "b": "../x-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert safetensors_files(tmp_path) == [single]  # as transformers chooses
    single.unlink()
    assert safetensors_files(tmp_path) == [
        tmp_path / "x-2.safetensors",
        tmp_path / "x-1.safetensors",
    ]
    with pytest.raises(NotFound, match="missing"):
        weights_sha256(safetensors_files(tmp_path))


def test_the_cached_hash_follows_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", tensors())
    first = cached_weights_sha256([path])
    assert first == cached_weights_sha256([path]) == weights_sha256([path])
    saved(path, {**tensors(), "steps": torch.arange(9)})
    assert cached_weights_sha256([path]) == weights_sha256([path]) != first
    path.unlink()
    with pytest.raises(NotFound):
        cached_weights_sha256([path])


def test_an_empty_tensor_counts_by_name_and_shape(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {**tensors(), "cache": torch.zeros(0, 3)})
    for exact in (False, True):
        other = saved(tmp_path / "b.safetensors", {**tensors(), "cache": torch.zeros(0, 4)})
        hashes = [weights_sha256([file], exact=exact) for file in (path, path, other)]
        assert hashes[0] == hashes[1] != hashes[2]
