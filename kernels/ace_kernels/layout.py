"""Owns where the kernels find the phrases: offsets, chunks of long classes, and the uses of each table row.

All of it is int64 on the device of the table. What was computed from CPU tensors is cached by content, so that a loop
which repeats its offsets copies nothing to the GPU; what comes from device tensors is computed there, without a wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy
import torch
from torch import Tensor

from ace_kernels.checks import Table, class_sizes

CHUNK = 1024  # rows one program reads; longer classes take several programs and a second stage


@dataclass(frozen=True, slots=True)
class Layout:
    """Which program reads which positions of a table.

    `chunk_owner` and `chunk_start` are None when no class is longer than `CHUNK`: then program c reads class c. Else
    program p reads chunk `p - chunk_start[c]` of class `c = chunk_owner[p]`.
    """

    offsets: Tensor
    index: Tensor | None
    programs: int
    chunk_owner: Tensor | None
    chunk_start: Tensor | None
    unchecked: bool  # values live on the device and were not looked at


@dataclass(frozen=True, slots=True)
class Uses:
    """Classes that use each table row: `owners[starts[p]:starts[p + 1]]`, in the order of their positions."""

    owners: Tensor
    starts: Tensor


def layout_of(table: Table) -> Layout:
    """The layout of a table for the forward and the backward."""
    device = table.rows_PD.device
    on_device = table.offsets.device.type != "cpu" or (table.index_S is not None and table.index_S.device.type != "cpu")
    offsets = on(table.offsets, device)
    index = None if table.index_S is None else on(table.index_S, device)
    known = table.offsets.device.type == "cpu"
    longest = max(class_sizes(table.offsets)) if known else table.positions
    if longest <= CHUNK:
        return Layout(offsets, index, table.classes, None, None, on_device)
    programs = table.classes + table.positions // CHUNK
    if known:
        raw = raw_bytes(table.offsets)
        owner, start = cached("chunks", raw, table.offsets.element_size(), str(device), programs)
    else:
        owner, start = chunks(offsets, programs)
    return Layout(offsets, index, programs, owner, start, on_device)


def uses_of(table: Table) -> Uses:
    """The uses of each row of a table that is read by index."""
    assert table.index_S is not None
    device, height = table.rows_PD.device, table.rows_PD.shape[0]
    if table.offsets.device.type == "cpu" and table.index_S.device.type == "cpu":
        offsets, index = table.offsets.long(), table.index_S.long()
        owners, starts = cached_uses(raw_bytes(offsets), raw_bytes(index), str(device), height)
        return Uses(owners, starts)
    return Uses(*uses(on(table.offsets, device), on(table.index_S, device), height))


def on(values: Tensor, device: torch.device) -> Tensor:
    """Integers as contiguous int64 on a device; copies from the CPU are cached by content."""
    if values.device == device and device.type != "cpu":
        return values.long().contiguous()
    return cached("copy", raw_bytes(values), values.element_size(), str(device), 0)[0]


def raw_bytes(values: Tensor) -> bytes:
    """The content of a CPU tensor as a key."""
    raw: bytes = values.contiguous().numpy().tobytes()
    return raw


@lru_cache(maxsize=256)
def cached(kind: str, raw: bytes, width: int, device: str, programs: int) -> tuple[Tensor, ...]:
    """Device copies of packed integers, or of the chunks that offsets give."""
    values = torch.from_numpy(numpy.frombuffer(raw, dtype=f"int{8 * width}").astype(numpy.int64))
    made = (values,) if kind == "copy" else chunks(values, programs)
    return tuple(send(part, device) for part in made)


@lru_cache(maxsize=64)
def cached_uses(offsets: bytes, index: bytes, device: str, height: int) -> tuple[Tensor, Tensor]:
    """Device copies of the uses of each row."""
    as_tensor: Callable[[bytes], Tensor] = lambda raw: torch.from_numpy(numpy.frombuffer(raw, dtype="int64").copy())  # noqa: E731
    owners, starts = uses(as_tensor(offsets), as_tensor(index), height)
    return send(owners, device), send(starts, device)


def send(values: Tensor, device: str) -> Tensor:
    """`values.to(device)`; to a GPU from pinned memory, so that the host does not wait for the work before it."""
    if device.startswith("cuda"):
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def chunks(offsets: Tensor, programs: int) -> tuple[Tensor, Tensor]:
    """Owner of each program's chunk (padding belongs to the last class, past its end) and first chunk of each class."""
    per_class = (offsets.diff() + CHUNK - 1) // CHUNK
    start = torch.cat([per_class.new_zeros(1), per_class.cumsum(0)])
    owner = torch.searchsorted(start, torch.arange(programs, device=offsets.device), right=True) - 1
    return owner.clamp_max(offsets.numel() - 2), start


def uses(offsets: Tensor, index: Tensor, height: int) -> tuple[Tensor, Tensor]:
    """Owners of the positions sorted by row, stably, and where each row's begin."""
    positions = torch.arange(index.numel(), device=index.device)
    owner = torch.searchsorted(offsets, positions, right=True) - 1
    by_row, order = index.sort(stable=True)
    starts = torch.searchsorted(by_row, torch.arange(height + 1, device=index.device))
    return owner[order], starts
