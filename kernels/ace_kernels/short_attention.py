"""Attention over many short sequences, such as the T frames of every patch: the public functions.

Shapes: S sequences (or B clips times P patches), T tokens of a sequence, H heads, d width of a head. Tensors are read
where they lie: only the last axis must be contiguous, so that slices and transposed views of one qkv matrix cost no
copy. The result lies as `q` does, without gaps: where the tokens of all heads follow each other in the input of
`qkv`, they do in the output, which the next linear map reads as [.., H·d].

`temporal_attention_packed` takes the qkv matrix whole and returns its gradient whole; with separate tensors autograd
would copy three gradients into one.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ace_kernels import short_attention_torch
from ace_kernels.backend import KernelInputError, choose, is_plain, no_autocast, no_second_derivative

LONGEST = 32  # tokens of a sequence whose tile one or two warps hold; longer ones are what general kernels are made for
WIDEST = 256  # bytes of one head of a token; with more the backward's tiles spill out of the registers
TYPES = (torch.bfloat16, torch.float16, torch.float32)


def temporal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Softmax attention within every sequence: [S,T,H,d] or [B,P,T,H,d] each -> the same shape.

    Scores are multiplied by `scale`, 1/sqrt(d) by default. On CUDA softmax and sums are float32, and T is at most 32
    (`temporal_attention_unsupported_reason` tells). Raises `KernelInputError` for shapes and types that do not fit.
    """
    if not (q.shape == k.shape == v.shape and q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        got = ", ".join(f"{x.dtype} {list(x.shape)} on {x.device}" for x in (q, k, v))
        raise KernelInputError(f"q, k and v must have one shape, type and device, got {got}")
    if q.ndim not in (4, 5) or not q.is_floating_point():
        raise KernelInputError(f"q, k and v must be [S,T,H,d] or [B,P,T,H,d] floats, got {q.dtype} {list(q.shape)}")
    out: Tensor = ShortAttention.apply(q.shape[-1] ** -0.5 if scale is None else scale, q, k, v)
    return out


def temporal_attention_packed(qkv: Tensor, scale: float | None = None) -> Tensor:
    """`temporal_attention` of one tensor with q, k and v: [S,T,3,H,d] -> [S,T,H,d], or [B,P,T,3,H,d] -> [B,P,T,H,d]."""
    if qkv.ndim not in (5, 6) or qkv.shape[-3] != 3 or not qkv.is_floating_point():
        raise KernelInputError(f"qkv must be [S,T,3,H,d] or [B,P,T,3,H,d] floats, got {qkv.dtype} {list(qkv.shape)}")
    out: Tensor = ShortAttention.apply(qkv.shape[-1] ** -0.5 if scale is None else scale, qkv)
    return out


def temporal_attention_unsupported_reason(tokens: int, width: int, dtype: torch.dtype) -> str | None:
    """Why the Triton kernels do not take sequences of `tokens` tokens with heads of `width`, or None."""
    if tokens > LONGEST:
        return f"sequences of {tokens} tokens are longer than {LONGEST}"
    if dtype not in TYPES:
        return f"{dtype} is not one of {', '.join(str(kind) for kind in TYPES)}"
    if width * dtype.itemsize > WIDEST:
        return f"heads of width {width} in {dtype} take more than {WIDEST} bytes a token"
    return None


class ShortAttention(torch.autograd.Function):
    """The operator on `inputs`, either (q, k, v) or (qkv,).

    Its backward reads the inputs alone: the probabilities are computed again.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, *inputs: Tensor) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*inputs)
        return (compute if is_plain(inputs[0]) else attention_op)(inputs, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the inputs. The registered operator, which refuses second derivatives, serves those."""
        (grad,), needs = grads, list(ctx.needs_input_grad[1:])
        call = compute_gradients if is_plain(grad) and not torch.is_grad_enabled() else gradients_op
        input_grads = call(grad, ctx.saved_tensors, ctx.scale, needs)
        return None, *(x if needed else None for x, needed in zip(input_grads, needs, strict=True))


def backend_module(q: Tensor) -> ModuleType:
    """The module that computes on the device of `q`: `forward` and `backward`."""
    if choose(q.device) == "torch":
        return short_attention_torch
    reason = temporal_attention_unsupported_reason(q.shape[-3], q.shape[-1], q.dtype)
    if reason:
        raise KernelInputError(f"temporal_attention: {reason}; use scaled_dot_product_attention or ACE_KERNELS=torch")
    from ace_kernels import short_attention_triton  # imported late: a machine without CUDA needs no triton

    return short_attention_triton


def q_k_v(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Three tensors from (q, k, v) or from (qkv,)."""
    return tensors[0].unbind(-3) if len(tensors) == 1 else tensors


def room_like(x: Tensor) -> Tensor:
    """An uninitialised tensor without gaps whose axes lie in the order of those of `x`; the last one is contiguous."""
    room = torch.empty_like(x)
    return room if room.stride(-1) == 1 else torch.empty_like(x, memory_format=torch.contiguous_format)


def gradient_rooms(inputs: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Room for the gradients, laid out as the inputs are; empty where not needed."""
    return [room_like(x) if needed else x.new_empty(0) for x, needed in zip(inputs, needs, strict=True)]


def compute(inputs: Sequence[Tensor], scale: float) -> Tensor:
    q, k, v = q_k_v(inputs)
    out = room_like(q)
    if q.numel():
        with no_autocast(q.device.type):
            backend_module(q).forward(q, k, v, scale, out)
    return out


def compute_gradients(grad: Tensor, inputs: Sequence[Tensor], scale: float, needs: list[bool]) -> list[Tensor]:
    """Gradients of the inputs; empty where not needed."""
    rooms = gradient_rooms(inputs, needs)
    if grad.numel():
        q, k, v = q_k_v(inputs)
        outs = [out if needed else None for out, needed in zip(rooms, needs, strict=True)] if len(rooms) == 3 else (
            rooms[0].unbind(-3)
        )  # fmt: skip
        with no_autocast(q.device.type):
            backend_module(q).backward(grad, q, k, v, scale, outs)
    return rooms


# What a tracer sees. Only the two operators are registered, not their derivative: `ShortAttention` is traced through.
@torch.library.custom_op(
    "ace_kernels::temporal_attention", mutates_args=(), schema="(Tensor[] inputs, float scale) -> Tensor"
)
def attention_op(inputs: Sequence[Tensor], scale: float) -> Tensor:
    return compute(inputs, scale)


@attention_op.register_fake
def _(inputs: Sequence[Tensor], scale: float) -> Tensor:
    return room_like(q_k_v(inputs)[0])


@torch.library.custom_op(
    "ace_kernels::temporal_attention_gradients",
    mutates_args=(),
    schema="(Tensor grad, Tensor[] inputs, float scale, bool[] needs) -> Tensor[]",
)
def gradients_op(grad: Tensor, inputs: Sequence[Tensor], scale: float, needs: list[bool]) -> list[Tensor]:
    return compute_gradients(grad, inputs, scale, needs)


@gradients_op.register_fake
def _(grad: Tensor, inputs: Sequence[Tensor], scale: float, needs: list[bool]) -> list[Tensor]:
    return gradient_rooms(inputs, needs)


gradients_op.register_autograd(no_second_derivative)
