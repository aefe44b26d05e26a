"""Devices, attention and compilation: used as requested, or refused with what to set."""

from pathlib import Path

import pytest
import torch

from lectern_common.errors import Misconfigured
from lectern_models.body_and_head import parity_probe, split
from lectern_models.loading import load_causal_lm
from lectern_models.placement import (
    BALANCED,
    compile_in_place,
    device_names,
    require_all_on_gpus,
    require_attention,
    resolved_device,
)
from tests.support.models import write_tiny_model


@pytest.mark.parametrize("device", ["", "tpu", "cpu:1", "cuda:", "cuda:x", "gpu", "Balanced"])
def test_an_invalid_device_is_refused(device: str) -> None:
    with pytest.raises(Misconfigured, match="is not one of auto, cpu, cuda, cuda:1, balanced"):
        resolved_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_auto_is_the_cpu_and_the_rest_is_refused() -> None:
    assert resolved_device("auto") == resolved_device("cpu") == "cpu"
    for device in ("cuda", "cuda:0", BALANCED):
        with pytest.raises(Misconfigured, match=f"--device {device}, but this torch .* sees no"):
            resolved_device(device)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_as_requested(tmp_path: Path, attention: str) -> None:
    folder = write_tiny_model(tmp_path)
    model = load_causal_lm(folder, attention=attention)
    assert model.config._attn_implementation == attention
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        own, theirs = (m(ids, use_cache=False).logits for m in (model, load_causal_lm(folder)))
    torch.testing.assert_close(own, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("attention", "dtype", "device", "says"),
    [
        ("flash", "auto", "cpu", "is not one of auto, sdpa, eager, flash_attention_2"),
        ("kernels-community/flash-attn", "auto", "cuda", "is not one of"),
        ("flash_attention_2", "auto", "cpu", "needs a CUDA device"),
    ],
)
def test_unavailable_attention_is_refused(
    attention: str, dtype: str, device: str, says: str
) -> None:
    with pytest.raises(Misconfigured, match=says):
        require_attention(attention, dtype, device)


def test_layers_that_are_not_on_a_gpu_are_refused() -> None:
    require_all_on_gpus({})
    require_all_on_gpus({"": "cpu"})
    require_all_on_gpus({"model.embed_tokens": 0, "model.layers.0": 1, "lm_head": 1})
    for place in ("cpu", "disk"):
        with pytest.raises(Misconfigured, match="does not fit into the memory of this host's GPUs"):
            require_all_on_gpus({"model.embed_tokens": 0, "model.layers.0": place})


def test_the_device_of_a_model_is_named(tmp_path: Path) -> None:
    assert device_names(load_causal_lm(write_tiny_model(tmp_path))) == "cpu"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler, of torch's jit
def test_a_model_that_cannot_be_compiled_is_refused() -> None:
    class Breaking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
            raise RuntimeError("no compiler on this machine")

    with pytest.raises(Misconfigured, match="--compile does not work here; leave it out"):
        compile_in_place(Breaking())


@pytest.mark.gpu
def test_a_balanced_model_answers_like_one_on_a_single_gpu(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    folder = write_tiny_model(tmp_path, layers=4)
    single = load_causal_lm(folder, device="cuda:0")
    balanced = load_causal_lm(folder, device=resolved_device(BALANCED))
    used = {parameter.device for parameter in balanced.parameters()}
    assert len(used) == min(torch.cuda.device_count(), len(used))
    assert all(device.type == "cuda" for device in used)
    assert device_names(single).startswith("cuda:0 (")
    parts = split(balanced)
    assert parity_probe(balanced, parts) is None
    ids = torch.arange(1, 20)[None]
    with torch.inference_mode():
        ours = parts.head().logits(parts.hidden_states(ids.to(balanced.device))[0])
        theirs = single(ids.to("cuda:0"), use_cache=False).logits[0]
    assert ours.device == parts.projection.weight.device
    torch.testing.assert_close(ours.cpu(), theirs.cpu(), atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_flash_attention_agrees_with_sdpa(tmp_path: Path) -> None:
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not torch.cuda.is_available() or not is_flash_attn_2_available():
        pytest.skip("needs a CUDA device and flash-attn")
    folder = write_tiny_model(tmp_path, dtype="bfloat16")
    ids = torch.arange(1, 20, device="cuda")[None]
    with pytest.raises(Misconfigured, match="needs --dtype bfloat16 or float16"):
        load_causal_lm(folder, "float32", "cuda", attention="flash_attention_2")
    models = [
        load_causal_lm(folder, device="cuda", attention=name)
        for name in ("flash_attention_2", "sdpa")
    ]
    with torch.inference_mode():
        flash, sdpa = (model(ids, use_cache=False).logits.float() for model in models)
    assert (flash - sdpa).abs().max() < 0.05 * sdpa.std()
