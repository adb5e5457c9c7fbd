"""Rows as 8-bit floats (e4m3) with a scale each, and the product of such rows: operands of `torch._scaled_mm`.

A row's scale is its largest magnitude over 448, the largest number of e4m3, so that nothing overflows. Without
gradients: frozen layers alone use it.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ace_kernels.backend import KernelInputError, choose

LARGEST = 448.0  # of e4m3 (Micikevicius et al. 2022, table 1)
SMALLEST_TOP = 1e-12  # magnitude from which a row is scaled: rows of zeros stay zeros


class Fp8Rows(NamedTuple):
    """values[r] · scales[r] is row r: values [R,D] e4m3, scales [R] float32."""

    values: Tensor
    scales: Tensor

    def first(self, rows: int) -> "Fp8Rows":
        return Fp8Rows(self.values[:rows], self.scales[:rows])


def empty_fp8_rows(rows: int, width: int, device: torch.device) -> Fp8Rows:
    values = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=device)
    return Fp8Rows(values, torch.empty(rows, dtype=torch.float32, device=device))


def fp8_rows(x: Tensor, gelu: bool = False) -> Fp8Rows:
    """[R,D] in e4m3; with `gelu` what (exact) GELU makes of it, which is never stored in more bits."""
    if x.ndim != 2 or not x.is_contiguous() or not x.is_floating_point():
        raise KernelInputError(f"fp8_rows: x must be contiguous floats [R,D], got {x.dtype} {list(x.shape)}")
    out = empty_fp8_rows(len(x), x.shape[1], x.device)
    backend_module(x).fp8_rows(x, gelu, out)
    return out


def fp8_linear(x: Fp8Rows, weight: Fp8Rows, bias: Tensor) -> Tensor:
    """x weight' + bias in the type of `bias`: [R,D], [E,D], [E] -> [R,E].

    `use_fast_accum`: the tensor cores of Hopper add in about 14 bits (DeepSeek-V3, section 3.3.2) and not now and then
    in 24; the factors have 4.
    """
    return torch._scaled_mm(
        x.values, weight.values.t(), scale_a=x.scales[:, None], scale_b=weight.scales[None], bias=bias,
        out_dtype=bias.dtype, use_fast_accum=True,
    )  # fmt: skip


def fp8_unsupported_reason(device: torch.device, *sizes: int) -> str | None:
    """Why products of 8-bit rows do not run on `device` with these row lengths and outputs, or None."""
    if device.type != "cuda":
        return f"8-bit products need a CUDA device and the model is on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        name = torch.cuda.get_device_name(device)
        return (
            f"8-bit products need compute capability 8.9 (Ada, Hopper), and {name} has {capability[0]}.{capability[1]}"
        )
    if odd := [size for size in sizes if size % 16]:
        return f"8-bit products need sizes that are multiples of 16, and {odd[0]} is none"
    return None


def backend_module(x: Tensor) -> ModuleType:
    if choose(x.device) == "torch":
        from ace_kernels import fp8_rows_torch

        return fp8_rows_torch
    from ace_kernels import fp8_rows_triton  # imported late: a machine without CUDA needs no triton

    return fp8_rows_triton
