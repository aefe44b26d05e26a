"""8- and 4-bit bodies by bitsandbytes' CPU kernels, compared with the dequantised weights."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lectern_common.errors import Misconfigured
from lectern_models.body_and_head import parity_probe, split
from lectern_models.loading import load_causal_lm, num_parameters
from lectern_models.quantization import quantization_of, require_packages
from tests.support.models import write_tiny_model

# bitsandbytes itself still uses it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=64)


def logits(model: PreTrainedModel, length: int = 23) -> torch.Tensor:
    with torch.no_grad():
        output = model(torch.arange(1, length + 1)[None], use_cache=False)
    logits_SV: torch.Tensor = output.logits[0].float()
    return logits_SV


def with_the_numbers_of(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Returns the unquantised model of plain transformers, with dequantised weights."""
    import bitsandbytes.functional as bnb

    plain = AutoModelForCausalLM.from_pretrained(folder)
    replaced = 0
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is not None and getattr(weight, "quant_state", None) is not None:
            values = bnb.dequantize_4bit(weight.data, weight.quant_state)
        elif weight is not None and weight.dtype is torch.int8:
            scale = weight.SCB if weight.SCB is not None else layer.state.SCB  # after a forward
            values = weight.data.float() * scale[:, None] / 127
        else:
            continue
        plain.get_submodule(name).weight.data = values
        replaced += 1
    assert replaced == 2 * 7  # every linear layer of both blocks
    return plain


def test_int4_computes_with_the_dequantised_weights(folder: Path) -> None:
    model = load_causal_lm(folder, quantization="int4")
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "nf4"
    stands_for = with_the_numbers_of(model, folder)
    torch.testing.assert_close(logits(model), logits(stands_for), atol=1e-4, rtol=0)
    assert not torch.allclose(logits(model), logits(load_causal_lm(folder)), atol=0.1)


def test_int8_is_within_a_tenth_of_the_spread_of_the_logits(folder: Path) -> None:
    model = load_causal_lm(folder, quantization="int8")
    own = logits(load_causal_lm(folder))
    error = logits(model) - own
    assert 0 < error.std() < 0.1 * own.std()
    # The weights alone are closer than that, but the states are rounded to 8 bits as well.
    stands_for = logits(with_the_numbers_of(model, folder))
    assert (stands_for - own).std() < error.std()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_head_is_not_quantised_and_the_probe_holds(
    folder: Path, quantization: str, dtype: str
) -> None:
    model = load_causal_lm(folder, dtype, quantization=quantization)
    parts = split(model)
    assert parts.projection.weight.dtype is getattr(torch, dtype)
    assert model.get_input_embeddings().weight.dtype is getattr(torch, dtype)
    own_head = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
    assert torch.equal(parts.projection.weight, own_head.to(getattr(torch, dtype)))
    assert parity_probe(model, parts) is None
    assert quantization_of(model) == quantization


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_parameters_are_counted_not_their_packed_bytes(folder: Path, quantization: str) -> None:
    model = load_causal_lm(folder, quantization=quantization)
    assert quantization_of(model) == quantization
    assert num_parameters(model) == num_parameters(AutoModelForCausalLM.from_pretrained(folder))


def test_int4_computes_every_position_independently(folder: Path) -> None:
    model = load_causal_lm(folder, quantization="int4")
    torch.testing.assert_close(logits(model)[:9], logits(model, 9), atol=1e-4, rtol=0)


def stored_in_4_bits(folder: Path, target: Path) -> Path:
    load_causal_lm(folder, quantization="int4").save_pretrained(target)
    return target


def test_weights_stored_in_4_bits_are_loaded_if_requested(folder: Path, tmp_path: Path) -> None:
    stored = stored_in_4_bits(folder, tmp_path / "stored")
    with pytest.raises(
        Misconfigured, match="is stored in int4; a teacher loads it with --quantization int4"
    ):
        load_causal_lm(stored)
    with pytest.raises(Misconfigured, match="is stored in int4"):
        load_causal_lm(stored, quantization="int8")
    model = load_causal_lm(stored, quantization="int4")
    torch.testing.assert_close(
        logits(model), logits(load_causal_lm(folder, quantization="int4")), atol=1e-5, rtol=0
    )


def test_weights_quantised_in_another_way_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Misconfigured, match=r"stored quantised \(gptq\), which is not supported"):
        load_causal_lm(folder)


def test_a_missing_package_is_refused_with_the_extra_to_install() -> None:
    require_packages("gguf", "a GGUF file", "gguf")
    with pytest.raises(Misconfigured, match=r"needs no_such_package: pip install 'lectern\[quan"):
        require_packages("quantized", "--quantization int8", "torch", "no_such_package")


@pytest.mark.gpu
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_on_a_gpu_agrees_with_the_cpu(folder: Path, quantization: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    on_gpu = load_causal_lm(folder, "float16", "cuda", quantization=quantization)
    assert {parameter.device.type for parameter in on_gpu.parameters()} == {"cuda"}
    assert parity_probe(on_gpu, split(on_gpu)) is None
    own = logits(load_causal_lm(folder, quantization=quantization))
    with torch.no_grad():
        ids = torch.arange(1, 24, device="cuda")[None]
        error = on_gpu(ids, use_cache=False).logits[0].float().cpu() - own
    assert error.std() < 0.05 * own.std()
