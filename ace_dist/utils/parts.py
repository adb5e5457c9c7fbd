"""Named parts of a step: ranges for torch's profiler, and FLOPs counted by part with torch's own formulas."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PREFIX = "part: "  # of a range's name in a trace
OTHER = "other"


class Flops(NamedTuple):
    """FLOPs of a part of a step; a multiplication and an addition are two."""

    forward: int
    backward: int


@contextmanager
def part(name: str) -> Iterator[None]:
    """What runs within it belongs to the part `name` of a step; costs microseconds when nobody looks."""
    counter = PartFlops.active
    if counter is not None:
        counter.begin(name)
    try:
        with record_function(PREFIX + name):
            yield
    finally:
        if counter is not None:
            counter.begin(OTHER)


class PartFlops(TorchDispatchMode):
    """While entered, counts the FLOPs of a forward and a backward pass into `flops`, by part.

    They are those of `torch.utils.flop_counter`: matrix products, convolutions and attention, without what is
    elementwise or a matrix times a vector. An operator of the backward pass belongs to the part that made its node of
    autograd's graph; what is computed a second time to save memory counts once (`pause`). Parts do not nest. A Triton
    kernel is not seen, so a model is counted on the meta device, where `ace_kernels` runs in plain torch.
    """

    active: PartFlops | None = None

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: dict[str, Flops] = {}
        self.begins: list[int] = []  # autograd's number for the first node of a part, rising
        self.names: list[str] = []
        self.is_paused = False
        self.begin(OTHER)

    def __enter__(self) -> PartFlops:
        PartFlops.active = self
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        PartFlops.active = None
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count nothing within it."""
        self.is_paused = True
        try:
            yield
        finally:
            self.is_paused = False

    def begin(self, name: str) -> None:
        """The nodes made from here on belong to the part `name`."""
        self.begins.append(torch._C._autograd._get_sequence_nr())
        self.names.append(name)
        if name != OTHER:
            self.flops.setdefault(name, Flops(0, 0))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        formula: Callable[..., int] | None = flop_registry.get(function._overloadpacket)
        if formula is None or self.is_paused:
            return result
        node = torch._C._current_autograd_node()
        if node is None:
            self.add(self.names[-1], formula(*args, **(kwargs or {}), out_val=result), 0)
        else:
            place = bisect_right(self.begins, node._sequence_nr()) - 1
            self.add(self.names[place], 0, formula(*args, **(kwargs or {}), out_val=result))
        return result

    def add(self, name: str, forward: int, backward: int) -> None:
        before = self.flops.get(name, Flops(0, 0))
        self.flops[name] = Flops(before.forward + forward, before.backward + backward)
