"""What hangs on the training loop: one list and a small protocol, so that the loop knows no part of it by name."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor


@dataclass
class StepEnd:
    """A finished step, and what the callbacks ask of the loop because of it."""

    step: int  # steps done
    epoch: float  # passes over the data
    rates: dict[str, float]  # learning rates by name
    wait_s: float  # seconds waited for data since the start
    save: bool = False
    stop: bool = False
    best_step: int | None = None  # the checkpoint of this step is kept beside the newest


class Callback:
    """One listener. Every event does nothing by default; all ranks receive the same events in the same order.

    `name` is set by a callback whose `state` belongs into a checkpoint, where it stands under that name.
    """

    name: str | None = None
    callbacks: Callbacks

    def due(self, done: int) -> bool:
        """Whether this callback reads losses or weights after `done` steps, so that the host may wait for them."""
        return False

    def on_step_begin(self, step: int) -> None:
        """Step `step`, counted from 0, begins."""

    def on_stage(self, stage: str, step: int) -> None:
        """This rank goes on to data, forward, backward, collective, step, validation (every batch) or save."""

    def on_micro_batch(self, losses: Mapping[str, Tensor], loss: Tensor) -> None:
        """The named losses of a micro-batch and their sum, which the device may still be computing."""

    def on_step_end(self, end: StepEnd) -> None:
        """The optimizer has moved; `end.save` and `end.stop` may be set."""

    def on_result(self, step: int, values: Mapping[str, float]) -> None:
        """Another callback has measured something at `step`, such as a validation."""

    def state(self) -> Any:
        """What a checkpoint has to hold of this callback, in JSON's types. Collective."""

    def close(self, error: BaseException | None) -> None:
        """The loop ends, with `error` if it failed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close(error[1])


class Callbacks(Callback):
    """Several callbacks as one. They close in reverse order; an error of one is passed to those that close after it."""

    def __init__(self, members: Iterable[Callback]) -> None:
        self.members = list(members)
        self.open = ExitStack()
        for member in self.members:
            member.callbacks = self

    def __enter__(self) -> Self:
        for member in self.members:
            self.open.enter_context(member)
        return self

    def __exit__(self, *error: Any) -> None:
        self.open.__exit__(*error)

    def due(self, done: int) -> bool:
        return any(member.due(done) for member in self.members)

    def on_step_begin(self, step: int) -> None:
        for member in self.members:
            member.on_step_begin(step)

    def on_stage(self, stage: str, step: int) -> None:
        for member in self.members:
            member.on_stage(stage, step)

    def on_micro_batch(self, losses: Mapping[str, Tensor], loss: Tensor) -> None:
        for member in self.members:
            member.on_micro_batch(losses, loss)

    def on_step_end(self, end: StepEnd) -> None:
        for member in self.members:
            member.on_step_end(end)

    def on_result(self, step: int, values: Mapping[str, float]) -> None:
        for member in self.members:
            member.on_result(step, values)

    def state(self) -> dict[str, Any]:
        return {member.name: member.state() for member in self.members if member.name}


class GarbageCollection(Callback):
    """Collects Python's garbage at fixed steps, the same on all ranks, and not whenever Python's own counters say so.

    A rank that collects while the others compute makes all of them wait at the next collective. `every` is
    `training.gc_every_steps`; 0 leaves Python's automatic collection as it is. Closing restores what was before.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.was_on = gc.isenabled()

    def __enter__(self) -> Self:
        if self.every:
            gc.disable()
            gc.collect()
        return self

    def on_step_end(self, end: StepEnd) -> None:
        if self.every and end.step % self.every == 0:
            gc.collect(1)  # the younger generations: what has lived longer is the model

    def close(self, error: BaseException | None) -> None:
        if self.every and self.was_on:
            gc.enable()
