"""Rows as 8-bit floats in Triton: a program holds a few whole rows, so that each is read once."""
# Arguments of a kernel are pointers, sizes and compile-time numbers; their types are those of the launch.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ace_kernels.backend import Launch
from ace_kernels.fp8_rows import LARGEST, SMALLEST_TOP, Fp8Rows
from ace_kernels.gelu_triton import gelu

TOP = tl.constexpr(LARGEST)
LEAST = tl.constexpr(SMALLEST_TOP)
LEAST_THIRD = 512  # numbers, from which a program holds one row in thirds


@triton.jit
def store_rows(out, scales, row, exists, y, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr):
    """Write float32 rows [ROWS, BLOCK], zeros beyond WIDTH, rounded to the type of `out`, with `FP8` scaled."""
    column = tl.arange(0, BLOCK)
    places = row[:, None] * WIDTH + column[None, :]
    inside = exists[:, None] & (column < WIDTH)[None, :]
    if FP8:
        top = tl.maximum(tl.max(tl.abs(y), 1), LEAST)
        scale = top / TOP
        tl.store(scales + row, scale, mask=exists)
        y *= (1.0 / scale)[:, None]
    tl.store(out + places, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def fp8_rows_kernel(
    x, out, scales, rows, GELU: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """A scale a row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    y = tl.load(x + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if GELU:
        y = gelu(y)
    store_rows(out, scales, row, row < rows, y, WIDTH, BLOCK, True)


@triton.jit
def load_third(x, places, GELU: tl.constexpr):
    y = tl.load(x + places).to(tl.float32)
    return gelu(y) if GELU else y


@triton.jit
def fp8_thirds_kernel(x, out, scales, GELU: tl.constexpr, WIDTH: tl.constexpr, THIRD: tl.constexpr):
    """A row of three powers of two, such as the 3072 of an MLP: no lane beyond the row."""
    row = tl.program_id(0).to(tl.int64)
    places = row * WIDTH + tl.arange(0, THIRD)
    a, b, c = load_third(x, places, GELU), load_third(x, places + THIRD, GELU), load_third(x, places + 2 * THIRD, GELU)
    top = tl.maximum(tl.max(tl.maximum(tl.maximum(tl.abs(a), tl.abs(b)), tl.abs(c)), 0), LEAST)
    scale = top / TOP
    tl.store(scales + row, scale)
    inverse = 1.0 / scale
    tl.store(out + places, (a * inverse).to(out.dtype.element_ty))
    tl.store(out + places + THIRD, (b * inverse).to(out.dtype.element_ty))
    tl.store(out + places + 2 * THIRD, (c * inverse).to(out.dtype.element_ty))


@lru_cache(maxsize=64)
def build_launch(
    rows: int, width: int, gelu: bool, dtype: torch.dtype, device: int
) -> tuple[Launch, tuple[int, int, int]]:
    """The launch over all rows, and its grid; type and device because compiled kernels do not leave theirs."""
    third, block = width // 3, triton.next_power_of_2(width)
    if width == 3 * triton.next_power_of_2(third) and third >= LEAST_THIRD:
        return Launch(fp8_thirds_kernel, 4, {"GELU": gelu, "WIDTH": width, "THIRD": third}), (rows, 1, 1)
    held = max(1, 2048 // block)
    fixed = {"rows": rows, "GELU": gelu, "WIDTH": width, "BLOCK": block, "ROWS": held}
    return Launch(fp8_rows_kernel, 8 if block > 2048 else 4, fixed), (triton.cdiv(rows, held), 1, 1)


def fp8_rows(x: Tensor, gelu: bool, out: Fp8Rows) -> None:
    """Write `x` or its GELU."""
    launch, grid = build_launch(*x.shape, gelu, x.dtype, x.get_device())
    if grid[0]:
        launch(grid, (x, *out))
