"""Products with a head's weight: float32 for any stored dtype, a 16-bit weight in pieces.

Legend: N tokens, V vocabulary, D hidden size.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lectern_models.logits import products
from lectern_models.logits.products import add_gradient_by_weight, gradient_by_hidden, projected

torch.set_num_threads(1)

N, V, D = 40, 300, 24


def factors(dtype=torch.float32, weight_dtype=torch.float32):
    """Returns hidden states [N, D], weight [V, D] and gradient [N, V], all exact in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    hidden_ND, weight_VD, gradient_NV = (
        torch.randn(*shape, generator=generator).bfloat16() for shape in ((N, D), (V, D), (N, V))
    )
    return hidden_ND.to(dtype), weight_VD.to(weight_dtype), gradient_NV.to(dtype)


def by_out(hidden_ND, weight_VD, dtype=torch.float32):
    return projected(hidden_ND, weight_VD, torch.empty(len(hidden_ND), V, dtype=dtype))


def error(ours, exact):
    return ((ours.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("piece_numel", [1, 7 * D, 299 * D, 1 << 20])
def test_a_16_bit_weight_in_pieces_gives_the_same_as_its_float32_copy(piece_numel, monkeypatch):
    monkeypatch.setattr(products, "_PIECE_NUMEL", piece_numel)
    hidden_ND, weight_VD, gradient_NV = factors()
    exact_NV = hidden_ND.double() @ weight_VD.double().T
    exact_ND = gradient_NV.double() @ weight_VD.double()
    for weight in (weight_VD, weight_VD.bfloat16(), weight_VD.half()):
        assert error(by_out(hidden_ND, weight), exact_NV) < 3e-7
        assert error(by_out(hidden_ND.bfloat16(), weight), exact_NV) < 3e-7
        assert error(projected(hidden_ND.bfloat16(), weight), exact_NV) < 3e-7
        assert error(gradient_by_hidden(gradient_NV, weight), exact_ND) < 3e-7


def test_float64_hidden_states_give_float64():
    hidden_ND, weight_VD, gradient_NV = factors(torch.float64)
    exact_NV = hidden_ND @ weight_VD.double().T
    assert error(by_out(hidden_ND, weight_VD, torch.float64), exact_NV) < 1e-15
    result_ND = gradient_by_hidden(gradient_NV, weight_VD)
    assert error(result_ND, gradient_NV @ weight_VD.double()) < 1e-15


def test_the_weight_gradient_is_added_to_the_existing_sum():
    hidden_ND, _, gradient_NV = factors()
    sum_VD = torch.ones(V, D)
    for hidden in (hidden_ND, hidden_ND.bfloat16()):
        add_gradient_by_weight(sum_VD, gradient_NV, hidden)
    assert error(sum_VD, 1 + 2 * (gradient_NV.double().T @ hidden_ND.double())) < 3e-7


@pytest.mark.parametrize("size", [(300, 24), (1500, 256), (777, 896)])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 8, 15, 16, 17, 39])
def test_any_number_of_rows_is_as_exact(size, num_rows):
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(num_rows, size[1], generator=generator)
    weight_VD = torch.randn(*size, generator=generator)
    out_NV = torch.empty(num_rows, size[0])
    assert projected(hidden_ND, weight_VD, out_NV) is out_NV
    exact_NV = hidden_ND.double() @ weight_VD.double().T
    bound_NV = hidden_ND.double().abs() @ weight_VD.double().abs().T
    # The float32 sum of D products is off by at most D roundings of their absolute sum.
    assert ((out_NV.double() - exact_NV).abs() <= size[1] * 2**-24 * bound_NV).all()


class LargestFloat32(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32:
                self.numel = max(self.numel, leaf.numel())
        return result


def test_no_float32_copy_of_a_16_bit_weight_is_made(monkeypatch):
    monkeypatch.setattr(products, "_PIECE_NUMEL", 50 * D)
    hidden_ND, weight_VD, gradient_NV = factors(weight_dtype=torch.bfloat16)
    few_nD, few_nV = hidden_ND[:2], gradient_NV[:2]
    with LargestFloat32() as largest:
        projected(few_nD, weight_VD, torch.empty(2, V))
        gradient_by_hidden(few_nV, weight_VD)
    assert largest.numel <= max(50 * D, 16 * V)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_multiplies_16_bits_and_adds_in_float32():
    hidden_ND, weight_VD, gradient_NV = (x.cuda().bfloat16() for x in factors())
    assert products.product_dtype(hidden_ND) == torch.bfloat16
    out_NV, sum_VD = torch.empty(N, V, device="cuda"), torch.ones(V, D, device="cuda")
    exact_NV = hidden_ND.double() @ weight_VD.double().T
    assert error(projected(hidden_ND, weight_VD, out_NV), exact_NV) < 3e-7
    result_ND = gradient_by_hidden(gradient_NV, weight_VD)
    assert result_ND.dtype == torch.float32
    assert error(result_ND, gradient_NV.double() @ weight_VD.double()) < 3e-7
    add_gradient_by_weight(sum_VD, gradient_NV, hidden_ND)
    assert error(sum_VD, 1 + gradient_NV.double().T @ hidden_ND.double()) < 3e-7
