"""The arguments of the concept operators as one tuple, and the checks of them.

Shapes and types are checked on every call, tracing included. Values (offsets that rise, row indices and labels inside
their range) are checked here when they live on the CPU, and by device assertions inside the kernels when they live on
a GPU: a GPU is never made to wait for a check.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ace_kernels.backend import KernelInputError
from ace_kernels.concept_layout import ConceptLayout

INTEGERS = (torch.int64, torch.int32)


class Problem(NamedTuple):
    """Videos, a table of phrases and the classes made of it.

    The N classes of the layout are those of the R sets, C each, one set after the other, and then the C shadow
    negatives if `shadowed`. With `shadow_PD` these are made of its rows, which the layout counts on from those of
    `text_PD`. Without labels the outcome is logits [B, N], with labels [B] it is losses [R].
    """

    video_BD: Tensor
    text_PD: Tensor
    shadow_PD: Tensor | None
    layout: ConceptLayout
    temperature: float
    labels_B: Tensor | None = None
    sets: int = 1
    shadowed: bool = False

    @property
    def classes(self) -> int:
        """Classes of one set, C."""
        return self.layout.means // (self.sets + self.shadowed)

    @property
    def room(self) -> "Room":
        batch, width = self.video_BD.shape
        return build_room(batch, width, self.layout.means, self.sets, self.shadowed, self.labels_B is not None)

    @property
    def wide(self) -> torch.dtype:
        """The type of the arithmetic."""
        return wide_type(self.video_BD, self.text_PD)


class Room(NamedTuple):
    """What the backward reads of the forward, as parts of one tensor: where each but the first begins, and the whole.

    Triton's kernels write it so, as allocating takes the host longer than a launch. In numbers of the wide type: means
    [N, D], 1 over the length of each video [B], of losses the derivatives of B · loss in the logits [B, R·C] and in the
    logit of each video's shadow negative [B, R], and the losses of each video [R, B]. Each begins at a multiple of 16
    bytes.
    """

    inverse: int
    weights: int
    shadow: int
    losses: int
    size: int


def build_room(batch: int, width: int, means: int, sets: int, shadowed: bool, labelled: bool) -> Room:
    # No number is multiplied by a bool: a tracer's symbols refuse that.
    columns = means // (sets + int(shadowed)) * sets
    parts = (
        means * width, batch, batch * columns if labelled else 0, batch * sets if shadowed else 0,
        batch * sets if labelled else 0,
    )  # fmt: skip
    return Room(*accumulate(size + -size % 4 for size in parts))


def wide_type(video_BD: Tensor, text_PD: Tensor) -> torch.dtype:
    """float64 when an input is, else float32."""
    return torch.float64 if torch.float64 in (video_BD.dtype, text_PD.dtype) else torch.float32


def check_table(video_BD: Tensor, text: Tensor, name: str = "text") -> None:
    """Shapes and types of the videos and a table; no value is read."""
    for label, matrix in (("video", video_BD), (name, text)):
        if matrix.ndim != 2 or not matrix.is_floating_point():
            raise KernelInputError(f"{label} must be a floating-point matrix, got {matrix.dtype} {list(matrix.shape)}")
    if video_BD.shape[1] != text.shape[1]:
        raise KernelInputError(f"video has width {video_BD.shape[1]}, {name} has width {text.shape[1]}")
    if video_BD.device != text.device:
        raise KernelInputError(f"video is on {video_BD.device}, {name} on {text.device}")


def check_integers(offsets: Sequence[Tensor], rows: Sequence[Tensor] | None, name: str = "text") -> None:
    """Shapes and types of what describes classes; no value is read."""
    if not offsets or (rows is not None and len(rows) != len(offsets)):
        raise KernelInputError(f"{len(offsets)} sets of offsets need as many sets of rows, and one at least")
    for part in offsets:
        if part.ndim != 1 or part.numel() < 2 or part.dtype not in INTEGERS:
            raise KernelInputError(f"offsets of {name} must be C+1 integers, got {part.dtype} {list(part.shape)}")
    for part in rows or ():
        if part.ndim != 1 or not part.numel() or part.dtype not in INTEGERS:
            raise KernelInputError(f"rows of {name} must be S integers, got {part.dtype} {list(part.shape)}")


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise KernelInputError(f"temperature must be greater than 0, got {temperature}")


def check_labels(labels_B: Tensor, video_BD: Tensor) -> None:
    """One integer label a video, beside the videos, and one video at least."""
    if labels_B.shape != video_BD.shape[:1] or labels_B.dtype not in INTEGERS:
        raise KernelInputError(
            f"labels must be {video_BD.shape[0]} integers, got {labels_B.dtype} {list(labels_B.shape)}"
        )
    if labels_B.device != video_BD.device:
        raise KernelInputError(f"labels are on {labels_B.device}, video is on {video_BD.device}")
    if not video_BD.shape[0]:
        raise KernelInputError("the loss of no video is undefined: video has no row")


def check_label_values(labels_B: Tensor, classes: int) -> None:
    """Labels on the CPU lie inside their range; on a GPU the kernels assert it."""
    if labels_B.device.type == "cpu" and labels_B.numel():
        low, high = (int(edge) for edge in labels_B.aminmax())
        if low < 0 or high >= classes:
            raise KernelInputError(f"labels must lie in [0, {classes}), got {labels_B.tolist()[:8]}...")
