"""Owns the launches of the Triton kernels: outputs, grids, tile sizes and precisions.

Shapes: B videos, N class means (R·C of the label sets, then C of the shadow negatives), P table rows, D width.

Two regimes. Small (`inline`): three launches in all: means, logits with softmax, gradients of every row. Larger: the
logits, the softmax and the gradients of means and of unit videos are launches of their own. Sizes come from the shapes
by rule, not by timing: `triton.autotune` cannot run in the interpreter and would make the first steps of a job differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from ace_kernels import triton_kernels as kernels
from ace_kernels.checks import KernelInputError, Table
from ace_kernels.choice import interpreting
from ace_kernels.layout import CHUNK, Layout, layout_of, uses_of
from ace_kernels.torch_path import wide_type

WIDEST = 16384  # embedding width that one program holds in registers
INLINE_VIDEOS, INLINE_MEANS = 64, 256  # up to here every row's program sums over the batch itself
ONE_TILE_CLASSES = 128  # classes of a set that one tile of logits holds
TENSOR_CORE_PRODUCTS = 2**27  # B·N·D from which tensor cores pay; below, float32 products are exact and fast enough
DOT_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, slots=True)
class Plan:
    """How one call is computed, from its shapes and types alone: the forward and the backward agree on it."""

    wide: torch.dtype
    inline: bool
    split: bool
    precision: str

    @property
    def gradient_dot(self) -> torch.dtype:
        """Operands of the gradient products: the videos' own precision when tensor cores serve 16-bit rows."""
        return torch.bfloat16 if self.precision == "bf16" and not interpreting() else self.wide

    @property
    def gradient_precision(self) -> str:
        """Triton's name for it: float16 rows take TF32, whose range does not clip small gradients."""
        return {"bf16": "ieee", "fp16": "tf32"}.get(self.precision, self.precision)


def plan_of(video: Tensor, tables: tuple[Table, ...]) -> Plan:
    """The plan for videos and tables."""
    wide = wide_type(tables, video)
    batch, width = video.shape
    means = sum(table.classes for table in tables)
    if width > WIDEST:
        raise KernelInputError(
            f"the Triton kernels hold rows of up to {WIDEST} numbers, got {width}: ACE_KERNELS=torch"
        )
    inline = batch <= INLINE_VIDEOS and means <= INLINE_MEANS
    large = batch * means * width >= TENSOR_CORE_PRODUCTS and wide == torch.float32
    split = large and video.dtype in (torch.bfloat16, torch.float16)
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[video.dtype] if split else "tf32x3" if large else "ieee"
    return Plan(wide, inline, split, precision)


def launch(kernel: Any, grid: tuple[int, ...], warps: int, checked: bool, **arguments: Any) -> None:
    """Start one kernel. `checked` compiles its assertions in."""
    settings: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": True}
    if checked:
        settings |= {"debug": True, "sanitize_overflow": False}
    kernel[grid](**arguments, **settings)


def row_block(width: int, plan: Plan) -> tuple[dict[str, Any], int]:
    """Rows and columns of the register tile that holds whole rows, its type, and the warps for it.

    Many rows: small tiles, so that enough programs live on a multiprocessor to keep its memory busy (2,048 numbers take
    about 64 registers a thread). Few rows: one large tile, because each turn of a loop waits for memory once.
    """
    columns = triton.next_power_of_2(max(16, width))
    numbers = 8192 if plan.inline else 2048
    if plan.wide == torch.float64:
        numbers //= 2
    rows = max(1, min(16, numbers // columns))
    warps = 4 if rows * columns <= 4096 else 8 if rows * columns <= 8192 else 16
    return {"BLOCK_R": rows, "BLOCK_D": columns, "WIDE": DOT_TYPES[plan.wide]}, warps


def double(value: float) -> dict[str, float]:
    """A float64 as two float32: Triton passes floats as float32."""
    high = float(numpy.float32(value))
    return {"high": high, "low": value - high}


def means_of(video: Tensor, tables: tuple[Table, ...], plan: Plan) -> tuple[Tensor, Tensor]:
    """Class means [N, D] (as two 16-bit planes when split) and inverse norms of the videos [B]: one launch."""
    (batch, width), total = video.shape, sum(table.classes for table in tables)
    means = video.new_empty((total, width), dtype=plan.wide)
    inverse = video.new_empty((batch,), dtype=plan.wide)
    block, warps = row_block(width, plan)
    layouts = [layout_of(table) for table in tables]
    sums = [
        None if layout.chunk_owner is None else video.new_empty((layout.programs, width), dtype=plan.wide)
        for layout in layouts
    ]
    planes = planes_of(means, video, plan)
    programs = sum(layout.programs for layout in layouts) + triton.cdiv(batch, block["BLOCK_R"])
    launch(
        kernels.means_kernel,
        (programs,),
        warps,
        any(layout.unchecked for layout in layouts),
        **means_arguments("text", tables[0], layouts[0], sums[0]),
        **means_arguments("shadow", tables[-1], layouts[-1], sums[-1], len(tables) > 1),
        shadow_base=tables[0].classes,
        SHADOWED=len(tables) > 1,
        video=video,
        video_stride=video.stride(0),
        video_stride_d=video.stride(1),
        batch=batch,
        means=planes,
        inverse_norms=inverse,
        total_n=total,
        width=width,
        SPLIT=plan.split,
        CHUNK=CHUNK,
        **block,
    )
    base = 0
    for table, layout, partial in zip(tables, layouts, sums, strict=True):
        if partial is not None:
            launch(
                kernels.combine_kernel, (table.classes,), warps, layout.unchecked, sums=partial,
                offsets=layout.offsets, starts=layout.chunk_start, means=planes, base=base, total_n=total, width=width,
                CHECK=layout.unchecked, SPLIT=plan.split, WIDE=block["WIDE"], BLOCK_D=block["BLOCK_D"],
            )  # fmt: skip
        base += table.classes
    return means, inverse


def means_arguments(
    name: str, table: Table, layout: Layout, sums: Tensor | None, present: bool = True
) -> dict[str, Any]:
    """Arguments of `means_kernel` for one table; an absent one gets no program."""
    spare = layout.offsets  # stands for a pointer that is not read
    chunked = layout.chunk_owner is not None
    values = {
        "": table.rows_PD,
        "_index": spare if layout.index is None else layout.index,
        "_offsets": layout.offsets,
        "_owners": layout.chunk_owner if chunked else spare,
        "_starts": layout.chunk_start if chunked else spare,
        "_stride": table.rows_PD.stride(0),
        "_stride_d": table.rows_PD.stride(1),
        "_height": table.rows_PD.shape[0],
        "_positions": table.positions,
        "_programs": layout.programs if present else 0,
        "_sums": spare if sums is None else sums,
    }
    modes = {"_MODE": int(chunked), "_INDEXED": layout.index is not None, "_CHECK": layout.unchecked}
    return {name + key: value for key, value in values.items()} | {name.upper() + key: v for key, v in modes.items()}


def planes_of(means: Tensor, video: Tensor, plan: Plan) -> Tensor:
    """The memory of [N, D] means as the kernels read it: two 16-bit planes take the room of one in float32."""
    return means.view(video.dtype) if plan.split else means


def logits_blocks(batch: int, classes: int, plan: Plan, softmax: bool) -> tuple[dict[str, Any], int]:
    """Tile sizes and warps of `logits_kernel`."""
    if softmax:
        rows, columns = max(16, triton.next_power_of_2(batch)), max(16, triton.next_power_of_2(classes))
        sizes = (rows, columns, 128 if rows * columns <= 1024 else 32)
    elif plan.split:
        sizes = (128, 128, 64)
    else:
        sizes = (min(64, max(16, triton.next_power_of_2(batch))), 64, 32)
    blocks = dict(zip(("BLOCK_B", "BLOCK_C", "BLOCK_K"), sizes, strict=True))
    return blocks, 8 if sizes[0] * sizes[1] >= 64 * 128 else 4


def logits_of(
    video: Tensor,
    tables: tuple[Table, ...],
    temperature: float,
    labels: Tensor | None = None,
    sets: int = 1,
    shadowed: bool = False,
) -> dict[str, Tensor]:
    """Means, logits, and with labels the losses with the derivatives in the logits: two launches, or three."""
    plan = plan_of(video, tables)
    means, inverse = means_of(video, tables, plan)
    batch, total = video.shape[0], means.shape[0]
    classes = total // (sets + shadowed)
    columns = classes * sets
    softmax = labels is not None and plan.inline and classes <= ONE_TILE_CLASSES
    out = video.new_empty((batch, columns), dtype=plan.wide)
    losses = video.new_empty((sets,) if softmax else (sets, batch), dtype=plan.wide)
    shadow_out = video.new_empty((batch, sets) if shadowed else (0,), dtype=plan.wide)
    shared: dict[str, Any] = {
        "video": video, "inverse_norms": inverse, "means": planes_of(means, video, plan),
        "labels": inverse if labels is None else labels, "out": out, "shadow_out": shadow_out, "losses": losses,
        "video_stride": video.stride(0), "video_stride_d": video.stride(1), "batch": batch, "classes": classes,
        "columns": columns, "total_n": total, "width": video.shape[1], "sets": sets, **double(1 / temperature),
        "SHADOWED": shadowed, "CHECK": labels is not None, "SPLIT": plan.split, "WIDE": DOT_TYPES[plan.wide],
    }  # fmt: skip
    blocks, warps = logits_blocks(batch, classes, plan, softmax)
    grid = (triton.cdiv(batch, blocks["BLOCK_B"]), triton.cdiv(classes, blocks["BLOCK_C"]), sets)
    launch(
        kernels.logits_kernel, grid, warps, softmax, **shared, SOFTMAX=softmax, ONE_BLOCK=softmax,
        UPCAST=interpreting(), PRECISION="ieee" if plan.split else plan.precision, **blocks,
    )  # fmt: skip
    if labels is not None and not softmax:
        launch(
            kernels.softmax_kernel, (triton.cdiv(batch, 4), sets), 4, True, **shared,
            BLOCK_B=4, BLOCK_C=min(512, max(16, triton.next_power_of_2(classes))), BLOCK_K=128,
        )  # fmt: skip
        losses = losses.mean(1)
    return {"out": out, "losses": losses, "shadow": shadow_out, "means": means, "inverse": inverse}


def similarity(video_BD: Tensor, tables: tuple[Table, ...], temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """As in `torch_path`."""
    found = logits_of(video_BD, tables, temperature)
    return found["out"], found["means"], found["inverse"]


def cross_entropy(
    video_BD: Tensor, tables: tuple[Table, ...], labels_B: Tensor, sets: int, shadowed: bool, temperature: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As in `torch_path`."""
    found = logits_of(video_BD, tables, temperature, labels_B.contiguous(), sets, shadowed)
    return found["losses"], found["out"], found["shadow"], found["means"], found["inverse"]


def gradients(
    weights_BN: Tensor,
    shadow_BR: Tensor | None,
    labels_B: Tensor | None,
    scales_R: Tensor | None,
    factor: float,
    video_BD: Tensor,
    tables: tuple[Table, ...],
    means_ND: Tensor,
    inverse_B: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """As in `torch_path`: one launch, or three when the batch or the classes are many."""
    plan = plan_of(video_BD, tables)
    sets = 1 if scales_R is None else scales_R.numel()
    shared: dict[str, Any] = {
        "weights": weights_BN.contiguous(),
        "shadow_weights": weights_BN if shadow_BR is None else shadow_BR,
        "labels": inverse_B if labels_B is None else labels_B.contiguous(),
        "scales": inverse_B if scales_R is None else scales_R.contiguous(),
        "batch": video_BD.shape[0],
        "classes": weights_BN.shape[1] // sets,
        "columns": weights_BN.shape[1],
        "total_n": means_ND.shape[0],
        "width": video_BD.shape[1],
        **double(factor),
        "SETS": sets,
        "SCALED": scales_R is not None,
        "SHADOWED": shadow_BR is not None,
        "WIDE": DOT_TYPES[plan.wide],
    }
    videos = {
        "video": video_BD, "inverse_norms": inverse_B,
        "video_stride": video_BD.stride(0), "video_stride_d": video_BD.stride(1),
    }  # fmt: skip
    planes = planes_of(means_ND, video_BD, plan)
    mean_grads, video_grads = (None, None) if plan.inline else summed(shared, videos, planes, plan, needs)
    outs = [
        torch.empty_like(rows, memory_format=torch.contiguous_format) if needed else None
        for rows, needed in zip((video_BD, *(table.rows_PD for table in tables)), needs, strict=True)
    ]
    second = len(tables) > 1
    block, warps = row_block(video_BD.shape[1], plan)
    del shared["WIDE"]
    text, text_programs = gradient_arguments("text", tables[0], outs[1])
    shadow, shadow_programs = gradient_arguments("shadow", tables[-1], outs[2] if second else None)
    launch(
        kernels.row_gradients_kernel, (text_programs + shadow_programs + (video_BD.shape[0] if needs[0] else 0),),
        warps, False, **shared, **videos, **text, **shadow, shadow_base=tables[0].classes,
        mean_grads=inverse_B if mean_grads is None else mean_grads,
        video_grads=inverse_B if video_grads is None else video_grads,
        means=planes, video_out=video_BD if outs[0] is None else outs[0], INLINE=plan.inline, SPLIT=plan.split,
        CHUNK=CHUNK, **block,
    )  # fmt: skip
    return tuple(outs)


def gradient_arguments(name: str, table: Table, out: Tensor | None) -> tuple[dict[str, Any], int]:
    """Arguments of `row_gradients_kernel` for one table and its programs: none when no gradient is asked for."""
    layout = layout_of(table)
    owners, starts, programs, mode = layout.offsets, layout.offsets, layout.programs, 0
    if layout.chunk_owner is not None and layout.chunk_start is not None:
        owners, starts, mode = layout.chunk_owner, layout.chunk_start, 1
    if table.index_S is not None and out is not None:
        found = uses_of(table)
        owners, starts, programs, mode = found.owners, found.starts, table.rows_PD.shape[0], 2
    programs = 0 if out is None else programs
    values = {
        "": table.rows_PD, "_out": table.rows_PD if out is None else out, "_offsets": layout.offsets,
        "_owners": owners, "_starts": starts, "_stride": table.rows_PD.stride(0),
        "_stride_d": table.rows_PD.stride(1), "_programs": programs,
    }  # fmt: skip
    arguments = {name + key: value for key, value in values.items()}
    return arguments | {name.upper() + "_MODE": mode, f"HAS_{name.upper()}": out is not None}, programs


def summed(
    shared: dict[str, Any], videos: dict[str, Any], planes: Tensor, plan: Plan, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the class means [N, D] and of the unit videos [B, D], for the large regime."""
    weights = shared["weights"]
    total, batch, width = shared["total_n"], shared["batch"], shared["width"]
    dot = DOT_TYPES[plan.gradient_dot]
    small = plan.precision == "ieee"
    rows, inner, columns = (32, 32, 64) if small else (64, 32, 64) if not plan.split else (64, 64, 128)
    warps = 4 if small else 8
    tile = {"DOT": dot, "PRECISION": plan.gradient_precision, "BLOCK_K": inner, "BLOCK_D": columns}
    mean_grads = video_grads = None
    if any(needs[1:]):
        mean_grads = weights.new_empty((total, width), dtype=plan.wide)
        grid = (triton.cdiv(total, rows), triton.cdiv(width, columns))
        launch(
            kernels.mean_gradients_kernel, grid, warps, False, **shared, **videos, out=mean_grads, BLOCK_N=rows, **tile
        )  # fmt: skip
    if needs[0]:
        video_grads = weights.new_empty((batch, width), dtype=plan.wide)
        grid = (triton.cdiv(batch, rows), triton.cdiv(width, columns))
        launch(
            kernels.video_gradients_kernel, grid, warps, False, **shared, means=planes, out=video_grads,
            SPLIT=plan.split, BLOCK_B=rows, **tile,
        )  # fmt: skip
    return mean_grads, video_grads
