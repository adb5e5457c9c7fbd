"""Owns ahead-of-time compilation: registers, shared memory and spills of every launch at given shapes, without a GPU.

The launches are those of `triton_path` itself, recorded instead of started, so that the report follows the code.
`python -m ace_kernels.resources [SHAPE ...]` prints the report as CSV.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ace_kernels import triton_path
from ace_kernels.checks import Table

TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """A named size of the problem; `gathered` reads rows by index, `sets` label sets share the shadow negatives."""

    name: str
    videos: int
    classes: int
    phrases: int
    width: int = 512
    dtype: torch.dtype = torch.float32
    gathered: bool = False
    sets: int = 1
    loss: bool = True


@dataclass(frozen=True, slots=True)
class Usage:
    """What one compiled kernel takes: registers and spilled bytes (stack and local memory) per thread, shared memory
    per program. The numbers are read from the machine code that would be launched.
    """

    shape: str
    dtype: str
    target: str
    kernel: str
    warps: int
    registers: int
    shared_bytes: int
    spill_bytes: int


SHAPES = (
    Shape("train_ata", 16, 10, 11, dtype=torch.float32),
    Shape("train_ata", 16, 10, 11, dtype=torch.bfloat16),
    Shape("train_ata_gathered", 16, 10, 11, gathered=True, sets=2),
    Shape("train_ikea", 16, 21, 2),
    Shape("train_gtea", 16, 6, 9),
    Shape("kinetics", 256, 400, 10, dtype=torch.bfloat16),
    Shape("open_vocabulary", 4096, 1000, 121, dtype=torch.bfloat16),
    Shape("open_vocabulary", 4096, 1000, 121, dtype=torch.float16),
    Shape("open_vocabulary", 4096, 1000, 121, dtype=torch.float32),
    Shape("long_classes", 16, 10, 5000, dtype=torch.bfloat16),
)


@dataclass(slots=True)
class Launch:
    """One recorded launch."""

    kernel: Any
    warps: int
    checked: bool
    arguments: dict[str, Any]


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches of `triton_path` are noted and not started; their outputs stay uninitialised."""
    launches: list[Launch] = []

    def note(kernel: Any, grid: tuple[int, ...], warps: int, checked: bool, **arguments: Any) -> None:
        """Stands in for `triton_path.launch`: keeps what would have been launched."""
        launches.append(Launch(kernel, warps, checked, arguments))

    original = triton_path.launch
    triton_path.launch = note
    try:
        yield launches
    finally:
        triton_path.launch = original


def launches_of(shape: Shape) -> list[Launch]:
    """Every launch of forward and backward at a shape."""
    positions = shape.classes * shape.phrases
    offsets = torch.arange(0, shape.sets * positions + 1, shape.phrases)
    index = torch.arange(shape.sets * positions) % positions if shape.gathered else None
    height = positions if shape.gathered else shape.sets * positions
    video, text, shadow = (
        torch.empty(rows, shape.width, dtype=shape.dtype) for rows in (shape.videos, height, positions)
    )
    tables: tuple[Table, ...] = (
        Table(text, index, offsets),
        Table(shadow, index if index is None else index[:positions], torch.arange(0, positions + 1, shape.phrases)),
    )
    with recording() as launches:
        if shape.loss:
            labels = torch.zeros(shape.videos, dtype=torch.int64)
            losses, weights, own, means, inverse = triton_path.cross_entropy(
                video, tables, labels, shape.sets, True, 0.02
            )
            triton_path.gradients(weights, own, labels, losses, 1.0, video, tables, means, inverse, (True, True, True))
        logits, means, inverse = triton_path.similarity(video, tables[:1], 0.02)
        triton_path.gradients(logits, None, None, None, 1.0, video, tables[:1], means, inverse, (True, True))
    return launches


def compiled(launch: Launch, target: GPUTarget) -> Any:
    """Compile a launch as the runtime would: ones and flags are constants, multiples of 16 are known as such."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constants[(place,)] = value
            continue
        if isinstance(value, Tensor):
            signature[name], divisible = TYPES[value.dtype], True
        elif isinstance(value, float):
            signature[name], divisible = "fp32", False
        else:
            signature[name], divisible = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options: dict[str, Any] = {"num_warps": launch.warps, "enable_fp_fusion": True}
    if launch.checked:
        options |= {"debug": True, "sanitize_overflow": False}
    return triton.compile(source, target=target, options=options)


def usage(launch: Launch, name: str, dtype: torch.dtype, capability: int) -> Usage:
    """Compile one launch of a named shape and read what the assembler says."""
    binary = compiled(launch, GPUTarget("cuda", capability, 32))
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        done = subprocess.run(
            [str(cuobjdump), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
        )
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout)}
    return Usage(
        shape=name,
        dtype=str(dtype).removeprefix("torch."),
        target=f"sm_{capability}",
        kernel=launch.kernel.__name__,
        warps=launch.warps,
        registers=found["REG"],
        shared_bytes=binary.metadata.shared,
        spill_bytes=found["STACK"] + found["LOCAL"],
    )


def compile_all(shapes: tuple[Shape, ...] = SHAPES, capabilities: tuple[int, ...] = (80, 90)) -> Iterator[Usage]:
    """Resources of every launch at every shape, for every compute capability."""
    for shape in shapes:
        for launch in launches_of(shape):
            for capability in capabilities:
                yield usage(launch, shape.name, shape.dtype, capability)


def report(rows: Iterator[Usage]) -> None:
    """Print rows as CSV."""
    writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Usage)], lineterminator="\n")
    writer.writeheader()
    for found in rows:
        writer.writerow(asdict(found))
        sys.stdout.flush()


def main(names: list[str]) -> None:
    """Print the report as CSV, for the named shapes or for all."""
    report(compile_all(tuple(shape for shape in SHAPES if not names or shape.name in names)))


if __name__ == "__main__":
    main(sys.argv[1:])
