"""Shallower students: every tensor equals its source, and unsuitable models are refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from structlog.testing import capture_logs
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lectern_common.errors import InvalidSpec
from lectern_models.loading import load_causal_lm
from student_trainer.student import layers as kept_layers
from student_trainer.student.layers import keep_every_nth_layer
from tests.support.models import write_tiny_model

torch.set_num_threads(1)

# Settings of the whole model, on top of the config in tests/support/models.py.
SLIDING: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3}
CUT: dict[str, dict[str, Any]] = {
    "qwen2": SLIDING,
    "qwen3": {},
    "llama": {"tied": True},
    "phi": {},
    "gpt2": {},
    "opt": {},
    "bloom": {"n_head": 4},
    "gpt_neox": {},
    "gemma2": {"sliding_window": 4},
    "mixtral": {},
}
_LAYER = re.compile(r"(?<=\.)(\d+)(?=\.)")


def logits(model: PreTrainedModel) -> Tensor:
    """Returns the logits of rows that are longer than any window above."""
    ids = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits_BSV: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return logits_BSV


def source_name(name: str, n: int) -> str:
    """Returns the name that a tensor of the cut model had before."""
    return _LAYER.sub(lambda match: str(int(match.group(1)) * n), name, count=1)


@pytest.mark.parametrize("architecture", CUT)
def test_every_kept_tensor_equals_its_source_and_there_are_no_others(
    tmp_path: Path, architecture: str
) -> None:
    folder = write_tiny_model(tmp_path / "whole", architecture, layers=5, **CUT[architecture])
    whole = load_causal_lm(folder, "float32").state_dict()
    model = load_causal_lm(folder, "float32")
    assert keep_every_nth_layer(model, 3) == [0, 3]

    cut = model.state_dict()
    for name, tensor in cut.items():
        assert torch.equal(tensor, whole[source_name(name, 3)]), name
    outside = {name for name in whole if _LAYER.search(name) is None}
    of_one = {name for name in whole if (match := _LAYER.search(name)) and match.group(1) == "0"}
    assert len(cut) == len(outside) + 2 * len(of_one)
    assert len(whole) == len(outside) + 5 * len(of_one)

    # The saved model is what plain transformers builds from the new config.
    model.save_pretrained(tmp_path / "cut")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert loaded.config.num_hidden_layers == 2
    assert torch.equal(logits(loaded), logits(model))
    stored, source = (load_file(tmp_path / part / "model.safetensors") for part in ("cut", "whole"))
    for name, tensor in stored.items():
        assert torch.equal(tensor, source[source_name(name, 3)]), name


def test_kept_layers_compute_the_same_as_before(tmp_path: Path) -> None:
    """Layer by layer, by hand: only layer 3 has a window, of 4."""
    folder = write_tiny_model(tmp_path / "whole", layers=4, **SLIDING)
    whole, model = load_causal_lm(folder, "float32"), load_causal_lm(folder, "float32")
    assert whole.config.layer_types == [*["full_attention"] * 3, "sliding_attention"]
    keep_every_nth_layer(model, 3)
    assert model.config.layer_types == ["full_attention", "sliding_attention"]
    assert model.model.layers[1].self_attn.sliding_window == 4
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1]
    for layer in (whole.model.layers[1], whole.model.layers[2]):
        # A residual layer whose last products are zero passes on its input.
        with torch.no_grad():
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    assert torch.equal(logits(model), logits(whole))


def test_losing_a_kind_of_layer_gives_a_warning(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "whole", "gemma2", layers=4, sliding_window=4)
    with capture_logs() as logs:
        assert keep_every_nth_layer(load_causal_lm(folder, "float32"), 3) == [0, 3]
        assert logs == []
        assert keep_every_nth_layer(load_causal_lm(folder, "float32"), 2) == [0, 2]
    [told] = logs
    assert (told["event"], told["kinds"]) == ("layer_kind_gone", ["full_attention"])


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("architecture", "settings", "why"),
    [
        # Every second layer is a mixture of experts, counted from the first.
        ("qwen3_moe", {**EXPERTS, "decoder_sparse_step": 2}, r"layers\.1\.mlp\.\w+ is "),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            r"h\.1\.attn\.scaling is 0\.1.* be 0\.1",
        ),
        (
            "gpt_neo",
            {"attention_types": [[["global", "local"], 2]]},
            r"attn\.layer_id is 2, but would be 1",
        ),
        ("qwen2", {"layers": 1}, "the student has 1 layer, so none can be left out"),
    ],
)
def test_settings_that_depend_on_the_layer_index_are_refused_by_name(
    tmp_path: Path, architecture: str, settings: dict[str, Any], why: str
) -> None:
    folder = write_tiny_model(tmp_path / "whole", architecture, **{"layers": 4, **settings})
    with pytest.raises(InvalidSpec, match=why) as refusal:
        keep_every_nth_layer(load_causal_lm(folder, "float32"), 2)
    assert refusal.value.field == "student.keep_every_nth_layer"


def test_a_forward_that_depends_on_the_layer_index_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "whole", layers=4)
    for looks, refused in ((False, False), (True, True)):
        model = load_causal_lm(folder, "float32")
        for layer in model.model.layers:
            layer.register_forward_pre_hook(
                lambda layer, given, looks=looks: (
                    (given[0] * (1 + layer.self_attn.layer_idx), *given[1:]) if looks else None
                )
            )
        if refused:
            with pytest.raises(InvalidSpec, match="compute something else"):
                keep_every_nth_layer(model, 2)
        else:
            keep_every_nth_layer(model, 2)


def test_a_model_without_a_single_list_of_layers_is_refused(tmp_path: Path) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "two", layers=2), "float32")
    model.model.others = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
    with pytest.raises(InvalidSpec, match=r"has 2 lists of its 2 layers \(model\.layers, model\.o"):
        keep_every_nth_layer(model, 2)


def test_a_config_that_builds_another_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_causal_lm(write_tiny_model(tmp_path / "whole", layers=4, **SLIDING), "float32")
    whole = AutoConfig.from_pretrained(tmp_path / "whole")

    def count_alone(config: Any, _count: int, kept: list[int]) -> None:
        config.num_hidden_layers = len(kept)
        config.layer_types = whole.layer_types[: len(kept)]

    monkeypatch.setattr(kept_layers, "_shorten", count_alone)
    with pytest.raises(InvalidSpec, match=r"has_sliding_layers is True, but would be False"):
        keep_every_nth_layer(model, 3)
