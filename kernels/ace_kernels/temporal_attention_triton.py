"""Owns the launches of the Triton kernels of attention over short sequences: grids, tiles, warps and precision.

One launch forward, one backward. Sizes follow from the shapes by rule, not by timing: `triton.autotune` cannot run in
the interpreter and would make the first steps of a job differ. `benchmarks/bench_attention.py --sweep` times others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ace_kernels import temporal_attention_kernels as kernels
from ace_kernels import triton_path

NUMBERS_OF_A_WARP = {"forward": 2048, "backward": 1024}  # 16-bit numbers of one tile (float32: half) a warp holds


class Tile(NamedTuple):
    """Rows of a program's tile, and the warps that hold it."""

    rows: int
    warps: int


def tile_of(tokens: int, width: int, size: int, direction: str) -> Tile:
    """The tile for sequences of `tokens` tokens, heads of `width` numbers of `size` bytes.

    The least rows that hold a sequence, so that few scores are masked; as few warps as registers allow, because within
    one warp reductions and transposes need no barrier. Instructions per sequence and head grow by half with twice the
    warps (compiled for sm_90: the table in kernels/README.md).
    """
    rows = 16 if tokens <= 16 else 32
    numbers = rows * triton.next_power_of_2(max(16, width)) * size // 2
    return Tile(rows, max(1, numbers // NUMBERS_OF_A_WARP[direction]))


def start(kernel: Any, direction: str, tensors: dict[str, Tensor], scale: float, **flags: bool) -> None:
    """Launch a kernel over all tiles and heads."""
    q = tensors["q"]
    tokens, heads, width = q.shape[-3:]
    sequences = q.numel() // (tokens * heads * width)
    tile = tile_of(tokens, width, q.element_size(), direction)
    pack = tile.rows // tokens
    nested = any(x.ndim == 5 and x.shape[0] > 1 and x.stride(0) != x.shape[1] * x.stride(1) for x in tensors.values())
    arguments: dict[str, Any] = {}
    for name, x in tensors.items():
        outer, inner = (x.stride(0), x.stride(1)) if nested else (x.stride(-4), 0)
        arguments |= {
            name: x, f"{name}_outer": outer, f"{name}_inner": inner,
            f"{name}_frame": x.stride(-3), f"{name}_head": x.stride(-2),
        }  # fmt: skip
    triton_path.launch(
        kernel, (triton.cdiv(sequences, pack) * heads,), tile.warps, False, **arguments, **flags,
        sequences=sequences, inner=q.shape[1] if nested else 1, scale=scale,
        HEADS=heads, FRAMES=tokens, PACK=pack, ROWS=tile.rows, NESTED=nested, WIDTH=width,
        BLOCK_D=triton.next_power_of_2(max(16, width)), UPCAST=kernels.INTERPRETED,
        # Three TF32 products keep float32's digits; in IEEE float32 the tiles would be multiplied outside tensor cores.
        PRECISION="tf32x3" if q.dtype == torch.float32 else "ieee",
    )  # fmt: skip


def dense(x: Tensor) -> Tensor:
    """The tensor, copied if its last axis is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Write softmax(scale · q k') v of every sequence and head into `out`."""
    start(kernels.forward_kernel, "forward", {"q": dense(q), "k": dense(k), "v": dense(v), "out": out}, scale)


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, outs: tuple[Tensor | None, ...]) -> None:
    """Write the gradients of q, k and v into `outs`, where it is not None."""
    tensors = {"q": dense(q), "k": dense(k), "v": dense(v), "grad": dense(grad)}
    needs = {}
    for name, out in zip(("q", "k", "v"), outs, strict=True):
        needs[f"NEEDS_{name.upper()}"] = out is not None
        tensors[f"d{name}"] = tensors[name] if out is None else out  # an argument that the kernel does not touch
    start(kernels.backward_kernel, "backward", tensors, scale, **needs)
