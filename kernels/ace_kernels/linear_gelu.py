"""GELU of a linear map: [R,K], weight [N,K], bias [N] -> [R,N]. Without gradients: frozen layers alone use it.

On Hopper one kernel, which never stores what GELU is computed of; elsewhere, and for few rows, a product by cuBLAS and
a pass of GELU.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ace_kernels.backend import INTERPRETED, KernelInputError, choose

LEAST_ROWS = 8192  # from which the kernel is used: it was measured at 94,096
STEP = 8  # of K and N: rows of 16-bit numbers must be multiples of 16 bytes


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x Φ(x) of x weight' + bias, rounded once where the kernel serves (`is_fused`)."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, weight, bias)):
        raise KernelInputError("linear_gelu has no gradient; call it under torch.no_grad()")
    if not is_fused(x, weight):
        return functional.gelu(functional.linear(x, weight, bias))
    from ace_kernels import linear_gelu_triton  # imported late: a machine without CUDA needs no triton

    out = x.new_empty(len(x), len(weight))
    linear_gelu_triton.linear_gelu(x, weight, bias, out)
    return out


def is_fused(x: Tensor, weight: Tensor) -> bool:
    """Whether one kernel computes it: enough 16-bit rows without gaps, on a GPU of compute capability 9."""
    if choose(x.device) == "torch" or x.dtype not in (torch.bfloat16, torch.float16) or len(x) < LEAST_ROWS:
        return False
    fits = x.shape[1] % STEP == 0 and len(weight) % STEP == 0 and x.is_contiguous() and weight.is_contiguous()
    return fits and (INTERPRETED or torch.cuda.get_device_capability(x.device)[0] == 9)
