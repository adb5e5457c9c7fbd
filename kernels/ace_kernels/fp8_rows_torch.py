"""Rows as 8-bit floats in plain torch."""

import torch
from torch import Tensor
from torch.nn import functional

from ace_kernels.fp8_rows import LARGEST, SMALLEST_TOP, Fp8Rows


def fp8_rows(x: Tensor, gelu: bool, out: Fp8Rows) -> None:
    """Write `x` or its GELU."""
    store_fp8(functional.gelu(x.float()) if gelu else x.float(), out)


def store_fp8(rows: Tensor, out: Fp8Rows) -> None:
    """Write float32 rows."""
    torch.div(rows.abs().amax(1).clamp_min(SMALLEST_TOP), LARGEST, out=out.scales)
    out.values.copy_(rows * (1 / out.scales)[:, None])
