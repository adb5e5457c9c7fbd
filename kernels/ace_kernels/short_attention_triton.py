"""Attention over short sequences in Triton: one kernel forward, one backward, and their launches.

A program holds one tile: `PACK` whole sequences of `FRAMES` tokens under each other for one head, padded to `ROWS`
rows. Scores of a tile are [ROWS, ROWS]; a row sees the columns of its own sequence. Padding rows see one another, are
zeros, and are never stored, so that no row is without a column and nothing is divided by zero.

Softmax and sums are float32. Nothing is added by atomics: equal inputs give equal bits. Sizes follow from the shapes by
rule, not by timing: `triton.autotune` cannot run in the interpreter and would make the first steps of a job differ.
`benchmarks/bench_attention.py --sweep` times others.
"""
# Arguments of a kernel are pointers, sizes and compile-time numbers; their types are those of the launch.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def, misc, no-untyped-call, untyped-decorator"

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ace_kernels.backend import INTERPRETED, Launch

NUMBERS_OF_A_WARP = {"forward": 2048, "backward": 1024}  # 16-bit numbers of one tile (float32: half) a warp holds
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_rows(
    program, sequences, inner,
    HEADS: tl.constexpr, FRAMES: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    """Head of a program, and of each of its rows: outer and inner index of the sequence, frame, and whether it exists.

    Heads vary fastest over the programs: those that run together read neighbouring lines of memory.
    """
    row = tl.arange(0, ROWS)
    sequence = (program // HEADS).to(tl.int64) * PACK + row // FRAMES
    exists = (row < PACK * FRAMES) & (sequence < sequences)
    if NESTED:
        return program % HEADS, sequence // inner, sequence % inner, (row % FRAMES).to(tl.int64), exists
    else:
        return program % HEADS, sequence, tl.zeros_like(sequence), (row % FRAMES).to(tl.int64), exists


@triton.jit
def tile_places(
    head, outer, within, frame, stride_outer, stride_inner, stride_frame, stride_head, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Offsets [ROWS, BLOCK_D] of the rows of a tile in a tensor whose last axis is contiguous."""
    start = outer * stride_outer + within * stride_inner + frame * stride_frame + head.to(tl.int64) * stride_head
    return start[:, None] + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_tile(tensor, places, exists, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of a tile, zeros where there is none. `UPCAST`: the interpreter multiplies the bit patterns of bfloat16."""
    if WIDTH == BLOCK_D:
        tile = tl.load(tensor + places, mask=exists[:, None], other=0.0)
    else:
        inside = exists[:, None] & (tl.arange(0, BLOCK_D) < WIDTH)[None, :]
        tile = tl.load(tensor + places, mask=inside, other=0.0)
    return tile.to(tl.float32) if UPCAST else tile


@triton.jit
def store_tile(tensor, places, exists, tile, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write the rows that exist, rounded to the type of the tensor."""
    tile = tile.to(tensor.dtype.element_ty)
    if WIDTH == BLOCK_D:
        tl.store(tensor + places, tile, mask=exists[:, None])
    else:
        tl.store(tensor + places, tile, mask=exists[:, None] & (tl.arange(0, BLOCK_D) < WIDTH)[None, :])


@triton.jit
def probabilities(q, k, scale, FRAMES: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """Softmax of scale · q k' within each sequence of the tile, float32 [ROWS, ROWS]."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2_E)
    if FRAMES != ROWS:
        row = tl.arange(0, ROWS) // FRAMES
        scores = tl.where(row[:, None] == row[None, :], scores, -float("inf"))
    mass = tl.exp2(scores - tl.max(scores, 1)[:, None])
    return mass / tl.sum(mass, 1)[:, None]


@triton.jit
def forward_kernel(
    q, k, v, out,
    q_outer, q_inner, q_frame, q_head, k_outer, k_inner, k_frame, k_head, v_outer, v_inner, v_frame, v_head,
    out_outer, out_inner, out_frame, out_head, sequences, inner, scale,
    HEADS: tl.constexpr, FRAMES: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr, NESTED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """softmax(scale · q k') v of one tile."""
    head, outer, within, frame, exists = tile_rows(
        tl.program_id(0), sequences, inner, HEADS, FRAMES, PACK, ROWS, NESTED
    )
    q_places = tile_places(head, outer, within, frame, q_outer, q_inner, q_frame, q_head, BLOCK_D)
    k_places = tile_places(head, outer, within, frame, k_outer, k_inner, k_frame, k_head, BLOCK_D)
    v_places = tile_places(head, outer, within, frame, v_outer, v_inner, v_frame, v_head, BLOCK_D)
    q_tile = load_tile(q, q_places, exists, WIDTH, BLOCK_D, UPCAST)
    k_tile = load_tile(k, k_places, exists, WIDTH, BLOCK_D, UPCAST)
    v_tile = load_tile(v, v_places, exists, WIDTH, BLOCK_D, UPCAST)
    p = probabilities(q_tile, k_tile, scale, FRAMES, ROWS, PRECISION)
    result = tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)
    places = tile_places(head, outer, within, frame, out_outer, out_inner, out_frame, out_head, BLOCK_D)
    store_tile(out, places, exists, result, WIDTH, BLOCK_D)


@triton.jit
def backward_kernel(
    q, k, v, grad, dq, dk, dv,
    q_outer, q_inner, q_frame, q_head, k_outer, k_inner, k_frame, k_head, v_outer, v_inner, v_frame, v_head,
    grad_outer, grad_inner, grad_frame, grad_head, dq_outer, dq_inner, dq_frame, dq_head,
    dk_outer, dk_inner, dk_frame, dk_head, dv_outer, dv_inner, dv_frame, dv_head, sequences, inner, scale,
    NEEDS_Q: tl.constexpr, NEEDS_K: tl.constexpr, NEEDS_V: tl.constexpr,
    HEADS: tl.constexpr, FRAMES: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr, NESTED: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile. The probabilities P are computed again, which is cheaper than reading them.

    dV = P' dO;  dP = dO V';  dS = P ∘ (dP - rowsum(P ∘ dP));  dQ = scale · dS K;  dK = scale · dS' Q.
    """
    head, outer, within, frame, exists = tile_rows(
        tl.program_id(0), sequences, inner, HEADS, FRAMES, PACK, ROWS, NESTED
    )
    q_places = tile_places(head, outer, within, frame, q_outer, q_inner, q_frame, q_head, BLOCK_D)
    k_places = tile_places(head, outer, within, frame, k_outer, k_inner, k_frame, k_head, BLOCK_D)
    v_places = tile_places(head, outer, within, frame, v_outer, v_inner, v_frame, v_head, BLOCK_D)
    g_places = tile_places(head, outer, within, frame, grad_outer, grad_inner, grad_frame, grad_head, BLOCK_D)
    q_tile = load_tile(q, q_places, exists, WIDTH, BLOCK_D, UPCAST)
    k_tile = load_tile(k, k_places, exists, WIDTH, BLOCK_D, UPCAST)
    g_tile = load_tile(grad, g_places, exists, WIDTH, BLOCK_D, UPCAST)
    if NEEDS_Q or NEEDS_K:
        v_tile = load_tile(v, v_places, exists, WIDTH, BLOCK_D, UPCAST)
    p = probabilities(q_tile, k_tile, scale, FRAMES, ROWS, PRECISION)
    if NEEDS_V:
        dv_tile = tl.dot(tl.trans(p.to(g_tile.dtype)), g_tile, input_precision=PRECISION)
        places = tile_places(head, outer, within, frame, dv_outer, dv_inner, dv_frame, dv_head, BLOCK_D)
        store_tile(dv, places, exists, dv_tile, WIDTH, BLOCK_D)
    if NEEDS_Q or NEEDS_K:
        dp = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(q_tile.dtype)
        if NEEDS_Q:
            dq_tile = tl.dot(ds, k_tile, input_precision=PRECISION)
            places = tile_places(head, outer, within, frame, dq_outer, dq_inner, dq_frame, dq_head, BLOCK_D)
            store_tile(dq, places, exists, dq_tile, WIDTH, BLOCK_D)
        if NEEDS_K:
            dk_tile = tl.dot(tl.trans(ds), q_tile, input_precision=PRECISION)
            places = tile_places(head, outer, within, frame, dk_outer, dk_inner, dk_frame, dk_head, BLOCK_D)
            store_tile(dk, places, exists, dk_tile, WIDTH, BLOCK_D)


class Tile(NamedTuple):
    """Rows of a program's tile, and the warps that hold it."""

    rows: int
    warps: int


@lru_cache(maxsize=256)
def choose_tile(tokens: int, width: int, size: int, direction: str) -> Tile:
    """The tile for sequences of `tokens` tokens, heads of `width` numbers of `size` bytes.

    The least rows that hold a sequence, so that few scores are masked; as few warps as registers allow, because within
    one warp reductions and transposes need no barrier. Instructions per sequence and head grow by half with twice the
    warps (compiled for sm_90: the table in kernels/README.md).
    """
    rows = 16 if tokens <= 16 else 32
    numbers = rows * triton.next_power_of_2(max(16, width)) * size // 2
    return Tile(rows, max(1, numbers // NUMBERS_OF_A_WARP[direction]))


FORWARD, BACKWARD = ("q", "k", "v", "out"), ("q", "k", "v", "grad", "dq", "dk", "dv")  # tensors of the kernels


@lru_cache(maxsize=256)
def build_launch(
    shape: torch.Size, dtype: torch.dtype, strides: tuple[tuple[int, ...], ...], scale: float,
    needs: tuple[bool, ...], tile: Tile, device: int,
) -> tuple[Launch, tuple[int, int, int]]:  # fmt: skip
    """The launch over all tiles and heads, and its grid: of the backward where `needs` says which gradients are wanted.

    The device belongs to what is kept, as compiled kernels do not leave theirs.
    """
    kernel, names = (backward_kernel, BACKWARD) if needs else (forward_kernel, FORWARD)
    tokens, heads, width = shape[-3:]
    sequences = shape.numel() // (tokens * heads * width)
    pack = tile.rows // tokens
    nested = len(shape) == 5 and shape[0] > 1 and any(each[0] != shape[1] * each[1] for each in strides)
    fixed: dict[str, Any] = {f"NEEDS_{name}": needed for name, needed in zip("QKV", needs, strict=False)}
    for name, each in zip(names, strides, strict=True):
        outer, inner = (each[0], each[1]) if nested else (each[-4], 0)
        fixed |= {f"{name}_outer": outer, f"{name}_inner": inner, f"{name}_frame": each[-3], f"{name}_head": each[-2]}
    fixed |= {
        "sequences": sequences, "inner": shape[1] if nested else 1, "scale": scale,
        "HEADS": heads, "FRAMES": tokens, "PACK": pack, "ROWS": tile.rows, "NESTED": nested, "WIDTH": width,
        "BLOCK_D": triton.next_power_of_2(max(16, width)), "UPCAST": INTERPRETED,
        # Three TF32 products keep float32's digits; in IEEE float32 the tiles would be multiplied outside tensor cores.
        "PRECISION": "tf32x3" if dtype == torch.float32 else "ieee",
    }  # fmt: skip
    return Launch(kernel, tile.warps, fixed), (triton.cdiv(sequences, pack) * heads, 1, 1)


def start(tensors: Sequence[Tensor], scale: float, needs: tuple[bool, ...] = ()) -> None:
    q = tensors[0]
    strides = tuple([x.stride() for x in tensors])
    tile = choose_tile(q.shape[-3], q.shape[-1], q.dtype.itemsize, "backward" if needs else "forward")
    launch, grid = build_launch(q.shape, q.dtype, strides, scale, needs, tile, q.get_device())
    launch(grid, tensors)


def dense(x: Tensor) -> Tensor:
    """The tensor, copied if its last axis is not contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Write softmax(scale · q k') v of every sequence and head into `out`."""
    start((dense(q), dense(k), dense(v), out), scale)


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, outs: Sequence[Tensor | None]) -> None:
    """Write the gradients of q, k and v into `outs`, where it is not None."""
    inputs = dense(q), dense(k), dense(v)
    needs = tuple([out is not None for out in outs])
    rooms = [x if out is None else out for x, out in zip(inputs, outs, strict=True)]  # where None, it is not touched
    start((*inputs, dense(grad), *rooms), scale, needs)
