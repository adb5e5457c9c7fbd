"""Owns the argument checks of the operators and the errors they raise.

Shapes and types are checked on every call, tracing included. Values (offsets that rise, row indices and labels inside
their range) are checked here when they live on the CPU, and by device assertions inside the kernels when they live on
a GPU: a GPU is never made to wait for a check.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy
import torch
from torch import Tensor

INTEGERS = (torch.int64, torch.int32)


class KernelInputError(ValueError):
    """Arguments whose shapes, types or offsets do not fit together."""


class EmptyClass(KernelInputError):
    """A class without a phrase: its mean does not exist."""


@dataclass(frozen=True, slots=True)
class Table:
    """Phrase rows [P, D] and the classes made of them.

    Class c owns the positions `offsets[c]:offsets[c + 1]`; position s is row `s` of `rows_PD`, or row `index_S[s]`.
    """

    rows_PD: Tensor
    index_S: Tensor | None
    offsets: Tensor
    name: str = "text"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.offsets.numel() - 1

    @property
    def positions(self) -> int:
        """Number of phrases counted with repetition, S."""
        return self.rows_PD.shape[0] if self.index_S is None else self.index_S.numel()


def check_table(video_BD: Tensor, table: Table, temperature: float) -> None:
    """Shapes and types of the videos and one table; no value is read."""
    if not temperature > 0:
        raise KernelInputError(f"temperature must be greater than 0, got {temperature}")
    for label, rows in (("video", video_BD), (table.name, table.rows_PD)):
        if rows.ndim != 2 or not rows.is_floating_point():
            raise KernelInputError(f"{label} must be a floating-point matrix, got {rows.dtype} {list(rows.shape)}")
    if video_BD.shape[1] != table.rows_PD.shape[1]:
        raise KernelInputError(f"video has width {video_BD.shape[1]}, {table.name} has width {table.rows_PD.shape[1]}")
    if video_BD.device != table.rows_PD.device:
        raise KernelInputError(f"video is on {video_BD.device}, {table.name} on {table.rows_PD.device}")
    offsets, index = table.offsets, table.index_S
    if offsets.ndim != 1 or offsets.numel() < 2 or offsets.dtype not in INTEGERS:
        raise KernelInputError(
            f"offsets of {table.name} must be C+1 integers, got {offsets.dtype} {list(offsets.shape)}"
        )
    if index is not None and (index.ndim != 1 or index.dtype not in INTEGERS):
        raise KernelInputError(f"rows of {table.name} must be S integers, got {index.dtype} {list(index.shape)}")


def check_labels(labels_B: Tensor, video_BD: Tensor) -> None:
    """One integer label a video."""
    if labels_B.shape != video_BD.shape[:1] or labels_B.dtype not in INTEGERS:
        raise KernelInputError(
            f"labels must be {video_BD.shape[0]} integers, got {labels_B.dtype} {list(labels_B.shape)}"
        )


def check_values(tables: tuple[Table, ...], labels_B: Tensor | None = None, classes: int = 0) -> None:
    """What only the values tell, for the tensors that are on the CPU."""
    for table in tables:
        if table.offsets.device.type == "cpu":
            check_offsets(table)
        index = table.index_S
        if index is not None and index.device.type == "cpu" and index.numel():
            low, high = (int(edge) for edge in index.aminmax())
            if low < 0 or high >= table.rows_PD.shape[0]:
                raise KernelInputError(
                    f"rows of {table.name} must lie in [0, {table.rows_PD.shape[0]}), got {low} to {high}"
                )
    if labels_B is not None and labels_B.device.type == "cpu" and labels_B.numel():
        low, high = (int(edge) for edge in labels_B.aminmax())
        if low < 0 or high >= classes:
            raise KernelInputError(f"labels must lie in [0, {classes}), got {labels_B.tolist()[:8]}...")


def check_offsets(table: Table) -> None:
    """Offsets on the CPU rise from 0 to the number of positions, and no class is empty."""
    sizes = class_sizes(table.offsets)
    first = int(table.offsets[0])
    if first != 0 or min(sizes) < 0 or sum(sizes) != table.positions:
        raise KernelInputError(
            f"offsets of {table.name} must rise from 0 to {table.positions}, got {table.offsets.tolist()[:8]}..."
        )
    if 0 in sizes:
        raise EmptyClass(f"class {sizes.index(0)} has no row in {table.name}")


def class_sizes(offsets: Tensor) -> tuple[int, ...]:
    """Number of phrases of every class, from offsets on the CPU. Cached: training repeats its offsets."""
    return sizes_of_bytes(offsets.contiguous().numpy().tobytes(), offsets.element_size())


@lru_cache(maxsize=256)
def sizes_of_bytes(raw: bytes, width: int) -> tuple[int, ...]:
    """Differences of packed integers of `width` bytes."""
    values = numpy.frombuffer(raw, dtype=numpy.int64 if width == 8 else numpy.int32)
    return tuple(numpy.diff(values).tolist())
