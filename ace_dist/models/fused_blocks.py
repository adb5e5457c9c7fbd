"""Frozen blocks of a TimeSformer on a GPU, without what only training needs: two passes over memory less a product.

Shapes: B clips, P patches of a frame, T frames, D width. Tokens are one matrix [B·P·T + B, D], patches first, then cls
(`ace_kernels.residual_norm`), updated in place. Between two products or attentions there is one kernel: residual, norm
and change of layout, or GELU. The product of the two matrices after temporal attention is formed once.

With `fp8` the operands of all products are 8-bit floats (e4m3): weights with a scale for each output, rounded once,
activations with a scale for each token, rounded by the kernel that makes them. Residuals, norms, attention and the sums
of the products are not.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from ace_kernels import choose, residual_norm, residual_norm_torch
from ace_kernels.backend import no_autocast
from ace_kernels.fp8_rows import Fp8Rows, fp8_linear, fp8_rows, fp8_unsupported_reason
from ace_kernels.linear_gelu import LEAST_ROWS, linear_gelu
from ace_kernels.residual_norm import TYPES, Norm, Tokens
from torch import Tensor, nn
from torch.nn import functional

from ace_dist.models.attention import TOLERANCE, AttentionBackend, attend_packed
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import ModelError


class Linear(NamedTuple):
    """A product's weight [E,D] and bias [E]."""

    weight: Tensor | Fp8Rows
    bias: Tensor


class FrozenBlock(NamedTuple):
    """What a block computes with, in the order of use."""

    temporal_norm: Norm
    temporal_qkv: Linear
    temporal_out: Linear  # projection and `temporal_fc` in one
    norm1: Norm
    qkv: Linear
    proj: Linear
    norm2: Norm
    fc1: Linear
    fc2: Linear


class FrozenTrunk:
    """Blocks of a TimeSformer that no training changes."""

    def __init__(self, blocks: Sequence[Any], heads: int, fp8: bool) -> None:
        self.source, self.heads, self.fp8 = blocks, heads, fp8
        self.stamp = stamp(blocks)
        self.blocks = [build_block(block, fp8) for block in blocks]

    def refresh(self) -> None:
        """Read the weights again if they were written or moved since: into the same memory, which CUDA graphs read."""
        if (now := stamp(self.source)) != self.stamp:
            self.stamp = now
            blocks = [build_block(block, self.fp8) for block in self.source]
            self.blocks = [overwrite(old, new) for old, new in zip(self.blocks, blocks, strict=True)]

    @torch.no_grad()
    def __call__(
        self, cls: Tensor, patches: Tensor, temporal: AttentionBackend, spatial: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """cls [B,1,D], patches [B,P,T,D] -> the same after all blocks, views of one matrix; not under autocast."""
        with no_autocast(cls.device.type):
            return self.run(cls, patches, temporal, spatial)

    def run(
        self, cls: Tensor, patches: Tensor, temporal: AttentionBackend, spatial: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        clips, places, frames = patches.shape[:3]
        tokens = Tokens(clips, places, frames)
        x = torch.cat([patches.flatten(0, 2), cls.flatten(0, 1)])
        rows = residual_norm.add_norm(x, None, self.blocks[0].temporal_norm, self.fp8)
        for index, block in enumerate(self.blocks):
            mixed = self.attend(first(rows, tokens.patch_rows), block.temporal_qkv, frames, temporal)
            update = self.product(mixed, block.temporal_out)
            rows = residual_norm.add_norm_to_frames(x, update, block.norm1, tokens, self.fp8)
            update = self.product(self.attend(rows, block.qkv, 1 + places, spatial), block.proj)
            rows = residual_norm.add_norm_from_frames(x, update, block.norm2, tokens, self.fp8)
            update = linear(self.hidden(rows, block.fc1), block.fc2)
            if index + 1 < len(self.blocks):
                rows = residual_norm.add_norm(x, update, self.blocks[index + 1].temporal_norm, self.fp8)
            else:
                x += update
        return x[tokens.patch_rows :].unsqueeze(1), x[: tokens.patch_rows].view(patches.shape)

    def attend(self, rows: Tensor | Fp8Rows, qkv: Linear, length: int, backend: AttentionBackend) -> Tensor:
        """Attention within sequences of `length` rows that follow each other."""
        packed = linear(rows, qkv)
        width = packed.shape[1] // 3
        return attend_packed(packed.view(-1, length, 3, self.heads, width // self.heads), backend).reshape(-1, width)

    def product(self, x: Tensor, layer: Linear) -> Tensor:
        return linear(fp8_rows(x) if self.fp8 else x, layer)

    def hidden(self, rows: Tensor | Fp8Rows, layer: Linear) -> Tensor | Fp8Rows:
        """GELU of the first product of the MLP."""
        if isinstance(rows, Fp8Rows):
            return fp8_rows(linear(rows, layer), gelu=True)
        assert isinstance(layer.weight, Tensor)
        return linear_gelu(rows, layer.weight, layer.bias)


def stamp(blocks: Sequence[nn.Module]) -> tuple[tuple[int, int], ...]:
    """Changes when a parameter is written or moved."""
    return tuple((p.data_ptr(), p._version) for block in blocks for p in block.parameters())


@torch.no_grad()
def build_block(block: Any, fp8: bool) -> FrozenBlock:
    """The two maps after temporal attention are multiplied in float32 and rounded once."""
    inner, outer, dtype = block.temporal_attn.proj, block.temporal_fc, block.temporal_fc.weight.dtype
    with no_autocast(outer.weight.device.type):
        weight = (outer.weight.float() @ inner.weight.float()).to(dtype)
        bias = (outer.weight.float() @ inner.bias.float() + outer.bias.float()).to(dtype)

    def build(weight: Tensor, bias: Tensor) -> Linear:
        return Linear(fp8_rows(weight) if fp8 else weight, bias)

    norms = (Norm(norm.weight, norm.bias, norm.eps) for norm in (block.temporal_norm1, block.norm1, block.norm2))
    linears = (block.temporal_attn.qkv, block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    (temporal_norm, norm1, norm2), built = norms, [build(layer.weight, layer.bias) for layer in linears]
    temporal_qkv, qkv, proj, fc1, fc2 = built
    return FrozenBlock(temporal_norm, temporal_qkv, build(weight, bias), norm1, qkv, proj, norm2, fc1, fc2)


@torch.no_grad()
def overwrite(old: Any, new: Any) -> Any:
    """`new`, in the memory of `old` where that fits; both are tuples of tensors and such tuples."""
    if isinstance(new, tuple):
        parts = [overwrite(before, after) for before, after in zip(old, new, strict=True)]
        return new.__class__(*parts)
    fits = isinstance(new, Tensor) and (old.dtype, old.device) == (new.dtype, new.device) and old is not new
    return old.copy_(new) if fits else new


def linear(x: Tensor | Fp8Rows, layer: Linear) -> Tensor:
    """x weight' + bias: [R,D] -> [R,E]."""
    if isinstance(x, Fp8Rows):
        assert isinstance(layer.weight, Fp8Rows)
        return fp8_linear(x, layer.weight, layer.bias)
    assert isinstance(layer.weight, Tensor)
    return functional.linear(x, layer.weight, layer.bias)


def first(rows: Tensor | Fp8Rows, count: int) -> Tensor | Fp8Rows:
    return rows.first(count) if isinstance(rows, Fp8Rows) else rows[:count]


def trunk_serves(blocks: Sequence[Any], precision: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a `FrozenTrunk` takes these blocks' place: on a CPU it does not, else the reason is printed.

    Nor where meta tensors count operations, of which it has as many. Raises `ModelError` where `precision`
    (model.video.trunk_precision) is fp8 and cannot run.
    """
    if device.type == "meta":
        return False
    sizes = (blocks[0].mlp.fc1.in_features, blocks[0].mlp.fc1.out_features)
    if precision == "fp8" and (reason := fp8_refused(device, dtype, *sizes)):
        raise ModelError(f"model.video.trunk_precision=fp8 cannot run: {reason}; set it to same")
    if device.type != "cuda":
        return False
    shared = any(hasattr(parameter, "ds_id") for parameter in blocks[0].parameters())
    reason = "deepspeed=zero3 shares them out" if shared else unfused_reason(device, sizes[0], dtype)
    if reason and precision == "fp8":
        raise ModelError(f"model.video.trunk_precision=fp8 cannot run: {reason}; set it to same")
    kind = "fp8" if precision == "fp8" else str(dtype).removeprefix("torch.")
    say_once(f"frozen blocks: {f'not fused, {reason}' if reason else f'fused, products in {kind}'}")
    return not reason


def fp8_refused(device: torch.device, dtype: torch.dtype, *sizes: int) -> str | None:
    """Why a tower of `dtype` has no 8-bit products of these widths on `device`, or None."""
    if dtype == torch.float32:
        return "its products come out in bf16 and the weights are fp32 (training.precision)"
    return fp8_unsupported_reason(device, *sizes)


@lru_cache
def unfused_reason(device: torch.device, width: int, dtype: torch.dtype) -> str | None:
    """Why the kernels do not serve tokens of `width` on a GPU, or None when they are right in a first trial."""
    if choose(device) == "torch":
        return "ace_kernels runs in plain torch here (ACE_KERNELS, or triton is not installed)"
    if dtype not in TYPES:
        return f"its kernels do not take {dtype}"
    try:
        gap = kernel_gap(device, width, dtype)
    except Exception as error:  # whatever a compiler raises, training can go on without these kernels
        return f"the Triton kernel failed ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    if not gap <= TOLERANCE[dtype]:
        return f"the Triton kernel differs from PyTorch's by {gap:.2g}, allowed {TOLERANCE[dtype]:.2g}"
    return None


@torch.no_grad()
def kernel_gap(device: torch.device, width: int, dtype: torch.dtype) -> float:
    """Largest difference of the kernels from plain PyTorch in float32 on small random tokens, of the largest number."""
    tokens, generator = Tokens(2, 3, 2), torch.Generator().manual_seed(0)
    shapes = (tokens.rows, tokens.frame_rows, 2)
    x, update, (weight, bias) = (torch.randn(n, width, generator=generator).to(device, dtype) for n in shapes)
    plain, norm, wide = x.float().clone(), Norm(weight, bias, 1e-6), Norm(weight.float(), bias.float(), 1e-6)
    gaps = []
    for name, rows, *sizes in (
        ("add_norm_to_frames", tokens.patch_rows, tokens),
        ("add_norm_from_frames", tokens.frame_rows, tokens),
        ("add_norm", tokens.rows),
    ):
        ours = getattr(residual_norm, name)(x, update[:rows], norm, *sizes)
        expected = torch.empty_like(ours, dtype=torch.float32)
        getattr(residual_norm_torch, name)(plain, update[:rows].float(), wide, *sizes, expected)
        gaps.append((ours - expected).abs().max() / expected.abs().max())
    if device.type == "cuda":
        x, weight = (torch.randn(n, width, device=device).to(dtype) for n in (LEAST_ROWS, 2 * width))
        offset = x.new_zeros(2 * width)
        expected = functional.gelu(functional.linear(x.float(), weight.float()))
        gaps.append((linear_gelu(x, weight, offset) - expected).abs().max() / expected.abs().max())
    return float(torch.stack(gaps).max())
