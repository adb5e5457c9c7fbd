"""Which registers, shared memory and spills does every Triton kernel take, compiled without a GPU?

    python benchmarks/compile_report.py > benchmarks/results/compile_report.csv
    python benchmarks/compile_report.py train_ata temporal_30      # these shapes alone

The operators run, forward and backward, with their launches recorded instead of started, so that the report follows
the code; each launch is compiled for sm_80 and sm_90, and the numbers are read from the machine code. 8-bit floats and
tensor descriptors are compiled for sm_90 alone, as sm_80 has none.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from ace_kernels import (
    ConceptLayout,
    concept_triton,
    fp8_rows_triton,
    linear_gelu_triton,
    residual_norm_triton,
    short_attention_triton,
)
from ace_kernels.backend import Launch, Part
from ace_kernels.concept_problem import Problem
from ace_kernels.fp8_rows import empty_fp8_rows
from ace_kernels.residual_norm import Norm, Tokens
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

CAPABILITIES = (80, 90)
TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ConceptShape:
    """Videos, classes and phrases a class of the loss with shadow negatives, and of the similarity.

    `gathered` reads rows by index, `sets` label sets share the shadow negatives, which with `two_tables` have a table
    of their own.
    """

    name: str
    videos: int
    classes: int
    phrases: int
    dtype: torch.dtype = torch.float32
    width: int = 512
    gathered: bool = False
    sets: int = 1
    two_tables: bool = False

    def launch_all(self) -> None:
        """Forward and backward of the loss, then of the similarity, on tensors without content."""
        means = (self.sets + 1) * self.classes
        positions, height = means * self.phrases, self.classes * self.phrases
        rows = torch.arange(positions) % height if self.gathered else None
        video, text = (
            torch.empty(n, self.width, dtype=self.dtype) for n in (self.videos, height if self.gathered else positions)
        )
        offsets = [torch.arange(0, positions + 1, self.phrases)]
        layout = ConceptLayout.build(offsets, None if rows is None else [rows], height=len(text))
        labels = torch.zeros(self.videos, dtype=torch.int64)
        tables = text.split([len(text) - self.classes * self.phrases, self.classes * self.phrases])
        loss = (video, *(tables if self.two_tables else (text, None)), layout, 0.02, labels, self.sets, True)
        for problem in (Problem(*loss), Problem(video, text, None, layout, 0.02)):
            outcome, saved = concept_triton.forward(problem)
            concept_triton.gradients(problem, saved, outcome, [True, True, problem.shadow_PD is not None])


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """A packed qkv [S,T,3,H,d]; `frames_first` reads it as [B,T,P,3,H,d], the layout of the frames of a clip."""

    name: str
    tokens: int
    dtype: torch.dtype = torch.bfloat16
    heads: int = 12
    width: int = 64
    frames_first: bool = False

    def launch_all(self) -> None:
        """Forward and backward."""
        lead = (2, self.tokens, 4) if self.frames_first else (2, 4, self.tokens)
        qkv = torch.empty(*lead, 3, self.heads, self.width, dtype=self.dtype)
        if self.frames_first:
            qkv = qkv.transpose(1, 2)
        q, k, v = qkv.unbind(-3)
        out = torch.empty_like(q)
        short_attention_triton.forward(q, k, v, 0.125, out)
        short_attention_triton.backward(out, q, k, v, 0.125, torch.empty_like(qkv).unbind(-3))


@dataclass(frozen=True, slots=True)
class NormShape:
    """Residual and norm of the tokens of a batch; `fp8` rounds the norm, and what a product reads elsewhere."""

    name: str
    frames: int
    width: int = 768
    dtype: torch.dtype = torch.bfloat16
    fp8: bool = False
    patches: int = 196

    def launch_all(self) -> None:
        """The norm alone, with residual, into and out of the frames; with `fp8` rows as they are and through GELU."""
        tokens = Tokens(2, self.patches, self.frames)
        x, patches, frames, (weight, bias) = (
            torch.empty(rows, self.width, dtype=self.dtype)
            for rows in (tokens.rows, tokens.patch_rows, tokens.frame_rows, 2)
        )
        norm = Norm(weight, bias, 1e-6)
        like, like_frames = (
            empty_fp8_rows(len(y), self.width, y.device) if self.fp8 else torch.empty_like(y) for y in (x, frames)
        )
        residual_norm_triton.add_norm(x, None, norm, like)
        residual_norm_triton.add_norm(x, x, norm, like)
        residual_norm_triton.add_norm_to_frames(x, patches, norm, tokens, like_frames)
        residual_norm_triton.add_norm_from_frames(x, frames, norm, tokens, like)
        if self.fp8:
            hidden = torch.empty(tokens.rows, 4 * self.width, dtype=self.dtype)
            fp8_rows_triton.fp8_rows(x, False, empty_fp8_rows(*x.shape, x.device))
            fp8_rows_triton.fp8_rows(hidden, True, empty_fp8_rows(*hidden.shape, x.device))


@dataclass(frozen=True, slots=True)
class LinearGeluShape:
    """GELU of the first product of an MLP; its tensor descriptors are Hopper's."""

    name: str
    width: int = 768
    dtype: torch.dtype = torch.bfloat16

    def launch_all(self) -> None:
        x, weight, bias, out = (
            torch.empty(size, dtype=self.dtype)
            for size in ((8192, self.width), (4 * self.width, self.width), (4 * self.width,), (8192, 4 * self.width))
        )
        with patch.object(linear_gelu_triton, "multiprocessors", lambda device: 132):
            linear_gelu_triton.linear_gelu(x, weight, bias, out)


Shape = ConceptShape | AttentionShape | NormShape | LinearGeluShape
HALVES = (torch.bfloat16, torch.float16)
SHAPES: tuple[Shape, ...] = (
    ConceptShape("train_ata", 16, 10, 11),
    ConceptShape("train_ata", 16, 10, 11, torch.bfloat16),
    ConceptShape("train_ata_two_tables", 16, 10, 11, two_tables=True),
    ConceptShape("train_ata_gathered", 16, 10, 11, gathered=True, sets=2),
    ConceptShape("train_ikea", 16, 21, 2),
    ConceptShape("train_gtea", 16, 6, 9),
    ConceptShape("kinetics", 256, 400, 10, torch.bfloat16),
    *(ConceptShape("open_vocabulary", 4096, 1000, 121, dtype) for dtype in (*HALVES, torch.float32)),
    ConceptShape("long_classes", 16, 10, 5000, torch.bfloat16),
    *(
        AttentionShape(f"temporal_{tokens}", tokens, dtype)
        for tokens in (8, 15, 25, 30)
        for dtype in (*HALVES, torch.float32)
    ),
    AttentionShape("temporal_32", 32),
    AttentionShape("frames_first_8", 8, frames_first=True),
    AttentionShape("frames_first_30", 30, frames_first=True),
    AttentionShape("demo", 8, torch.float32, heads=2),
    AttentionShape("wide_heads", 30, heads=6, width=128),
    AttentionShape("odd_heads", 15, heads=4, width=48),
    *(NormShape(f"frozen_{frames}", frames, fp8=fp8) for frames in (15, 30) for fp8 in (False, True)),
    LinearGeluShape("frozen_gelu"),
    LinearGeluShape("frozen_gelu_large", 1024),
    NormShape("frozen_large", 8, width=1024),
    NormShape("frozen_demo", 8, width=96, dtype=torch.float32, patches=16),
)


@dataclass(frozen=True, slots=True)
class Usage:
    """What one compiled kernel takes: registers and spilled bytes (stack and local memory) per thread, shared memory
    per program.
    """

    shape: str
    dtype: str
    target: str
    kernel: str
    warps: int
    registers: int
    shared_bytes: int
    spill_bytes: int


@dataclass(slots=True)
class Recorded:
    """One recorded launch."""

    kernel: Any
    settings: dict[str, Any]
    arguments: dict[str, Any]


@contextmanager
def recording() -> Iterator[list[Recorded]]:
    """Launches are noted and not started; their outputs stay uninitialised."""
    launches: list[Recorded] = []

    def note(launch: Launch, grid: object, tensors: Sequence[Tensor | Part], sizes: tuple[int, ...] = ()) -> None:
        launches.append(Recorded(launch.kernel, launch.settings, launch.arguments(tensors, sizes)))

    with patch.object(Launch, "__call__", note):
        yield launches


def compile_launch(launch: Recorded, target: GPUTarget) -> Any:
    """Compile a launch as the runtime would: ones and flags are constants, multiples of 16 are known as such."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name] = "constexpr"
            constants[(place,)] = value
            continue
        if isinstance(value, TensorDescriptor):
            signature[name] = f"tensordesc<{TYPES[value.base.dtype][1:]}{value.block_shape}>"
            continue
        if isinstance(value, Tensor):
            signature[name], divisible = TYPES[value.dtype], True
        elif isinstance(value, float):
            signature[name], divisible = "fp32", False
        else:
            signature[name], divisible = "i32" if -(2**31) <= value < 2**31 else "i64", value % 16 == 0
            divisible = divisible and not parameter.do_not_specialize
        if divisible:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=launch.settings)


def usage(launch: Recorded, shape: Shape, capability: int) -> Usage:
    """Compile one launch and read what the assembler says."""
    binary = compile_launch(launch, GPUTarget("cuda", capability, 32))
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(binary.asm["cubin"])
        done = subprocess.run(
            [str(cuobjdump), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
        )
    sizes = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", done.stdout)}
    return Usage(
        shape=shape.name,
        dtype=str(shape.dtype).removeprefix("torch."),
        target=f"sm_{capability}",
        kernel=launch.kernel.__name__,
        warps=launch.settings["num_warps"],
        registers=sizes["REG"],
        shared_bytes=binary.metadata.shared,
        spill_bytes=sizes["STACK"] + sizes["LOCAL"],
    )


def main(names: list[str]) -> None:
    """Print the report as CSV, for the named shapes or for all."""
    writer = csv.DictWriter(sys.stdout, [field.name for field in fields(Usage)], lineterminator="\n")
    writer.writeheader()
    for shape in SHAPES:
        if names and shape.name not in names:
            continue
        with recording() as launches:
            shape.launch_all()
        for launch in launches:
            for capability in CAPABILITIES:
                if capability < 90 and (isinstance(shape, LinearGeluShape) or getattr(shape, "fp8", False)):
                    continue
                writer.writerow(asdict(usage(launch, shape, capability)))
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
