"""GELU of a linear map in one kernel against float64, and where that kernel serves."""

import pytest
import torch
from ace_kernels import KernelInputError, linear_gelu
from kernel_reference import INTERPRETING
from torch.nn import functional

# Rows, inputs, outputs: less than a tile, ragged in each direction, several tiles, more tiles than programs.
SHAPES = [(1, 8, 8), (70, 40, 24), (130, 72, 264), (300, 200, 520), (1100, 64, 1024)]
ROUNDING = {torch.bfloat16: 2**-7 if INTERPRETING else 2**-8, torch.float16: 2**-10}


@pytest.fixture
def all_rows(monkeypatch):
    """The kernel serves few rows too."""
    monkeypatch.setattr(linear_gelu, "LEAST_ROWS", 1)


def problem(rows, inputs, outputs, dtype, device):
    x, weight = (torch.randn(n, inputs, device=device) for n in (rows, outputs))
    return x.to(dtype), (weight * 2 * inputs**-0.5).to(dtype), torch.randn(outputs, device=device).to(dtype)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_float64(shape, dtype, device, all_rows):
    """One rounding of the result where one kernel computes it, one of what GELU is computed of besides elsewhere."""
    x, weight, bias = problem(*shape, dtype, device)
    inner = functional.linear(x.double(), weight.double(), bias.double())
    exact = functional.gelu(inner)
    allowed = ROUNDING[dtype] * exact.abs() + 1e-5  # sums of float32
    if not linear_gelu.is_fused(x, weight):
        allowed = allowed + ROUNDING[dtype] * 1.2 * inner.abs()  # 1.13 is the steepest slope of GELU
    assert ((linear_gelu.linear_gelu(x, weight, bias).double() - exact).abs() <= allowed).all()


def test_the_kernel_serves_large_products_of_hopper_alone(device, monkeypatch):
    """Few rows, float32, lengths that tensor descriptors do not take, and gaps go to torch."""
    x, weight, _ = problem(linear_gelu.LEAST_ROWS, 16, 24, torch.bfloat16, device)
    on_triton = linear_gelu.choose(device) == "triton"
    hopper = INTERPRETING or (device.type == "cuda" and torch.cuda.get_device_capability()[0] == 9)
    assert linear_gelu.is_fused(x, weight) == (on_triton and hopper)
    others = [(x[1:], weight), (x.float(), weight.float()), (x[:, :12], weight[:, :12]), (x, weight[:20])]
    assert not any(linear_gelu.is_fused(*tensors) for tensors in others)
    monkeypatch.setattr(linear_gelu, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert not linear_gelu.is_fused(x, weight)


def test_gradients_are_refused(device):
    x, weight, bias = problem(4, 8, 8, torch.bfloat16, device)
    with pytest.raises(KernelInputError, match=r"no gradient; call it under torch.no_grad\(\)"):
        linear_gelu.linear_gelu(x, weight.requires_grad_(), bias)


def test_gelu_of_every_size(device, all_rows):
    """The polynomial in place of Φ: from the far tails to zero, against float64."""
    if not linear_gelu.is_fused(*problem(8, 8, 8, torch.float16, device)[:2]):
        pytest.skip("about the kernel")
    x = torch.linspace(-8, 8, 4096, device=device).half()[:, None].repeat(1, 8)
    result = linear_gelu.linear_gelu(x, torch.eye(8, device=device).half(), torch.zeros(8, device=device).half())
    exact = functional.gelu(x.double())
    assert ((result.double() - exact).abs() <= 2**-10 * exact.abs() + 1e-5).all()
