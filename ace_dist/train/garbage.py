"""Owns when Python collects garbage while a run trains."""

from __future__ import annotations

import gc
from types import TracebackType


class GarbageCollection:
    """Collects at fixed steps, the same on all ranks, instead of whenever Python's own counters say so.

    A rank that collects while the others compute makes all of them wait at the next collective. `every` is
    `training.gc_every_steps`; 0 leaves Python's automatic collection as it is. It is as it was on leaving, also after
    an error.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.was_on = gc.isenabled()

    def __enter__(self) -> GarbageCollection:
        if self.every:
            gc.disable()
            gc.collect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.every and self.was_on:
            gc.enable()

    def step(self, done: int) -> None:
        """Collect the younger generations when `done` steps ask for it: what has lived longer is the model."""
        if self.every and done % self.every == 0:
            gc.collect(1)
