"""The launches of the concept kernels: outputs, grids, tile sizes and precisions.

Shapes: B videos, S positions, P table rows, N class means (R·C of the label sets, then C of the shadow negatives),
D width.

Two regimes. Small (`inline`): three launches in all: means, logits with softmax, gradients of every row. Larger: the
logits, the softmax and the gradients of means and of unit videos are launches of their own. Sizes come from the shapes
by rule, not by timing: `triton.autotune` cannot run in the interpreter and would make the first steps of a job differ.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from ace_kernels import backend
from ace_kernels import concept_triton_kernels as kernels
from ace_kernels.backend import INTERPRETED, KernelInputError
from ace_kernels.concept_problem import Problem, Saved

WIDEST = 16384  # embedding width that one program holds in registers
INLINE_VIDEOS, INLINE_MEANS = 64, 256  # up to here every row's program sums over the batch itself
ONE_TILE_CLASSES = 128  # classes of a set that one tile of logits holds
TENSOR_CORE_PRODUCTS = 2**27  # B·N·D from which tensor cores pay; below, float32 products are exact and fast enough
DOT_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How one call is computed, from its shapes and types alone: the forward and the backward agree on it."""

    wide: torch.dtype
    inline: bool
    split: bool  # means are kept as the sum of two 16-bit numbers
    precision: str

    @property
    def gradient_dot(self) -> torch.dtype:
        """Operands of the gradient products: the videos' own precision when tensor cores serve 16-bit rows."""
        return torch.bfloat16 if self.precision == "bf16" and not INTERPRETED else self.wide

    @property
    def gradient_precision(self) -> str:
        """Triton's name for it: float16 rows take TF32, whose range does not clip small gradients."""
        return {"bf16": "ieee", "fp16": "tf32"}.get(self.precision, self.precision)


def build_plan(problem: Problem) -> LaunchPlan:
    """The plan of a problem. Raises `KernelInputError` for rows that are too wide."""
    video, wide = problem.video_BD, problem.wide
    batch, width = video.shape
    if width > WIDEST:
        raise KernelInputError(
            f"the Triton kernels hold rows of up to {WIDEST} numbers, got {width}: ACE_KERNELS=torch"
        )
    inline = batch <= INLINE_VIDEOS and problem.means <= INLINE_MEANS
    large = batch * problem.means * width >= TENSOR_CORE_PRODUCTS and wide == torch.float32
    split = large and video.dtype in (torch.bfloat16, torch.float16)
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[video.dtype] if split else "tf32x3" if large else "ieee"
    return LaunchPlan(wide, inline, split, precision)


def forward(problem: Problem) -> tuple[Tensor, Saved]:
    """As in `concept_torch`: means, then logits, in two launches; a third for losses over many classes."""
    plan, video, labels = build_plan(problem), problem.video_BD, problem.labels_B
    batch, sets, classes, shadowed = video.shape[0], problem.sets, problem.classes, problem.shadowed
    means, inverse = class_means(problem, plan)
    softmax = labels is not None and plan.inline and classes <= ONE_TILE_CLASSES
    out = video.new_empty((batch, sets * classes), dtype=plan.wide)
    losses = video.new_empty((sets,) if softmax else (sets, batch), dtype=plan.wide)
    shadow_out = video.new_empty((batch, sets) if shadowed else (0,), dtype=plan.wide)
    shared: dict[str, Any] = {
        **video_arguments(problem, inverse), "means": planes(means, video, plan), "out": out, "shadow_out": shadow_out,
        "losses": losses, "labels": inverse if labels is None else labels.contiguous(), "batch": batch,
        "classes": classes, "columns": sets * classes, "total_n": problem.means, "width": video.shape[1], "sets": sets,
        **two_floats(1 / problem.temperature), "SHADOWED": shadowed, "SPLIT": plan.split,
        "WIDE": DOT_TYPES[plan.wide],
    }  # fmt: skip
    blocks, warps = logits_blocks(batch, classes, plan, softmax)
    grid = (triton.cdiv(batch, blocks["BLOCK_B"]), triton.cdiv(classes, blocks["BLOCK_C"]), sets)
    backend.launch(
        kernels.logits_kernel, grid, warps, softmax, **shared, SOFTMAX=softmax,
        UPCAST=INTERPRETED, PRECISION="ieee" if plan.split else plan.precision, **blocks,
    )  # fmt: skip
    if labels is None:
        return out, Saved(means, inverse, out.new_empty(0), shadow_out)
    if not softmax:
        backend.launch(
            kernels.softmax_kernel, (triton.cdiv(batch, 4), sets), 4, True, **shared,
            BLOCK_B=4, BLOCK_C=min(512, max(16, triton.next_power_of_2(classes))), BLOCK_K=128,
        )  # fmt: skip
        losses = losses.mean(1)
    return losses, Saved(means, inverse, out, shadow_out)


def class_means(problem: Problem, plan: LaunchPlan) -> tuple[Tensor, Tensor]:
    """Class means [N, D] (as two 16-bit planes when split) and inverse norms of the videos [B]: one launch."""
    video, text = problem.video_BD, problem.text_PD
    batch, width = video.shape
    means = video.new_empty((problem.means, width), dtype=plan.wide)
    inverse = video.new_empty((batch,), dtype=plan.wide)
    block, warps = row_block(width, plan)
    index = problem.rows_S
    unchecked = problem.offsets.device.type != "cpu" or (index is not None and index.device.type != "cpu")
    offsets = on_device(problem.offsets, text.device)
    backend.launch(
        kernels.means_kernel, (problem.means + triton.cdiv(batch, block["BLOCK_R"]),), warps, unchecked,
        text=text, index=offsets if index is None else on_device(index, text.device), offsets=offsets,
        text_stride=text.stride(0), text_stride_d=text.stride(1), height=text.shape[0], positions=problem.positions,
        **video_arguments(problem, inverse), batch=batch, means=planes(means, video, plan), total_n=problem.means,
        width=width, INDEXED=index is not None, CHECK=unchecked, SPLIT=plan.split, **block,
    )  # fmt: skip
    return means, inverse


def gradients(problem: Problem, saved: Saved, grad: Tensor, needs: list[bool]) -> tuple[Tensor | None, Tensor | None]:
    """As in `concept_torch`: one launch, or three when the videos or the classes are many."""
    plan, video, text = build_plan(problem), problem.video_BD, problem.text_PD
    inverse, labels = saved.inverse_B, problem.labels_B
    weights, scales, factor = problem.logit_gradient(saved, grad)
    shared: dict[str, Any] = {
        "weights": weights.contiguous(), "shadow_weights": saved.shadow_weights_BR,
        "labels": inverse if labels is None else labels.contiguous(),
        "scales": inverse if scales is None else scales.contiguous(),
        "batch": video.shape[0], "classes": problem.classes, "columns": weights.shape[1], "total_n": problem.means,
        "width": video.shape[1], **two_floats(factor), "SETS": problem.sets, "SCALED": scales is not None,
        "SHADOWED": problem.shadowed,
    }  # fmt: skip
    mean_grads, video_grads = (None, None) if plan.inline else tiled_gradients(problem, saved, plan, shared, needs)
    video_out, text_out = (
        torch.empty_like(x, memory_format=torch.contiguous_format) if needed else None
        for x, needed in zip((video, text), needs, strict=True)
    )
    offsets = on_device(problem.offsets, text.device)
    owners, starts, programs = offsets, offsets, 0
    if text_out is not None:
        programs = problem.means
        if problem.rows_S is not None:
            programs = text.shape[0]
            owners, starts = row_uses(problem.offsets, problem.rows_S, programs, text.device)
    block, warps = row_block(video.shape[1], plan)
    backend.launch(
        kernels.row_gradients_kernel, (programs + (video.shape[0] if needs[0] else 0),), warps, False,
        text=text, text_out=text if text_out is None else text_out, offsets=offsets, owners=owners, starts=starts,
        text_stride=text.stride(0), text_stride_d=text.stride(1), text_programs=programs,
        **shared, **video_arguments(problem, inverse), means=planes(saved.means_ND, video, plan),
        mean_grads=inverse if mean_grads is None else mean_grads,
        video_grads=inverse if video_grads is None else video_grads,
        video_out=video if video_out is None else video_out,
        GATHERED=problem.rows_S is not None, HAS_TEXT=text_out is not None, INLINE=plan.inline, SPLIT=plan.split,
        **block,
    )  # fmt: skip
    return video_out, text_out


def tiled_gradients(
    problem: Problem, saved: Saved, plan: LaunchPlan, shared: dict[str, Any], needs: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the class means [N, D] and of the unit videos [B, D], for the large regime."""
    video, (batch, width) = problem.video_BD, problem.video_BD.shape
    small = plan.precision == "ieee"
    rows, inner, columns = (32, 32, 64) if small else (64, 32, 64) if not plan.split else (64, 64, 128)
    warps = 4 if small else 8
    shared = shared | {
        "WIDE": DOT_TYPES[plan.wide], "DOT": DOT_TYPES[plan.gradient_dot], "PRECISION": plan.gradient_precision,
        "BLOCK_K": inner, "BLOCK_D": columns,
    }  # fmt: skip
    mean_grads = video_grads = None
    if needs[1]:
        mean_grads = video.new_empty((problem.means, width), dtype=plan.wide)
        grid = (triton.cdiv(problem.means, rows), triton.cdiv(width, columns))
        backend.launch(
            kernels.mean_gradients_kernel, grid, warps, False, **shared, **video_arguments(problem, saved.inverse_B),
            out=mean_grads, BLOCK_N=rows,
        )  # fmt: skip
    if needs[0]:
        video_grads = video.new_empty((batch, width), dtype=plan.wide)
        grid = (triton.cdiv(batch, rows), triton.cdiv(width, columns))
        backend.launch(
            kernels.video_gradients_kernel, grid, warps, False, **shared, means=planes(saved.means_ND, video, plan),
            out=video_grads, SPLIT=plan.split, BLOCK_B=rows,
        )  # fmt: skip
    return mean_grads, video_grads


def video_arguments(problem: Problem, inverse: Tensor) -> dict[str, Any]:
    """How the kernels read the videos."""
    video = problem.video_BD
    strides = {"video_stride": video.stride(0), "video_stride_d": video.stride(1)}
    return {"video": video, "inverse_norms": inverse} | strides


def planes(means: Tensor, video: Tensor, plan: LaunchPlan) -> Tensor:
    """The memory of [N, D] means as the kernels read it: two 16-bit planes take the room of one in float32."""
    return means.view(video.dtype) if plan.split else means


def two_floats(value: float) -> dict[str, float]:
    """A float64 as two float32: Triton passes floats as float32."""
    high = float(numpy.float32(value))
    return {"high": high, "low": value - high}


def row_block(width: int, plan: LaunchPlan) -> tuple[dict[str, Any], int]:
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


def logits_blocks(batch: int, classes: int, plan: LaunchPlan, softmax: bool) -> tuple[dict[str, Any], int]:
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


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Integers as contiguous int64 on a device; copies from the CPU are cached by content, as training repeats them."""
    if values.device == device:
        return values.long().contiguous()
    return cached_copy(values.contiguous().numpy().tobytes(), values.element_size(), device)


@lru_cache(maxsize=256)
def cached_copy(raw: bytes, width: int, device: torch.device) -> Tensor:
    """Packed integers of `width` bytes on a device."""
    return send(torch.from_numpy(numpy.frombuffer(raw, dtype=f"int{8 * width}").astype(numpy.int64)), device)


def send(values: Tensor, device: torch.device) -> Tensor:
    """`values.to(device)`; to a GPU from pinned memory, so that the host does not wait for the work before it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def row_uses(offsets: Tensor, index: Tensor, height: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Classes that use each of `height` table rows: `owners[starts[p]:starts[p + 1]]`, in the order of their positions.

    From CPU tensors they are computed there and cached by content; from device tensors there, without a wait.
    """
    if offsets.device.type == "cpu" and index.device.type == "cpu":
        classes, rows = (values.long().contiguous().numpy().tobytes() for values in (offsets, index))
        return cached_uses(classes, rows, height, device)
    return sorted_uses(on_device(offsets, device), on_device(index, device), height)


@lru_cache(maxsize=64)
def cached_uses(offsets: bytes, index: bytes, height: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Copies on the device of the uses of each row."""
    classes, rows = (torch.from_numpy(numpy.frombuffer(raw, dtype="int64").copy()) for raw in (offsets, index))
    owners, starts = sorted_uses(classes, rows, height)
    return send(owners, device), send(starts, device)


def sorted_uses(offsets: Tensor, index: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Owners of the positions sorted by row, stably, and where each row's begin."""
    positions = torch.arange(index.numel(), device=index.device)
    owner = torch.searchsorted(offsets, positions, right=True) - 1
    by_row, order = index.sort(stable=True)
    starts = torch.searchsorted(by_row, torch.arange(height + 1, device=index.device))
    return owner[order], starts
