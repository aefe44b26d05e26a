"""Loading: only safetensors, no code of the model's own, equal weights for equal seeds."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lectern_common.errors import CorruptData, Misconfigured, NotFound
from lectern_models.loading import (
    build_causal_lm,
    load_causal_lm,
    max_positions,
    num_parameters,
    tokenizer_map,
)
from tests.support.models import write_tiny_model


def test_loaded_weights_equal_the_stored_ones(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    ours = load_causal_lm(folder).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_dtype_is_the_stored_one_by_default(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, dtype="bfloat16")
    assert load_causal_lm(folder).dtype is torch.bfloat16
    assert load_causal_lm(folder, "float32").dtype is torch.float32
    assert not load_causal_lm(folder).training


def test_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"pytorch_model\.bin is a pickle and is never loaded"):
        load_causal_lm(folder)


def test_a_models_own_code_is_not_run(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    marker = tmp_path / "it_ran"
    source = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    (folder / "modeling_evil.py").write_text(source)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "evil"
    config["auto_map"] = {
        "AutoConfig": "modeling_evil.EvilConfig",
        "AutoModelForCausalLM": "modeling_evil.EvilForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Misconfigured):
        load_causal_lm(folder)
    with pytest.raises(Misconfigured):
        build_causal_lm(folder, 0)
    assert not marker.exists()


def test_missing_tensors_are_refused_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_tiny_model(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptData, match=r"lacks 1 of the model's tensors, model\.norm\.weight"):
        load_causal_lm(folder)


def test_tensors_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(CorruptData):
        load_causal_lm(folder)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(CorruptData):
        load_causal_lm(folder)


@pytest.mark.parametrize(("text", "error"), [(None, NotFound), ("{", CorruptData)])
def test_a_folder_that_is_not_a_model_is_refused(
    tmp_path: Path, text: str | None, error: type[Exception]
) -> None:
    folder = write_tiny_model(tmp_path)
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(error, match=r"config\.json"):
        load_causal_lm(folder)


def test_equal_seeds_give_equal_weights_and_others_do_not(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path, weights=False)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (build_causal_lm(folder, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert {value.dtype for value in first.values()} == {torch.float32}


def test_tied_parameters_count_once(tmp_path: Path) -> None:
    tied = load_causal_lm(write_tiny_model(tmp_path / "tied", tied=True))
    untied = load_causal_lm(write_tiny_model(tmp_path / "untied", tied=False))
    assert num_parameters(untied) - num_parameters(tied) == 97 * 32


def test_learnt_and_other_limits_are_read_under_their_own_names(tmp_path: Path) -> None:
    for architecture, name in (("mpt", "max_seq_len"), ("rwkv", "context_length")):
        sizes = {"d_model": 32, "n_layers": 1, "n_heads": 4, "attention_hidden_size": 32}
        config = AutoConfig.for_model(
            architecture, vocab_size=97, hidden_size=32, num_hidden_layers=2, **sizes, **{name: 48}
        )
        config.save_pretrained(tmp_path / architecture)
        assert max_positions(build_causal_lm(tmp_path / architecture, 0)) == 48
    no_limit = AutoConfig.for_model("mamba", vocab_size=97, hidden_size=32, num_hidden_layers=1)
    no_limit.save_pretrained(tmp_path / "mamba")
    assert max_positions(build_causal_lm(tmp_path / "mamba", 0)) is None


def test_max_positions_is_read_under_every_name(tmp_path: Path) -> None:
    for architecture in ("qwen2", "gpt2"):
        folder = write_tiny_model(tmp_path / architecture, architecture, max_positions=48)
        assert max_positions(load_causal_lm(folder)) == 48


def test_tokenizer_map_is_none_without_a_tokenizer(tmp_path: Path) -> None:
    assert tokenizer_map(write_tiny_model(tmp_path / "without")) is None
    with_one = write_tiny_model(tmp_path / "with", tokenizer=True, vocab_size=300)
    tokens = tokenizer_map(with_one)
    assert tokens is not None and tokens["<|endoftext|>"] == 0 and len(tokens) >= 257


def test_a_config_that_its_architecture_cannot_build_is_refused_with_the_reason(
    tmp_path: Path,
) -> None:
    one_layer = AutoConfig.for_model("rwkv", vocab_size=97, hidden_size=32, num_hidden_layers=1)
    one_layer.save_pretrained(tmp_path)
    with pytest.raises(Misconfigured, match=r"cannot build a model from .*: division by zero"):
        build_causal_lm(tmp_path, 0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    with pytest.raises(Misconfigured, match=r"cannot build a model from .*hidden_size"):
        build_causal_lm(tmp_path, 0)
