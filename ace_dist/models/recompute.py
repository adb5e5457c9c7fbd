"""Trades memory for a second computation: what a function would store for the backward pass is computed again."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ace_dist.utils.parts import PartFlops

Result = TypeVar("Result")


def recompute(function: Callable[..., Result], *inputs: Any) -> Result:
    """`function(*inputs)`, storing the inputs alone. The function must not draw random numbers.

    The second computation ends once the last stored tensor is there: of a norm and a matrix product, the norm is
    repeated and the product is not. The gradients are the same to the last bit.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    counter = PartFlops.active
    uncounted: dict[str, Any] = {"context_fn": lambda: (nullcontext(), counter.pause())} if counter else {}
    result: Result = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **uncounted)
    return result


def stored_bytes(run: Callable[[], Any], parameters: Iterable[Tensor]) -> int:
    """Bytes that autograd keeps of `run` for the backward pass, `parameters` aside."""
    own = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, Tensor] = {}  # by storage, alive, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()  # noqa: F841  # alive, with all that it keeps
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)
