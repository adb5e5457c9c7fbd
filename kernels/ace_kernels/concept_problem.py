"""The arguments of the concept operators as one tuple, and the checks of them.

Shapes and types are checked on every call, tracing included. Values (offsets that rise, row indices and labels inside
their range) are checked here when they live on the CPU, and by device assertions inside the kernels when they live on
a GPU: a GPU is never made to wait for a check.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from ace_kernels.backend import KernelInputError

INTEGERS = (torch.int64, torch.int32)


class Saved(NamedTuple):
    """What the backward reads beside the arguments, in the wide type."""

    means_ND: Tensor
    inverse_B: Tensor  # 1 over the length of each video
    weights_BN: Tensor  # derivatives of B · loss in the logits [B, R·C]; empty without labels
    shadow_weights_BR: Tensor  # the same in the logit of each video's shadow negative; empty without shadow negatives


class Problem(NamedTuple):
    """Videos, one table of phrases and the classes made of it, in the order of the registered operator.

    Class n has the positions `offsets[n]:offsets[n + 1]`; position s is row s of the table, or row `rows_S[s]`. The N
    classes are those of the R sets, C each, one set after the other, and then the C shadow negatives if `shadowed`.
    Without labels the outcome is logits [B, N], with labels [B] it is losses [R].
    """

    video_BD: Tensor
    text_PD: Tensor
    rows_S: Tensor | None
    offsets: Tensor
    temperature: float
    labels_B: Tensor | None = None
    sets: int = 1
    shadowed: bool = False

    @property
    def means(self) -> int:
        """Number of class means, N."""
        return self.offsets.numel() - 1

    @property
    def classes(self) -> int:
        """Classes of one set, C."""
        return self.means // (self.sets + self.shadowed)

    @property
    def positions(self) -> int:
        """Number of phrases counted with repetition, S."""
        return self.text_PD.shape[0] if self.rows_S is None else self.rows_S.numel()

    @property
    def wide(self) -> torch.dtype:
        """The type of the arithmetic: float64 when an input is, else float32."""
        return torch.float64 if torch.float64 in (self.video_BD.dtype, self.text_PD.dtype) else torch.float32

    def logit_gradient(self, saved: Saved, grad: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """Gradient of the logits from that of the outcome, as weights [B, R·C] · scales [R] (or 1) · factor."""
        if self.labels_B is None:
            return grad, None, 1 / self.temperature
        return saved.weights_BN, grad, 1 / (self.temperature * self.video_BD.shape[0])


def check_table(video_BD: Tensor, text: Tensor, rows: Tensor | None, offsets: Tensor, name: str = "text") -> None:
    """Shapes and types of the videos and a table; no value is read."""
    for label, matrix in (("video", video_BD), (name, text)):
        if matrix.ndim != 2 or not matrix.is_floating_point():
            raise KernelInputError(f"{label} must be a floating-point matrix, got {matrix.dtype} {list(matrix.shape)}")
    if video_BD.shape[1] != text.shape[1]:
        raise KernelInputError(f"video has width {video_BD.shape[1]}, {name} has width {text.shape[1]}")
    if video_BD.device != text.device:
        raise KernelInputError(f"video is on {video_BD.device}, {name} on {text.device}")
    if offsets.ndim != 1 or offsets.numel() < 2 or offsets.dtype not in INTEGERS:
        raise KernelInputError(f"offsets of {name} must be C+1 integers, got {offsets.dtype} {list(offsets.shape)}")
    if rows is not None and (rows.ndim != 1 or rows.dtype not in INTEGERS):
        raise KernelInputError(f"rows of {name} must be S integers, got {rows.dtype} {list(rows.shape)}")


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


def check_values(problem: Problem) -> None:
    """What only the values tell, for the tensors that are on the CPU."""
    check_positions(problem.text_PD, problem.rows_S, problem.offsets)
    if problem.labels_B is not None:
        low, high = bounds(problem.labels_B)
        if low < 0 or high >= problem.classes:
            raise KernelInputError(f"labels must lie in [0, {problem.classes}), got {problem.labels_B.tolist()[:8]}...")


def check_positions(text: Tensor, rows: Tensor | None, offsets: Tensor, name: str = "text") -> None:
    """On the CPU: offsets rise from 0 to the number of positions, no class is empty, and rows lie in the table."""
    if offsets.device.type == "cpu":
        positions = text.shape[0] if rows is None else rows.numel()
        sizes = class_sizes(offsets)
        if int(offsets[0]) != 0 or min(sizes) < 0 or sum(sizes) != positions:
            raise KernelInputError(f"offsets of {name} must rise from 0 to {positions}, got {offsets.tolist()[:8]}...")
        if 0 in sizes:
            raise KernelInputError(f"class {sizes.index(0)} has no row in {name}")
    if rows is not None:
        low, high = bounds(rows)
        if low < 0 or high >= text.shape[0]:
            raise KernelInputError(f"rows of {name} must lie in [0, {text.shape[0]}), got {low} to {high}")


def bounds(values: Tensor) -> tuple[int, int]:
    """Least and greatest of integers on the CPU; (0, -1), which is inside every range, for none and on a GPU."""
    if values.device.type != "cpu" or not values.numel():
        return 0, -1
    low, high = (int(edge) for edge in values.aminmax())
    return low, high


def class_sizes(offsets: Tensor) -> tuple[int, ...]:
    """Number of phrases of every class, from offsets on the CPU. Cached: training repeats its offsets."""
    return cached_sizes(offsets.contiguous().numpy().tobytes(), offsets.element_size())


@lru_cache(maxsize=256)
def cached_sizes(raw: bytes, width: int) -> tuple[int, ...]:
    """Differences of packed integers of `width` bytes."""
    values = numpy.frombuffer(raw, dtype=numpy.int64 if width == 8 else numpy.int32)
    return tuple(numpy.diff(values).tolist())
