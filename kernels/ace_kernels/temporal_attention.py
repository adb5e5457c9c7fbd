"""Owns attention over many short sequences, such as the T frames of every patch: operators, autograd, and dispatch.

Shapes: S sequences (or B clips times P patches), T tokens of a sequence, H heads, d width of a head. Tensors are read
where they lie: only the last axis must be contiguous, so that slices and transposed views of one qkv matrix cost no
copy. The result lies as `q` does, without gaps: where the tokens of all heads follow each other in the input of
`qkv`, they do in the output, which the next linear map reads as [.., H·d].

`temporal_attention_packed` takes the qkv matrix whole and returns its gradient whole; with separate tensors autograd
would copy three gradients into one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ace_kernels import temporal_attention_torch
from ace_kernels.checks import KernelInputError
from ace_kernels.choice import choose
from ace_kernels.operators import direct, no_autocast, no_second_derivative

LONGEST = 32  # tokens of a sequence whose tile one or two warps hold; longer ones are what general kernels are made for
WIDEST = 256  # bytes of one head of a token; with more the backward's tiles spill out of the registers
TYPES = (torch.bfloat16, torch.float16, torch.float32)


class Implementation(Protocol):
    """What both implementations compute."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
        """Write softmax(scale · q k') v of every sequence and head into `out`."""

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, outs: tuple[Tensor | None, ...]
    ) -> None:
        """Write the gradients of q, k and v into `outs`, where it is not None."""


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Softmax attention within every sequence: [S,T,H,d] or [B,P,T,H,d] each -> the same shape.

    Scores are multiplied by `scale`, 1/sqrt(d) by default. On CUDA softmax and sums are float32, and T is at most 32
    (`temporal_attention_obstacle` tells). Raises `KernelInputError` for shapes and types that do not fit.
    """
    if not (q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        found = ", ".join(f"{x.dtype} {list(x.shape)} on {x.device}" for x in (q, k, v))
        raise KernelInputError(f"q, k and v must have one shape, type and device, got {found}")
    if q.ndim not in (4, 5) or not q.is_floating_point():
        raise KernelInputError(f"q, k and v must be [S,T,H,d] or [B,P,T,H,d] floats, got {q.dtype} {list(q.shape)}")
    call = Direct.apply if direct(q) else attention_op
    out: Tensor = call(q, k, v, scale_of(q, scale))
    return out


def temporal_attention_packed(qkv: Tensor, scale: float | None = None) -> Tensor:
    """`temporal_attention` of one tensor with q, k and v: [S,T,3,H,d] -> [S,T,H,d], or [B,P,T,3,H,d] -> [B,P,T,H,d]."""
    if qkv.ndim not in (5, 6) or qkv.shape[-3] != 3 or not qkv.is_floating_point():
        raise KernelInputError(f"qkv must be [S,T,3,H,d] or [B,P,T,3,H,d] floats, got {qkv.dtype} {list(qkv.shape)}")
    call = DirectPacked.apply if direct(qkv) else packed_op
    out: Tensor = call(qkv, scale_of(qkv, scale))
    return out


def temporal_attention_obstacle(tokens: int, width: int, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels do not take sequences of `tokens` tokens with heads of `width`, or None."""
    if tokens > LONGEST:
        return f"sequences of {tokens} tokens are longer than {LONGEST}"
    if dtype not in TYPES:
        return f"{dtype} is not one of {', '.join(str(kind) for kind in TYPES)}"
    if width * dtype.itemsize > WIDEST:
        return f"heads of width {width} in {dtype} take more than {WIDEST} bytes a token"
    return None


def scale_of(x: Tensor, scale: float | None) -> float:
    """The factor of the scores."""
    return x.shape[-1] ** -0.5 if scale is None else scale


def implementation(q: Tensor) -> Implementation:
    """The module that computes on the device of `q`."""
    if choose(q.device) == "torch":
        return temporal_attention_torch
    obstacle = temporal_attention_obstacle(q.shape[-3], q.shape[-1], q.dtype)
    if obstacle:
        raise KernelInputError(f"temporal_attention: {obstacle}; use scaled_dot_product_attention or ACE_KERNELS=torch")
    from ace_kernels import temporal_attention_triton  # imported late: a machine without CUDA needs no triton

    return temporal_attention_triton


def room_like(x: Tensor) -> Tensor:
    """An uninitialised tensor without gaps whose axes lie in the order of those of `x`; the last one is contiguous."""
    room = torch.empty_like(x)
    return room if room.stride(-1) == 1 else torch.empty_like(x, memory_format=torch.contiguous_format)


def compute(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """`ace_kernels::temporal_attention` without the dispatcher."""
    out = room_like(q)
    if q.numel():
        with no_autocast(q.device.type):
            implementation(q).forward(q, k, v, scale, out)
    return out


def compute_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, outs: tuple[Tensor | None, ...]
) -> None:
    """Fill the gradients that are asked for."""
    if q.numel():
        with no_autocast(q.device.type):
            implementation(q).backward(grad, q, k, v, scale, outs)


@torch.library.custom_op("ace_kernels::temporal_attention", mutates_args=())
def attention_op(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of separate tensors."""
    return compute(q, k, v, scale)


@attention_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return room_like(q)


@torch.library.custom_op("ace_kernels::temporal_attention_gradients", mutates_args=())
def gradients_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; empty where not needed."""
    return separate_gradients(grad, q, k, v, scale, needs)


def separate_gradients(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """`ace_kernels::temporal_attention_gradients` without the dispatcher."""
    dq, dk, dv = blank_gradients(q, k, v, needs)
    outs = tuple(out if needed else None for out, needed in zip((dq, dk, dv), needs, strict=True))
    compute_gradients(grad, q, k, v, scale, outs)
    return dq, dk, dv


def blank_gradients(q: Tensor, k: Tensor, v: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients, laid out as the inputs are; empty where not needed."""
    rooms = [room_like(x) if needed else x.new_empty(0) for x, needed in zip((q, k, v), needs, strict=True)]
    return rooms[0], rooms[1], rooms[2]


@gradients_op.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    return blank_gradients(q, k, v, needs)


@torch.library.custom_op("ace_kernels::temporal_attention_packed", mutates_args=())
def packed_op(qkv: Tensor, scale: float) -> Tensor:
    """Attention of one tensor."""
    return compute_packed(qkv, scale)


def compute_packed(qkv: Tensor, scale: float) -> Tensor:
    """`ace_kernels::temporal_attention_packed` without the dispatcher."""
    q, k, v = qkv.unbind(-3)
    return compute(q, k, v, scale)


@packed_op.register_fake
def _(qkv: Tensor, scale: float) -> Tensor:
    return room_like(qkv.select(-3, 0))


@torch.library.custom_op("ace_kernels::temporal_attention_packed_gradient", mutates_args=())
def packed_gradient_op(grad: Tensor, qkv: Tensor, scale: float) -> Tensor:
    """Gradient of qkv."""
    return packed_gradient(grad, qkv, scale)


def packed_gradient(grad: Tensor, qkv: Tensor, scale: float) -> Tensor:
    """`ace_kernels::temporal_attention_packed_gradient` without the dispatcher."""
    out = room_like(qkv)
    q, k, v = qkv.unbind(-3)
    compute_gradients(grad, q, k, v, scale, out.unbind(-3))
    return out


@packed_gradient_op.register_fake
def _(grad: Tensor, qkv: Tensor, scale: float) -> Tensor:
    return room_like(qkv)


def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """The inputs are all that the backward reads: the probabilities are computed again."""
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v. The registered operator refuses second derivatives, so it serves `create_graph=True`."""
    q, k, v = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    call = separate_gradients if direct(grad) and not torch.is_grad_enabled() else gradients_op
    found = call(grad, q, k, v, ctx.scale, needs)
    return *(part if needed else None for part, needed in zip(found, needs, strict=True)), None


def packed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradient of qkv."""
    (qkv,) = ctx.saved_tensors
    call = packed_gradient if direct(grad) and not torch.is_grad_enabled() else packed_gradient_op
    return call(grad, qkv, ctx.scale), None


for operator in (gradients_op, packed_gradient_op):
    operator.register_autograd(no_second_derivative)
attention_op.register_autograd(backward, setup_context=keep)
packed_op.register_autograd(packed_backward, setup_context=keep)


class Direct(torch.autograd.Function):
    """`ace_kernels::temporal_attention` for plain tensors outside a trace."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The output of the operator."""
        keep(ctx, inputs, inputs[0])
        return compute(*inputs)

    backward = staticmethod(backward)


class DirectPacked(torch.autograd.Function):
    """`ace_kernels::temporal_attention_packed` for plain tensors outside a trace."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The output of the operator."""
        keep(ctx, inputs, inputs[0])
        return compute_packed(*inputs)

    backward = staticmethod(packed_backward)
