"""Attention over short sequences in plain torch, with hand-written gradients.

Shapes as in `short_attention`; N counts sequences times heads. Every tensor is copied once into [N,T,d], where the
products are plain batched ones; the scale rides in them, and each gradient is written once, into its place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def flat_batch(x: Tensor) -> Tensor:
    """[..,T,H,d] -> [N,T,d]."""
    return x.transpose(-3, -2).reshape(-1, x.shape[-3], x.shape[-1])


def store(result: Tensor, out: Tensor) -> None:
    """Write [N,T,d] into [..,T,H,d]."""
    target = out.transpose(-3, -2)
    target.copy_(result.view(target.shape))


def product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """scale · a b for every entry of the batch."""
    return torch.baddbmm(a.new_empty(1), a, b, beta=0, alpha=scale)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor) -> None:
    """Write softmax(scale · q k') v of every sequence and head into `out`."""
    probabilities = product(flat_batch(q), flat_batch(k).transpose(1, 2), scale).softmax(-1)
    store(torch.bmm(probabilities, flat_batch(v)), out)


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, outs: Sequence[Tensor | None]) -> None:
    """Write the gradients of q, k and v into `outs`, where it is not None.

    With P the probabilities: dV = P' dO, dP = dO V', dS = P ∘ (dP - rowsum(P ∘ dP)), dQ = scale · dS K,
    dK = scale · dS' Q.
    """
    dq, dk, dv = outs
    grad_N, q_N, k_N = flat_batch(grad), flat_batch(q), flat_batch(k)
    p = product(q_N, k_N.transpose(1, 2), scale).softmax(-1)
    if dv is not None:
        store(torch.bmm(p.transpose(1, 2), grad_N), dv)
    if dq is None and dk is None:
        return
    dp = torch.bmm(grad_N, flat_batch(v).transpose(1, 2))
    ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)  # autograd's own: its sums are float32 for bfloat16
    if dq is not None:
        store(product(ds, k_N, scale), dq)
    if dk is not None:
        store(product(ds.transpose(1, 2), q_N, scale), dk)
