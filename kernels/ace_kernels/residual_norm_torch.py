"""Residual and layer norm with the change of layout, in plain torch; shapes as in `residual_norm`."""

import torch
from torch import Tensor
from torch.nn import functional

from ace_kernels.fp8_rows import Fp8Rows
from ace_kernels.fp8_rows_torch import store_fp8
from ace_kernels.residual_norm import Norm, Tokens


def add_norm(x: Tensor, y: Tensor | None, norm: Norm, out: Tensor | Fp8Rows) -> None:
    if y is not None:
        x += y
    store(normed(x, norm), out, x.dtype)


def add_norm_to_frames(x: Tensor, y: Tensor, norm: Norm, tokens: Tokens, out: Tensor | Fp8Rows) -> None:
    clips, patches, frames = tokens
    x[: len(y)] += y
    rows = normed(x, norm)
    grid = rows[: len(y)].view(clips, patches, frames, x.shape[1]).transpose(1, 2)
    cls = rows[len(y) :].view(clips, 1, 1, x.shape[1]).expand(-1, frames, -1, -1)
    store(torch.cat([cls, grid], 2).flatten(0, 2), out, x.dtype)


def add_norm_from_frames(x: Tensor, y: Tensor, norm: Norm, tokens: Tokens, out: Tensor | Fp8Rows) -> None:
    clips, patches, frames = tokens
    grid = y.view(clips, frames, 1 + patches, x.shape[1])
    x[: tokens.patch_rows] += grid[:, :, 1:].transpose(1, 2).flatten(0, 2)
    x[tokens.patch_rows :] += grid[:, :, 0].float().mean(1)
    store(normed(x, norm), out, x.dtype)


def normed(x: Tensor, norm: Norm) -> Tensor:
    """Layer norm in float32, not rounded to the type of `x`."""
    return functional.layer_norm(x.float(), norm.weight.shape, norm.weight.float(), norm.bias.float(), norm.eps)


def store(rows: Tensor, out: Tensor | Fp8Rows, dtype: torch.dtype) -> None:
    if isinstance(out, Fp8Rows):
        store_fp8(rows, out)
    else:
        out.copy_(rows)
