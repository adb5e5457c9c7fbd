"""Residual and layer norm with the change of layout in Triton: a program holds a few whole rows, read and written once.

A row is D contiguous numbers, so that finding rows in another order costs no bandwidth. Sums are float32, in an order
that depends on the width alone: equal inputs give equal bits.
"""
# Arguments of a kernel are pointers, sizes and compile-time numbers; their types are those of the launch.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ace_kernels.backend import Launch
from ace_kernels.fp8_rows import Fp8Rows
from ace_kernels.fp8_rows_triton import store_rows
from ace_kernels.residual_norm import Norm, Tokens


@triton.jit
def add(x, places, inside, y):
    """x += y, rounded to the type of `x`; returns the rounded sum in float32."""
    total = (tl.load(x + places, mask=inside, other=0.0).to(tl.float32) + y).to(x.dtype.element_ty)
    tl.store(x + places, total, mask=inside)
    return total.to(tl.float32)


@triton.jit
def store_norm(
    out, scales, row, exists, x, weight, bias, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, FP8: tl.constexpr
):  # fmt: skip
    """Write the layer norm of rows [ROWS, BLOCK] that are zeros beyond WIDTH."""
    column = tl.arange(0, BLOCK)
    inside = exists[:, None] & (column < WIDTH)[None, :]
    gain = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
    y = centred * scale[:, None] * gain[None, :] + shift[None, :]
    store_rows(out, scales, row, exists, y, WIDTH, BLOCK, FP8)


@triton.jit
def add_norm_kernel(
    x, y, weight, bias, out, scales, eps, rows,
    ADD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """x += y (with `ADD`), out = norm(x), row by row."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    places = row[:, None] * WIDTH + column[None, :]
    if ADD:
        total = add(x, places, inside, tl.load(y + places, mask=inside, other=0.0).to(tl.float32))
    else:
        total = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    store_norm(out, scales, row, row < rows, total, weight, bias, eps, WIDTH, BLOCK, FP8)


@triton.jit
def to_frames_kernel(
    x, y, weight, bias, out, scales, eps, patch_rows, rows,
    PATCHES: tl.constexpr, FRAMES: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Rows of the frames in their order; the cls of a clip is read for each of its frames and not written."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    frame, token = row // (1 + PATCHES), row % (1 + PATCHES)
    clip = frame // FRAMES
    is_patch = token > 0
    source = tl.where(is_patch, (clip * PATCHES + token - 1) * FRAMES + frame % FRAMES, patch_rows + clip)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    patch = inside & is_patch[:, None]
    places = source[:, None] * WIDTH + column[None, :]
    total = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(y + places, mask=patch, other=0.0).to(tl.float32)
    total = total.to(x.dtype.element_ty)
    tl.store(x + places, total, mask=patch)
    store_norm(out, scales, row, row < rows, total.to(tl.float32), weight, bias, eps, WIDTH, BLOCK, FP8)


@triton.jit
def from_frames_kernel(
    x, y, weight, bias, out, scales, eps, patch_rows, clips, cls_programs,
    PATCHES: tl.constexpr, FRAMES: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Rows of the tokens in their order; first the programs of the cls, which read T rows each."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    if program < cls_programs:
        clip = program * ROWS + tl.arange(0, ROWS)
        row, exists = patch_rows + clip, clip < clips
        inside = exists[:, None] & (column < WIDTH)[None, :]
        added = tl.zeros((ROWS, BLOCK), tl.float32)
        for frame in range(FRAMES):
            source = (clip * FRAMES + frame) * (1 + PATCHES)
            added += tl.load(y + source[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total = add(x, row[:, None] * WIDTH + column[None, :], inside, added / FRAMES)
        store_norm(out, scales, row, exists, total, weight, bias, eps, WIDTH, BLOCK, FP8)
    else:
        row = (program - cls_programs) * ROWS + tl.arange(0, ROWS)
        exists = row < patch_rows
        inside = exists[:, None] & (column < WIDTH)[None, :]
        place = row // FRAMES
        source = (place // PATCHES * FRAMES + row % FRAMES) * (1 + PATCHES) + 1 + place % PATCHES
        added = tl.load(y + source[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(tl.float32)
        total = add(x, row[:, None] * WIDTH + column[None, :], inside, added)
        store_norm(out, scales, row, exists, total, weight, bias, eps, WIDTH, BLOCK, FP8)


class Tile(NamedTuple):
    """Rows of a program, and the warps that hold them."""

    held: int
    warps: int


def choose_rows(block: int) -> Tile:
    """Two rows of up to 1024 numbers, else one."""
    return Tile(max(1, 2048 // block), 4 if block <= 4096 else 8)


@lru_cache(maxsize=256)
def build_launch(
    kernel: Any, tile: Tile, counts: tuple[int, ...], eps: float, fp8: bool, width: int,
    dtype: torch.dtype, device: int, **sizes: int,
) -> tuple[Launch, tuple[int, int, int]]:  # fmt: skip
    """A launch, and its grid: programs for each of `counts` rows.

    Type and device belong to what is kept: compiled kernels do not leave theirs.
    """
    block = triton.next_power_of_2(width)
    fixed = {"eps": eps, **sizes, "WIDTH": width, "BLOCK": block, "ROWS": tile.held, "FP8": fp8}
    return Launch(kernel, tile.warps, fixed), (sum(triton.cdiv(count, tile.held) for count in counts), 1, 1)


def start(
    kernel: Any, counts: tuple[int, ...], x: Tensor, y: Tensor, norm: Norm, out: Tensor | Fp8Rows, **sizes: int
) -> None:
    width, fp8 = x.shape[1], isinstance(out, Fp8Rows)
    tile = choose_rows(triton.next_power_of_2(width))
    launch, grid = build_launch(kernel, tile, counts, norm.eps, fp8, width, x.dtype, x.get_device(), **sizes)
    if grid[0]:
        launch(grid, (x, y, norm.weight, norm.bias, *(out if isinstance(out, Fp8Rows) else (out, out))))


def add_norm(x: Tensor, y: Tensor | None, norm: Norm, out: Tensor | Fp8Rows) -> None:
    start(add_norm_kernel, (len(x),), x, x if y is None else y, norm, out, rows=len(x), ADD=y is not None)


def add_norm_to_frames(x: Tensor, y: Tensor, norm: Norm, tokens: Tokens, out: Tensor | Fp8Rows) -> None:
    start(
        to_frames_kernel, (tokens.frame_rows,), x, y, norm, out,
        patch_rows=tokens.patch_rows, rows=tokens.frame_rows, PATCHES=tokens.patches, FRAMES=tokens.frames,
    )  # fmt: skip


def add_norm_from_frames(x: Tensor, y: Tensor, norm: Norm, tokens: Tokens, out: Tensor | Fp8Rows) -> None:
    held = choose_rows(triton.next_power_of_2(x.shape[1])).held
    start(
        from_frames_kernel, (tokens.clips, tokens.patch_rows), x, y, norm, out,
        patch_rows=tokens.patch_rows, clips=tokens.clips, cls_programs=triton.cdiv(tokens.clips, held),
        PATCHES=tokens.patches, FRAMES=tokens.frames,
    )  # fmt: skip
