"""The launches of the concept kernels: outputs, grids, tile sizes and precisions.

Shapes: B videos, S positions, P table rows, N class means (R·C of the label sets, then C of the shadow negatives),
D width.

Two regimes. Small (`inline`): three launches in all: means, logits with softmax, gradients of every row. Larger: the
logits, the softmax and the gradients of means and of unit videos are launches of their own. Sizes come from the shapes
by rule, not by timing: `triton.autotune` cannot run in the interpreter and would make the first steps of a job differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy
import torch
import triton
import triton.language as tl
from torch import Tensor

from ace_kernels import concept_triton_kernels as kernels
from ace_kernels.backend import INTERPRETED, KernelInputError, Launch, Part
from ace_kernels.concept_problem import Problem, Room, build_room

WIDEST = 16384  # embedding width that one program holds in registers
INLINE_VIDEOS, INLINE_MEANS = 64, 256  # up to here every row's program sums over the batch itself
ONE_TILE_CLASSES = 128  # classes of a set that one tile of logits holds
TENSOR_CORE_PRODUCTS = 2**27  # B·N·D from which tensor cores pay; below, float32 products are exact and fast enough
DOT_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16}


class Form(NamedTuple):
    """What decides how a call is computed. The height of the table and the number of positions do not, nor does any
    value: one form serves a whole training.
    """

    batch: int
    width: int
    means: int
    sets: int
    shadowed: bool
    indexed: bool
    two_tables: bool
    checked: bool  # the host has read offsets and rows
    temperature: float
    video_type: torch.dtype
    text_type: torch.dtype
    label_type: torch.dtype | None
    video_strides: tuple[int, ...]
    text_strides: tuple[int, ...]
    device: int  # compiled kernels belong to one

    @property
    def classes(self) -> int:
        return self.means // (self.sets + self.shadowed)

    @property
    def columns(self) -> int:
        return self.classes * self.sets


def build_form(problem: Problem) -> Form:
    video, text, shadow, layout, temperature, labels, sets, shadowed = problem
    batch, width = video.shape
    return Form(
        batch, width, layout.means, sets, shadowed, layout.rows is not None, shadow is not None,
        layout.sizes is not None, temperature, video.dtype, text.dtype, None if labels is None else labels.dtype,
        video.stride(), text.stride(), video.get_device(),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """Types, precisions and regime of a form: the forward and the backward agree on it."""

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


def build_plan(form: Form) -> Plan:
    """The plan of a form. Raises `KernelInputError` for rows that are too wide."""
    if form.width > WIDEST:
        raise KernelInputError(
            f"the Triton kernels hold rows of up to {WIDEST} numbers, got {form.width}: ACE_KERNELS=torch"
        )
    wide = torch.float64 if torch.float64 in (form.video_type, form.text_type) else torch.float32
    inline = form.batch <= INLINE_VIDEOS and form.means <= INLINE_MEANS
    large = form.batch * form.means * form.width >= TENSOR_CORE_PRODUCTS and wide == torch.float32
    split = large and form.video_type in (torch.bfloat16, torch.float16)
    precision = "tf32x3" if large else "ieee"
    if split:
        precision = "bf16" if form.video_type == torch.bfloat16 else "fp16"
    return Plan(wide, inline, split, precision)


@dataclass(frozen=True, slots=True)
class Forward:
    """The launches of a forward with their grids. `softmax` is None where the logits' launch ends as losses."""

    plan: Plan
    room: Room
    means: Launch
    means_grid: tuple[int, int, int]
    logits: Launch
    logits_grid: tuple[int, int, int]
    softmax: Launch | None
    softmax_grid: tuple[int, int, int]


@lru_cache(maxsize=256)
def build_forward(form: Form) -> Forward:
    plan, wide = build_plan(form), DOT_TYPES[build_plan(form).wide]
    block, warps = row_block(form.width, plan)
    strides = dict(zip(("video_stride", "video_stride_d"), form.video_strides, strict=True))
    means = Launch(
        kernels.means_kernel, warps,
        dict(zip(("text_stride", "text_stride_d"), form.text_strides, strict=True)) | strides | {
            "batch": form.batch, "columns": form.columns, "total_n": form.means, "width": form.width,
            "TWO_TABLES": form.two_tables, "INDEXED": form.indexed, "CHECK": not form.checked, "SPLIT": plan.split,
            **block,
        }, checked=not form.checked,
    )  # fmt: skip
    fused = form.label_type is not None and plan.inline and form.classes <= ONE_TILE_CLASSES
    shared = strides | {
        "batch": form.batch, "classes": form.classes, "columns": form.columns, "total_n": form.means,
        "width": form.width, "sets": form.sets, **two_floats(1 / form.temperature), "SHADOWED": form.shadowed,
        "SPLIT": plan.split, "WIDE": wide,
    }  # fmt: skip
    blocks, warps = logits_blocks(form.batch, form.classes, plan, fused)
    logits = Launch(
        kernels.logits_kernel, warps,
        shared | blocks | {
            "SOFTMAX": fused, "UPCAST": INTERPRETED, "PRECISION": "ieee" if plan.split else plan.precision
        }, checked=fused,
    )  # fmt: skip
    softmax = None
    if form.label_type is not None and not fused:
        columns = min(512, max(16, triton.next_power_of_2(form.classes)))
        softmax = Launch(
            kernels.softmax_kernel, 4, shared | {"BLOCK_B": 4, "BLOCK_C": columns, "BLOCK_K": 128}, checked=True
        )
    return Forward(
        plan, form_room(form),
        means, (form.means + triton.cdiv(form.batch, block["BLOCK_R"]), 1, 1),
        logits, (triton.cdiv(form.batch, blocks["BLOCK_B"]), triton.cdiv(form.classes, blocks["BLOCK_C"]), form.sets),
        softmax, (triton.cdiv(form.batch, 4), form.sets, 1),
    )  # fmt: skip


def form_room(form: Form) -> Room:
    return build_room(form.batch, form.width, form.means, form.sets, form.shadowed, form.label_type is not None)


def split_room(saved: Tensor, room: Room, plan: Plan, video_type: torch.dtype) -> list[Part]:
    """The parts of a room for the kernels: two 16-bit planes take the room of one float32 mean."""
    base, wide, number = saved.data_ptr(), saved.dtype, saved.element_size()
    parts = [Part(saved, base, 0, video_type if plan.split else wide)]
    return parts + [Part(saved, base + number * start, start, wide) for start in room[:4]]


def allocate(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A room. What lies between its parts is never written."""
    return torch.empty((size,), dtype=dtype, device=device)


def forward(problem: Problem) -> tuple[Tensor, Sequence[Tensor]]:
    """As in `concept_torch`: means, then logits, in two launches; a third for losses over many classes.

    Saved is one allocation, a `Room`.
    """
    video, text, shadow, layout, _, labels, sets, _ = problem
    form = build_form(problem)
    ready = build_forward(form)
    wide, device = ready.plan.wide, video.device
    saved = allocate(ready.room.size, wide, device)
    means, inverse, weights, shadow_weights, each = split_room(saved, ready.room, ready.plan, form.video_type)
    index = layout.rows
    tensors = (
        text, text if shadow is None else shadow, layout.offsets if index is None else index, layout.offsets, video,
        means, inverse,
    )  # fmt: skip
    ready.means(ready.means_grid, tensors, (text.shape[0], layout.height - text.shape[0], layout.positions))
    if labels is None:
        out = torch.empty((form.batch, form.columns), dtype=wide, device=device)
        ready.logits(ready.logits_grid, (video, inverse, means, inverse, out, inverse, inverse))
        return out, (saved,)
    losses = torch.empty((sets,), dtype=wide, device=device)
    labelled = (video, inverse, means, labels.contiguous(), weights, shadow_weights)
    if ready.softmax is None:
        ready.logits(ready.logits_grid, (*labelled, losses))
        return losses, (saved,)
    ready.logits(ready.logits_grid, (*labelled, each))
    ready.softmax(ready.softmax_grid, (*labelled, each))
    return each.tensor()[: sets * form.batch].view(sets, -1).mean(1), (saved,)


@dataclass(frozen=True, slots=True)
class Gradients:
    """The launches of a backward with their grids; those of means and unit videos only in the large regime."""

    plan: Plan
    room: Room
    rows: Launch
    means: Launch | None
    means_grid: tuple[int, int, int]
    videos: Launch | None
    videos_grid: tuple[int, int, int]


@lru_cache(maxsize=256)
def build_gradients(form: Form, needs_video: bool, needs_text: bool) -> Gradients:
    plan, labelled = build_plan(form), form.label_type is not None
    block, warps = row_block(form.width, plan)
    strides = dict(zip(("video_stride", "video_stride_d"), form.video_strides, strict=True))
    factor = 1 / (form.temperature * form.batch) if labelled else 1 / form.temperature
    shared = {
        "batch": form.batch, "classes": form.classes, "columns": form.columns, "total_n": form.means,
        "width": form.width, **two_floats(factor), "SETS": form.sets, "SCALED": labelled, "SHADOWED": form.shadowed,
        "WIDE": DOT_TYPES[plan.wide],
    }  # fmt: skip
    rows = Launch(
        kernels.row_gradients_kernel, warps,
        dict(zip(("text_stride", "text_stride_d"), form.text_strides, strict=True)) | strides | shared | {
            "TWO_TABLES": form.two_tables, "GATHERED": form.indexed, "HAS_TEXT": needs_text, "INLINE": plan.inline,
            "SPLIT": plan.split, **block,
        },
    )  # fmt: skip
    small = plan.precision == "ieee"
    tile, inner, columns = (32, 32, 64) if small else (64, 32, 64) if not plan.split else (64, 64, 128)
    warps = 4 if small else 8
    shared |= {
        "DOT": DOT_TYPES[plan.gradient_dot], "PRECISION": plan.gradient_precision, "BLOCK_K": inner, "BLOCK_D": columns,
    }  # fmt: skip
    means = videos = None
    if needs_text and not plan.inline:
        means = Launch(kernels.mean_gradients_kernel, warps, strides | shared | {"BLOCK_N": tile})
    if needs_video and not plan.inline:
        videos = Launch(kernels.video_gradients_kernel, warps, shared | {"SPLIT": plan.split, "BLOCK_B": tile})
    parts = triton.cdiv(form.width, columns)
    return Gradients(
        plan, form_room(form), rows,
        means, (triton.cdiv(form.means, tile), parts, 1),
        videos, (triton.cdiv(form.batch, tile), parts, 1),
    )  # fmt: skip


def pack(problem: Problem, saved: Sequence[Tensor]) -> Tensor:
    """What `forward` saves as the one tensor of the registered operators."""
    return saved[0]


def unpack(problem: Problem, packed: Tensor) -> Sequence[Tensor]:
    return (packed,)


def gradients(problem: Problem, saved: Sequence[Tensor], grad: Tensor, needs: Sequence[bool]) -> list[Tensor | None]:
    """As in `concept_torch`: one launch, or three when the videos or the classes are many."""
    video, text, shadow, layout, _, labels, _, _ = problem
    needs_video, needs_text = needs[0], needs[1] or needs[2]
    form, grad = build_form(problem), grad.contiguous()
    ready = build_gradients(form, needs_video, needs_text)
    means, inverse, weights, shadow_weights, _ = split_room(saved[0], ready.room, ready.plan, form.video_type)
    weighing: tuple[Tensor | Part, ...] = (grad, inverse, inverse, inverse)
    if labels is not None:
        weighing = (weights, shadow_weights, labels.contiguous(), grad)
    mean_grads: Tensor | Part = inverse
    video_grads: Tensor | Part = inverse
    if ready.means is not None:
        mean_grads = torch.empty((form.means, form.width), dtype=ready.plan.wide, device=video.device)
        ready.means(ready.means_grid, (*weighing, video, inverse, mean_grads))
    if ready.videos is not None:
        video_grads = torch.empty((form.batch, form.width), dtype=ready.plan.wide, device=video.device)
        ready.videos(ready.videos_grid, (*weighing, means, video_grads))
    second = text if shadow is None else shadow
    video_out, text_out = (room_for(x) if needed else x for x, needed in ((video, needs_video), (text, needs_text)))
    shadow_out = room_for(shadow) if shadow is not None and needs_text else second
    owners = starts = layout.offsets
    programs = form.means if needs_text else 0
    if needs_text and form.indexed:
        programs = layout.height
        owners, starts = layout.row_uses()
    ready.rows(
        (programs + (form.batch if needs_video else 0), 1, 1),
        (
            text, text_out, second, shadow_out, layout.offsets, owners, starts, *weighing, mean_grads, video_grads,
            means, video, video_out, inverse,
        ),
        (text.shape[0], programs),
    )  # fmt: skip
    return [x if needed else None for x, needed in zip((video_out, text_out, shadow_out), needs, strict=True)]


def room_for(x: Tensor) -> Tensor:
    """Room for the gradient of a tensor, without gaps."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def two_floats(value: float) -> dict[str, float]:
    """A float64 as two float32: Triton passes floats as float32."""
    high = float(numpy.float32(value))
    return {"high": high, "low": value - high}


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
