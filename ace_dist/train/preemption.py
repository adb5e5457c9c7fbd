"""Owns the signals that ask a run to end early. A handler only sets a flag; the loop acts on it at a step boundary.

Saving inside a handler would hang: a scheduler's library calls its handler on one rank alone, and a save takes all of
them. So the ranks agree on the flags at each step, all of them save, and whoever started the run requeues it.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType
from typing import Any

# SLURM sends USR1 or USR2 ahead of its time limit when asked to, TERM (then KILL after KillWait, 30 s) without asking.
MEANING = {
    signal.SIGUSR1: "preempted",
    signal.SIGUSR2: "preempted",
    signal.SIGTERM: "preempted",
    signal.SIGINT: "interrupted",
}
ORDER = (None, "preempted", "interrupted")  # who interrupts a run does not want it requeued
EXIT_CODES = {None: 0, "stop_after_steps": 0, "preempted": os.EX_TEMPFAIL, "interrupted": 130}  # 128 + SIGINT


class Preemption:
    """While entered, the signals of `MEANING` set `wish`; what handled them before is restored on leaving.

    A second Ctrl-C, more than a second after the first, raises `KeyboardInterrupt`: stop now, without saving. Within
    the second it counts as the first, because a terminal and a launcher both pass on one key press.
    """

    def __init__(self) -> None:
        self.wish: str | None = None
        self.interrupted_s = 0.0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Preemption:
        self.before = {number: signal.signal(number, self.note) for number in MEANING}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler. The first wish stands, except that Ctrl-C outranks a launcher's TERM that follows from it."""
        meaning, now_s = MEANING[signal.Signals(number)], time.monotonic()
        if meaning == "interrupted" and self.wish == "interrupted" and now_s - self.interrupted_s > 1:
            raise KeyboardInterrupt
        if meaning == "interrupted" and self.wish != "interrupted":
            self.interrupted_s = now_s
            self.wish = meaning
            if (
                os.environ.get("RANK", "0") == "0"
            ):  # written past Python's buffers, which the handler may have interrupted
                os.write(2, b"\ninterrupted: saving after this step (again: stop at once)\n")
        self.wish = self.wish or meaning

    def rank(self) -> int:
        """The wish as a number of which the larger one counts, for ranks to agree on."""
        return ORDER.index(self.wish)
