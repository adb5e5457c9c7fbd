"""Owns the resource report of attention over short sequences: registers, shared memory and spills, without a GPU.

`python -m ace_kernels.temporal_attention_resources [SHAPE ...]` prints the report as CSV.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ace_kernels import temporal_attention_triton
from ace_kernels.resources import Launch, Usage, recording, report, usage


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """A packed qkv [S,T,3,H,d]; `frames_first` reads it as [B,T,P,3,H,d], the layout of the frames of a clip."""

    name: str
    tokens: int
    heads: int = 12
    width: int = 64
    dtype: torch.dtype = torch.bfloat16
    frames_first: bool = False


SHAPES = (
    *(
        AttentionShape(f"temporal_{tokens}", tokens, dtype=dtype)
        for tokens in (8, 15, 25, 30)
        for dtype in (torch.bfloat16, torch.float16, torch.float32)
    ),
    AttentionShape("temporal_32", 32),
    AttentionShape("frames_first_8", 8, frames_first=True),
    AttentionShape("frames_first_30", 30, frames_first=True),
    AttentionShape("demo", 8, heads=2, dtype=torch.float32),
    AttentionShape("wide_heads", 30, heads=6, width=128),
    AttentionShape("odd_heads", 15, heads=4, width=48),
)


def launches_of(shape: AttentionShape) -> list[Launch]:
    """The launches of forward and backward at a shape."""

    lead = (2, shape.tokens, 4) if shape.frames_first else (2, 4, shape.tokens)
    qkv = torch.empty(*lead, 3, shape.heads, shape.width, dtype=shape.dtype)
    if shape.frames_first:
        qkv = qkv.transpose(1, 2)
    q, k, v = qkv.unbind(-3)
    out = torch.empty_like(q)
    with recording() as launches:
        temporal_attention_triton.forward(q, k, v, 0.125, out)
        temporal_attention_triton.backward(out, q, k, v, 0.125, torch.empty_like(qkv).unbind(-3))
    return launches


def compile_all(
    shapes: tuple[AttentionShape, ...] = SHAPES, capabilities: tuple[int, ...] = (80, 90)
) -> Iterator[Usage]:
    """Resources of every launch at every shape, for every compute capability."""
    for shape in shapes:
        for launch in launches_of(shape):
            for capability in capabilities:
                yield usage(launch, shape.name, shape.dtype, capability)


def main(names: list[str]) -> None:
    """Print the report as CSV, for the named shapes or for all."""
    report(compile_all(tuple(shape for shape in SHAPES if not names or shape.name in names)))


if __name__ == "__main__":
    main(sys.argv[1:])
