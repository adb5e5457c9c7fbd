"""Residual, layer norm and change of layout in one pass, and rows of 8-bit floats, against float64."""

import os

import pytest
import torch
from ace_kernels import KernelInputError
from ace_kernels.fp8_rows import Fp8Rows, fp8_linear, fp8_rows, fp8_unsupported_reason
from ace_kernels.residual_norm import (
    Norm,
    Tokens,
    add_norm,
    add_norm_from_frames,
    add_norm_to_frames,
)
from kernel_reference import INTERPRETING
from torch.nn import functional

# Clips, patches, frames, width: one frame and 32, ragged ends of a program's rows, widths that are no power of two.
SHAPES = [(2, 5, 3, 96), (1, 4, 8, 768), (3, 1, 1, 48), (1, 9, 32, 64), (5, 7, 2, 33), (2, 3, 15, 128)]
# Relative rounding of a result in each type (the interpreter cuts bits off instead of rounding), and of float32 sums.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if INTERPRETING else 2**-8, torch.float16: 2**-10}
FP8_ROUNDING, FP8_SMALLEST = 2**-4, 2**-10  # half the distance of e4m3 numbers: relative, and near zero
# Triton's interpreter loses the carry when a number rounds up to a power of two (31.9 becomes 16) and cuts near zero.
FP8_LOST, FP8_CUT = (0.1, 2**-9) if INTERPRETING else (0.0, FP8_SMALLEST)


def problem(shape, dtype, device):
    """Tokens, patches' update, frames' update, and a norm, of one batch."""
    tokens, width = Tokens(*shape[:3]), shape[3]
    x, patches, frames = (
        torch.randn(rows, width, device=device).mul(2).to(dtype)
        for rows in (tokens.rows, tokens.patch_rows, tokens.frame_rows)
    )
    weight, bias = (torch.randn(width, device=device).to(dtype) for _ in range(2))
    return tokens, x, patches, frames, Norm(weight, bias, 1e-6)


def norm64(x, norm):
    return functional.layer_norm(x.double(), norm.weight.shape, norm.weight.double(), norm.bias.double(), norm.eps)


def frames64(rows, tokens):
    """Tokens in the layout of frames, by a loop: frame by frame the cls of the clip, then the patches of that frame."""
    clips, patches, frames = tokens
    grid, cls = rows[: tokens.patch_rows].view(clips, patches, frames, -1), rows[tokens.patch_rows :]
    return torch.cat([torch.cat([cls[b, None], grid[b, :, t]]) for b in range(clips) for t in range(frames)])


def update64(frames_rows, tokens):
    """What frames add to the tokens, by a loop."""
    clips, patches, frames = tokens
    grid = frames_rows.double().view(clips, frames, 1 + patches, -1)
    rows = [grid[b, t, 1 + p] for b in range(clips) for p in range(patches) for t in range(frames)]
    return torch.stack([*rows, *(grid[b, :, 0].mean(0) for b in range(clips))])


def assert_close(result, exact, rounding):
    assert result.shape == exact.shape
    assert ((result.double() - exact).abs() <= rounding * exact.abs() + 4 * ROUNDING[torch.float32]).all()


def assert_norm(result, x, exact):
    """A norm in the type of `x` or as 8-bit rows; 1e-5 for the sums of float32."""
    if isinstance(result, Fp8Rows):
        top = exact.abs().amax(1, keepdim=True)
        torch.testing.assert_close(result.scales.double()[:, None] * 448, top, rtol=1e-5, atol=1e-9)
        back = result.values.double() * result.scales.double()[:, None]
        wrong = (back - exact).abs() > FP8_ROUNDING * exact.abs() + FP8_CUT * top / 448 + 1e-5
        assert wrong.double().mean() <= FP8_LOST and not (wrong & (back.abs() < exact.abs() / 2.01)).any()
    else:
        assert result.dtype == x.dtype
        assert ((result.double() - exact).abs() <= ROUNDING[x.dtype] * exact.abs() + 1e-5).all()


def is_unsupported(fp8, device):
    return fp8 and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9)


@pytest.mark.parametrize("fp8", [False, True], ids=["plain", "fp8"])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_norms_and_layouts_equal_float64(shape, dtype, fp8, device):
    """Each of the three: `x` is the rounded sum, the result the norm of that; with no `y`, `x` stays."""
    if is_unsupported(fp8, device):
        pytest.skip("8-bit floats need compute capability 8.9")
    tokens, x, patches, frames, norm = problem(shape, dtype, device)
    before, everything = x.clone(), torch.randn_like(x)
    assert_norm(add_norm(x, None, norm, fp8), x, norm64(before, norm))
    assert torch.equal(x, before)

    result = add_norm(x, everything, norm, fp8)
    assert_close(x, before.double() + everything.double(), ROUNDING[dtype])
    assert_norm(result, x, norm64(x, norm))

    before = x.clone()
    result = add_norm_to_frames(x, patches, norm, tokens, fp8)
    assert_close(x[: len(patches)], before[: len(patches)].double() + patches.double(), ROUNDING[dtype])
    assert torch.equal(x[len(patches) :], before[len(patches) :])
    assert_norm(result, x, frames64(norm64(x, norm), tokens))

    before = x.clone()
    result = add_norm_from_frames(x, frames, norm, tokens, fp8)
    assert_close(x, before.double() + update64(frames, tokens), ROUNDING[dtype])
    assert_norm(result, x, norm64(x, norm))


@pytest.mark.parametrize("width", [16, 96, 768, 3072])
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("gelu", [False, True])
def test_rows_of_8_bit_floats(gelu, dtype, width, device):
    """A scale a row, the largest number exact, zeros zeros; large and tiny rows keep their digits."""
    if is_unsupported(True, device):
        pytest.skip("8-bit floats need compute capability 8.9")
    x = (torch.randn(7, width, device=device) * torch.logspace(-3, 2, 7, device=device)[:, None]).to(dtype)
    x[3] = 0
    exact = functional.gelu(x.double()) if gelu else x.double()
    result = fp8_rows(x, gelu)
    assert_norm(result, x, exact)
    assert not result.values[3].float().any()


def test_product_of_8_bit_rows(device):
    """The product of the rows as they are stored, rounded once."""
    if reason := device.type == "cuda" and fp8_unsupported_reason(device):
        pytest.skip(reason)
    if os.environ["ACE_KERNELS"] == "triton" and INTERPRETING:
        pytest.skip("about torch's product, which the session without the interpreter tests")
    x, weight = (fp8_rows(torch.randn(rows, 96, device=device)) for rows in (20, 48))
    bias = torch.randn(48, device=device).bfloat16()
    a, b = (rows.values.double() * rows.scales.double()[:, None] for rows in (x, weight))
    exact = a @ b.T + bias.double()
    error = (fp8_linear(x, weight, bias).double() - exact).abs()
    assert (error <= 2**-8 * exact.abs() + 2**-10 * (a.abs() @ b.abs().T)).all()


def test_equal_inputs_give_equal_bits_and_rows_are_alone(device):
    """A row's result depends on that row alone, wherever it lies."""
    _, x, _, _, norm = problem((2, 5, 3, 96), torch.float32, device)
    whole = add_norm(x.clone(), None, norm)
    assert torch.equal(whole, add_norm(x.clone(), None, norm))
    assert torch.equal(whole[3:8], add_norm(x[3:8].clone(), None, norm))


def test_no_clip_is_not_an_error(device):
    _, x, _, frames, norm = problem((0, 4, 2, 32), torch.float32, device)
    assert add_norm_from_frames(x, frames, norm, Tokens(0, 4, 2)).shape == (0, 32)
    assert fp8_rows(x).values.shape == (0, 32)


def test_wrong_arguments_name_what_is_wrong(device):
    """Shapes, types, gaps, and gradients that would be missing."""
    tokens, x, _, frames, norm = problem((2, 5, 3, 96), torch.float32, device)
    with pytest.raises(KernelInputError, match=r"y must be contiguous torch.float32 \[30, 96\], got .* \[36, 96\]"):
        add_norm_to_frames(x, frames, norm, tokens)
    with pytest.raises(KernelInputError, match="weight must be contiguous torch.float32"):
        add_norm(x, None, norm._replace(weight=norm.weight.double()))
    with pytest.raises(KernelInputError, match=r"with strides \(1, 32\)"):
        add_norm(x.t().contiguous().t(), None, norm)
    with pytest.raises(KernelInputError, match="float64"):
        add_norm(x.double(), None, Norm(norm.weight.double(), norm.bias.double(), 1e-6))
    with pytest.raises(KernelInputError, match=r"no gradient; call it under torch.no_grad\(\)"):
        add_norm(x.requires_grad_(), None, norm)
    with pytest.raises(KernelInputError, match=r"contiguous floats \[R,D\]"):
        fp8_rows(frames.t())


def test_where_8_bit_products_do_not_run(monkeypatch):
    """The reason names the device or the size."""
    assert "the model is on cpu" in fp8_unsupported_reason(torch.device("cpu"))
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    assert "A100 has 8.0" in fp8_unsupported_reason(cuda, 768)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert "multiples of 16, and 24 is none" in fp8_unsupported_reason(cuda, 96, 24)
    assert fp8_unsupported_reason(cuda, 96, 768) is None
