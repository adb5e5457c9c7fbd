"""Residual and layer norm of a TimeSformer's tokens in one pass, with the change of layout where a block needs one.

Without gradients: frozen blocks alone use it. Shapes: B clips, P patches of a frame, T frames, D width. The tokens of a
batch are one matrix [B·P·T + B, D]: the patches in the order clip, patch, frame, then the cls of every clip. So the
frames of a patch follow each other, as temporal attention reads them, and all tokens pass the MLP in one product.
Spatial attention reads frames [B·T·(1+P), D]: clip, frame, then cls and the patches of that frame.

Every function adds `y` to the tokens `x` in place, rounded to the type of `x`, and returns the norm of the sum.
Sums and norm are float32; the result has the type of `x`, or with `fp8` is `Fp8Rows`.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ace_kernels.backend import KernelInputError, choose
from ace_kernels.fp8_rows import Fp8Rows, empty_fp8_rows

TYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST = 8192  # numbers of a row, which one program holds


class Norm(NamedTuple):
    """Weight [D], bias [D] and epsilon of a layer norm."""

    weight: Tensor
    bias: Tensor
    eps: float


class Tokens(NamedTuple):
    """How many tokens a batch has: clips, patches of a frame, frames."""

    clips: int
    patches: int
    frames: int

    @property
    def patch_rows(self) -> int:
        return self.clips * self.patches * self.frames

    @property
    def rows(self) -> int:
        return self.patch_rows + self.clips

    @property
    def frame_rows(self) -> int:
        return self.clips * self.frames * (1 + self.patches)


def add_norm(x: Tensor, y: Tensor | None, norm: Norm, fp8: bool = False) -> Tensor | Fp8Rows:
    """x += y, rows [R,D] in any order; returns norm(x). Without `y` the norm alone."""
    check(x, y, norm, len(x), len(x))
    out = room(x, len(x), fp8)
    backend_module(x).add_norm(x, y, norm, out)
    return out


def add_norm_to_frames(x: Tensor, y: Tensor, norm: Norm, tokens: Tokens, fp8: bool = False) -> Tensor | Fp8Rows:
    """Patches of x += y [B·P·T,D]; returns the frames of norm(x), each with its clip's cls in front."""
    check(x, y, norm, tokens.rows, tokens.patch_rows)
    out = room(x, tokens.frame_rows, fp8)
    backend_module(x).add_norm_to_frames(x, y, norm, tokens, out)
    return out


def add_norm_from_frames(x: Tensor, y: Tensor, norm: Norm, tokens: Tokens, fp8: bool = False) -> Tensor | Fp8Rows:
    """x += y, frames [B·T·(1+P),D]: every patch its own row, a cls the mean over its frames; returns norm(x)."""
    check(x, y, norm, tokens.rows, tokens.frame_rows)
    out = room(x, tokens.rows, fp8)
    backend_module(x).add_norm_from_frames(x, y, norm, tokens, out)
    return out


def backend_module(x: Tensor) -> ModuleType:
    if choose(x.device) == "torch":
        from ace_kernels import residual_norm_torch

        return residual_norm_torch
    from ace_kernels import residual_norm_triton  # imported late: a machine without CUDA needs no triton

    return residual_norm_triton


def room(x: Tensor, rows: int, fp8: bool) -> Tensor | Fp8Rows:
    """Uninitialised rows for the norm."""
    return empty_fp8_rows(rows, x.shape[1], x.device) if fp8 else x.new_empty(rows, x.shape[1])


def check(x: Tensor, y: Tensor | None, norm: Norm, x_rows: int, y_rows: int) -> None:
    """Refuse what the kernels would read wrongly, and what would need a gradient."""
    width = x.shape[-1]
    expected = {"x": (x, (x_rows, width)), "weight": (norm.weight, (width,)), "bias": (norm.bias, (width,))}
    if y is not None:
        expected["y"] = (y, (y_rows, width))
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != x.dtype or not tensor.is_contiguous():
            raise KernelInputError(
                f"residual_norm: {name} must be contiguous {x.dtype} {list(shape)}, got {tensor.dtype} "
                f"{list(tensor.shape)} with strides {tensor.stride()}"
            )
    if x.dtype not in TYPES or width > WIDEST:
        raise KernelInputError(
            f"residual_norm takes bfloat16, float16 or float32 and width up to {WIDEST}, got {x.dtype} {width}"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor, _ in expected.values()):
        raise KernelInputError("residual_norm has no gradient; call it under torch.no_grad()")
