"""GELU of a linear map in Triton for Hopper: as many programs as multiprocessors, each with every so many-th tile.

Tiles of 128 x 256 come and go through tensor descriptors (TMA). A tile is finished in two halves, so that the registers
hold it: with one half, or with `erf`, the kernel spills.
"""
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ace_kernels.backend import INTERPRETED, Launch
from ace_kernels.gelu_triton import gelu

ROWS, COLUMNS, DEPTH, GROUP, WARPS = 128, 256, 64, 8, 8  # three stages, Triton's default


@triton.jit
def half(accumulator, bias, column, columns):
    """GELU of half a tile [ROWS, COLUMNS / 2] with its bias."""
    return gelu(accumulator + tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :])


@triton.jit
def linear_gelu_kernel(
    bias, x, weight, out, rows, columns, depth, PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Tiles of `GROUP` rows of tiles follow each other by columns, so that both operands stay in the L2 cache.

    `UPCAST`: the interpreter multiplies the bit patterns of bfloat16.
    """
    tiles_down, tiles_across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles_down * tiles_across, PROGRAMS, flatten=True):
        first = tile // (GROUP * tiles_across) * GROUP
        height = min(tiles_down - first, GROUP)
        row = (first + tile % (GROUP * tiles_across) % height) * ROWS
        column = tile % (GROUP * tiles_across) // height * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(tl.cdiv(depth, DEPTH)):
            a, b = x.load([row, step * DEPTH]), weight.load([column, step * DEPTH])
            if UPCAST:
                a, b = a.to(tl.float32), b.to(tl.float32)
            total = tl.dot(a, b.T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        place = column + tl.arange(0, COLUMNS // 2)
        out.store([row, column], half(left, bias, place, columns).to(out.dtype))
        out.store([row, column + COLUMNS // 2], half(right, bias, place + COLUMNS // 2, columns).to(out.dtype))


@lru_cache
def multiprocessors(device: torch.device) -> int:
    return 4 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Write GELU of x weight' + bias."""
    tiles = triton.cdiv(len(x), ROWS) * triton.cdiv(len(weight), COLUMNS)
    programs = min(multiprocessors(x.device), tiles)
    fixed = {
        "x": TensorDescriptor.from_tensor(x, [ROWS, DEPTH]),
        "weight": TensorDescriptor.from_tensor(weight, [COLUMNS, DEPTH]),
        "out": TensorDescriptor.from_tensor(out, [ROWS, COLUMNS // 2]),
        "rows": len(x), "columns": len(weight), "depth": x.shape[1], "PROGRAMS": programs,
        "ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH, "GROUP": GROUP, "UPCAST": INTERPRETED,
    }  # fmt: skip
    Launch(linear_gelu_kernel, WARPS, fixed)((programs, 1, 1), (bias,))
