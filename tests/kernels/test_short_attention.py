"""Attention over short sequences against the formula in float64, in every dtype, packing, layout and form."""

import os

import pytest
import torch
from ace_kernels import (
    KernelInputError,
    temporal_attention,
    temporal_attention_packed,
    temporal_attention_unsupported_reason,
)
from kernel_reference import INTERPRETING, ON_GPU, record_launches, value_and_gradients

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# [S,T,H,d]: one, two and five sequences a tile with and without a ragged end, tiles of 16 and 32 rows, full tiles, one
# token, heads that are and are not powers of two.
SHAPES = [(3, 8, 2, 64), (7, 3, 1, 24), (2, 15, 2, 16), (1, 16, 2, 40), (2, 25, 1, 64), (2, 30, 3, 16), (1, 32, 1, 64)]
SHAPES.append((5, 1, 2, 16))
# Allowed above the error of the plain formula in the same dtype, relative to the largest number: float32 rounding of
# sums of d products, or one rounding of the result (Triton's interpreter rounds to bfloat16 by cutting bits off).
EPSILON = {torch.float32: 2e-6, torch.bfloat16: 2**-7 if INTERPRETING else 2**-8, torch.float16: 2**-10}


def on_triton():
    """Whether the implementation under test is Triton's (the fixture `device` sets it)."""
    return os.environ["ACE_KERNELS"] == "triton"


def formula(q, k, v):
    """softmax(q k' / sqrt(d)) v, as anyone would write it, in the type of its inputs."""
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    return (scores.softmax(-1) @ v).transpose(-3, -2)


def packed_formula(qkv):
    return formula(*qkv.unbind(-3))


def problem(shape, kind, dtype, device):
    """qkv [S,T,3,H,d]: random, peaked (queries far along one key each), or all equal."""
    sequences, tokens, heads, width = shape
    qkv = torch.randn(sequences, tokens, 3, heads, width, device=device)
    if kind == "peaked":
        qkv[:, :, 0] = qkv[:, torch.randperm(tokens, device=device), 1] * 8
    if kind == "equal":
        qkv = torch.ones_like(qkv)
    return qkv.to(dtype)


def output_and_gradients(function, weight, *inputs):
    """The output and all gradients of the output weighed by `weight`, in a list."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]


def assert_as_good_as_plain(ours, plain, true, dtype):
    """Error against float64 ≤ error of the plain formula in the same dtype + a stated epsilon."""
    for mine, other, exact in zip(ours, plain, true, strict=True):
        assert mine.dtype == dtype and mine.shape == exact.shape
        allowed = (other.double() - exact).abs().max() + EPSILON[dtype] * exact.abs().max().clamp_min(1)
        assert (mine.double() - exact).abs().max() <= allowed


@pytest.mark.parametrize("kind", ["random", "peaked", "equal"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_error_is_at_most_that_of_the_plain_formula(dtype, kind, device):
    """Output and gradient of the packed form at every shape."""
    for shape in SHAPES:
        qkv = problem(shape, kind, dtype, device)
        weight = torch.randn(shape, device=device).to(dtype)
        ours = output_and_gradients(temporal_attention_packed, weight, qkv)
        plain = output_and_gradients(packed_formula, weight, qkv)
        true = output_and_gradients(packed_formula, weight.double(), qkv.double())
        assert_as_good_as_plain(ours, plain, true, dtype)


def test_separate_tensors_equal_the_packed_one(device):
    """Same numbers, whichever way q, k and v come; `scale` replaces 1/sqrt(d)."""
    qkv, weight = problem((5, 6, 2, 16), "random", torch.float32, device), torch.randn(5, 6, 2, 16, device=device)
    out, grad = output_and_gradients(temporal_attention_packed, weight, qkv)
    again, *grads = output_and_gradients(temporal_attention, weight, *qkv.unbind(2))
    assert torch.equal(out, again) and torch.equal(grad, torch.stack(grads, 2))
    sharper, _ = output_and_gradients(lambda x: temporal_attention_packed(x, 0.5), weight, qkv)
    doubled = torch.cat([qkv[:, :, :1] * 2, qkv[:, :, 1:]], 2)  # width 16: 1/sqrt(d) is 0.25
    torch.testing.assert_close(sharper, packed_formula(doubled), rtol=1e-5, atol=1e-6)


def test_each_gradient_alone(device):
    """Whatever input requires a gradient, its gradient is the same as when all do."""
    inputs = problem((3, 7, 2, 16), "random", torch.float32, device).unbind(2)
    weight = torch.randn(3, 7, 2, 16, device=device)
    _, *everything = output_and_gradients(temporal_attention, weight, *inputs)
    for place in range(3):
        mixed = [x.detach().clone().requires_grad_(i == place) for i, x in enumerate(inputs)]
        (alone,) = torch.autograd.grad(temporal_attention(*mixed), mixed[place], weight)
        assert torch.equal(alone, everything[place])


@pytest.mark.parametrize("tokens", [5, 8, 15, 30])
def test_a_sequence_sees_itself_alone(tokens, device):
    """Sequences share a tile: changing one leaves the output and the gradient of every other bit for bit."""
    qkv = problem((6, tokens, 2, 16), "random", torch.float32, device)
    weight = torch.randn(6, tokens, 2, 16, device=device)
    changed = qkv.clone()
    changed[2] = torch.randn_like(changed[2]) * 100
    others = [0, 1, 3, 4, 5]
    for before, after in zip(
        output_and_gradients(temporal_attention_packed, weight, qkv),
        output_and_gradients(temporal_attention_packed, weight, changed),
        strict=True,
    ):
        assert torch.equal(before[others], after[others]) and not torch.equal(before[2], after[2])


@pytest.mark.parametrize("tokens", [6, 20])
def test_frames_first_needs_no_copy(tokens, device):
    """[B,T,P,3,H,d] read as [B,P,T,3,H,d]: the formula's numbers, and results that lie frames first as the input."""
    stored = torch.randn(2, tokens, 5, 3, 2, 16, device=device)
    weight = torch.randn(2, 5, tokens, 2, 16, device=device)
    leaf = stored.clone().requires_grad_()
    out = temporal_attention_packed(leaf.transpose(1, 2))
    assert out.shape == weight.shape and out.transpose(1, 2).is_contiguous()
    (grad,) = torch.autograd.grad(out, leaf, weight)
    true = output_and_gradients(packed_formula, weight.double(), stored.transpose(1, 2).double())
    ours = [out.detach(), grad.transpose(1, 2)]
    assert_as_good_as_plain(ours, [x.float() for x in true], true, torch.float32)


def test_layout_of_memory_does_not_matter(device):
    """Heads first, columns apart, keys shared by expansion, and a gradient that is one number everywhere."""
    tokens, width = 9, 16
    q = torch.randn(4, 2, tokens, width, device=device).transpose(1, 2)
    k = torch.randn(1, tokens, 2, 2 * width, device=device)[..., ::2].expand(4, -1, -1, -1)
    v = torch.randn(tokens, 4, 2, width, device=device).transpose(0, 1)

    def total(function):
        return value_and_gradients(lambda *inputs: function(*inputs).sum(), q, k, v)

    ours, expected = total(temporal_attention), total(formula)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_more_than_2_to_31_elements(device, large_memory):
    """Sequences and tokens beyond the reach of 32-bit offsets are found. On a CPU only touched pages take memory."""
    far = 2**31 + 64
    for shape, strides in (((2, 4, 3, 2, 16), (far, 96, 32, 16, 1)), ((4, 2, 3, 2, 16), (96, far, 32, 16, 1))):
        qkv = torch.empty(far + 512, dtype=torch.bfloat16, device=device).as_strided(shape, strides)
        qkv.copy_(torch.randn(shape, device=device))
        ours = temporal_attention_packed(qkv)
        assert (ours.double() - packed_formula(qkv.double())).abs().max() < 0.03


def test_equal_inputs_give_equal_bits(device):
    """No sum depends on the order in which programs happen to end."""
    qkv, weight = problem((6, 8, 2, 16), "random", torch.float32, device), torch.randn(6, 8, 2, 16, device=device)
    for first, again in zip(
        *(output_and_gradients(temporal_attention_packed, weight, qkv) for _ in range(2)), strict=True
    ):
        assert torch.equal(first, again)


def test_registered_operators_pass_opcheck(device):
    """Schema, fake implementation with its strides and AOT dispatch, of the output and of the gradients."""
    operators = torch.ops.ace_kernels
    qkv = torch.randn(3, 5, 3, 2, 16, device=device)
    frames_first = torch.randn(2, 5, 3, 3, 2, 16, device=device).transpose(1, 2)
    for inputs in ([qkv], [frames_first], list(qkv.unbind(2))):
        torch.library.opcheck(operators.temporal_attention, (inputs, 0.25))
        out = operators.temporal_attention(inputs, 0.25)
        needs = [place != 1 for place in range(len(inputs))]
        torch.library.opcheck(operators.temporal_attention_gradients, (torch.randn_like(out), inputs, 0.25, needs))


def test_compiled_equals_eager(device):
    """`torch.compile(fullgraph=True)` over output and gradients: the same bits, no graph break."""
    qkv = problem((4, 8, 2, 16), "random", torch.float32, device)
    weight = torch.randn(4, 8, 2, 16, device=device)

    def both(x):
        return temporal_attention_packed(x * 1.0) + temporal_attention(*(x * 2.0).unbind(-3))

    eager = output_and_gradients(both, weight, qkv)
    compiled = output_and_gradients(torch.compile(both, fullgraph=True, backend="aot_eager"), weight, qkv)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_second_derivatives_are_refused(device):
    """A gradient penalty gets a reason instead of a wrong number."""
    qkv = torch.randn(2, 3, 3, 1, 16, device=device, requires_grad=True)
    for function in (temporal_attention_packed, lambda x: temporal_attention(*x.unbind(-3))):
        (grad,) = torch.autograd.grad(function(qkv).sum(), qkv, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivative"):
            grad.square().sum().backward()


def test_no_sequence_is_not_an_error(device):
    """An empty batch gives an empty result and an empty gradient."""
    qkv = torch.randn(0, 8, 3, 2, 16, device=device, requires_grad=True)
    out = temporal_attention_packed(qkv)
    assert out.shape == (0, 8, 2, 16)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


def test_autocast_changes_nothing(device):
    """Products are in the type of the inputs under autocast too, forward and backward."""
    qkv, weight = problem((2, 4, 1, 16), "random", torch.float32, device), torch.randn(2, 4, 1, 16, device=device)
    plain = output_and_gradients(temporal_attention_packed, weight, qkv)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        under = output_and_gradients(temporal_attention_packed, weight, qkv)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


def test_wrong_arguments_name_what_is_wrong(device):
    """Shapes and types that do not fit are named with what came."""
    x = torch.randn(2, 4, 2, 16, device=device)
    with pytest.raises(KernelInputError, match="one shape, type and device"):
        temporal_attention(x, x[:, :3], x)
    with pytest.raises(KernelInputError, match=r"\[S,T,H,d\]"):
        temporal_attention(x[0], x[0], x[0])
    with pytest.raises(KernelInputError, match=r"\[S,T,3,H,d\]"):
        temporal_attention_packed(x)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((1, 33, 3, 1, 16), torch.float32, "33 tokens are longer than 32"),
        ((1, 4, 3, 1, 144), torch.bfloat16, "width 144 in torch.bfloat16 take more than 256 bytes"),
        ((1, 4, 3, 1, 16), torch.float64, "torch.float64 is not one of"),
    ],
)
def test_beyond_the_limits_triton_refuses_and_torch_computes(shape, dtype, words, device):
    """`temporal_attention_unsupported_reason` says beforehand what the kernels would refuse."""
    assert words in (temporal_attention_unsupported_reason(shape[1], shape[-1], dtype) or "")
    assert temporal_attention_unsupported_reason(32, 64, torch.float32) is None
    qkv = torch.randn(shape, device=device).to(dtype)
    if on_triton():
        with pytest.raises(KernelInputError, match=words):
            temporal_attention_packed(qkv)
    else:
        error = (temporal_attention_packed(qkv).double() - packed_formula(qkv.double())).abs().max()
        assert error < (0.02 if dtype == torch.bfloat16 else 1e-5)


def test_one_launch_each_way(device, monkeypatch):
    """Forward is one kernel, backward is one, and neither is joined by a copy of q, k, v or their gradients."""
    if not on_triton():
        pytest.skip("counts launches of the Triton kernels")
    launches = record_launches(monkeypatch)
    qkv = torch.randn(3, 8, 3, 2, 64, device=device, requires_grad=True)
    out = temporal_attention_packed(qkv)
    (grad,) = torch.autograd.grad(out, qkv, torch.randn_like(out))
    assert [name for name, _ in launches] == ["forward_kernel", "backward_kernel"]
    assert launches[0][1]["q"].data_ptr() == qkv.data_ptr() and launches[0][1]["out"].data_ptr() == out.data_ptr()
    assert launches[1][1]["dq"].data_ptr() == grad.data_ptr() and grad.is_contiguous()


def test_sixteen_bit_products_are_upcast_by_the_interpreter(device):
    """The interpreter multiplies the bit patterns of bfloat16 and says nothing: the tiles are widened there alone."""
    if not on_triton():
        pytest.skip("about the Triton kernels")
    from ace_kernels import short_attention_triton

    assert INTERPRETING == short_attention_triton.INTERPRETED
    qkv = problem((2, 8, 1, 64), "peaked", torch.bfloat16, device)
    assert (temporal_attention_packed(qkv).double() - packed_formula(qkv.double())).abs().max() < 0.05


@pytest.mark.parametrize("device", ON_GPU, indirect=True)
def test_step_runs_in_a_cuda_graph(device):
    """No host sync in forward and backward: a graph captures them and replays with new inputs."""
    qkv = torch.randn(8, 30, 3, 12, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(8, 30, 12, 64, device=device, dtype=torch.bfloat16)

    def step():
        return torch.autograd.grad(temporal_attention_packed(qkv), qkv, weight)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        qkv.normal_()
    graph.replay()
    assert torch.equal(captured, step())
