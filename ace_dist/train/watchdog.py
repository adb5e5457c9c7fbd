"""Owns noticing that nothing moves: which stage of which step a rank is in, since when, and where its threads stand."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ace_dist.utils.errors import UserError

if TYPE_CHECKING:
    from ace_dist.config import TrainingConfig
    from ace_dist.train.agreement import Agreement
    from ace_dist.utils.distributed import Ranks


# What gloo and NCCL say when a peer is gone or does not answer (torch 2.15).
LOST = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe", "connection refused", "nccl")


class RankLost(UserError):
    """Another rank ended or does not answer."""


class Watchdog:
    """A thread that looks at the stage this rank is in.

    A stage longer than `training.stall_after_s` is named on stderr, once, and the stacks of all threads are written to
    `<run_dir>/stalls/rank-N.txt`. A stage longer than `training.collective_timeout_s` ends the process, whatever the
    rank waits for: data, the device, or another rank. Collectives cannot be left to bound that: DeepSpeed makes groups
    of its own, with torch's timeout of 30 minutes.
    """

    GRACE_S = 5.0  # where a collective has the same timeout, its own error comes first

    def __init__(self, run_dir: Path, ranks: Ranks, agreement: Agreement, settings: TrainingConfig) -> None:
        self.folder, self.ranks, self.agreement = run_dir / "stalls", ranks, agreement
        self.stall_s, self.give_up_s = settings.stall_after_s, settings.collective_timeout_s
        self.step, self.stage, self.since_s = 0, "start", time.monotonic()
        self.told = False
        self.listener: Callable[[str], None] | None = None  # told each stage, by the thread that enters it
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def enter(self, stage: str, step: int | None = None) -> None:
        """Say what this rank does next: data, forward, backward, collective, step, validation (by batch) or save."""
        self.step = self.step if step is None else step
        self.stage, self.since_s, self.told = stage, time.monotonic(), False
        if self.listener is not None:
            self.listener(stage)

    def watch(self) -> None:
        """The thread's work."""
        pause_s = min(1.0, self.stall_s / 4)
        while not self.done.wait(pause_s):
            stage, step, stalled_s = self.stage, self.step, time.monotonic() - self.since_s
            if stalled_s > self.stall_s and not self.told:
                self.told = True
                self.say(f"{stage!r} of step {step + 1} takes more than {self.stall_s:g} s; {self.dump(stage, step)}")
            if stalled_s > self.give_up_s + self.GRACE_S:
                self.say(
                    f"error: {stage!r} of step {step + 1} did not end in {self.give_up_s:g} s "
                    f"(training.collective_timeout_s; {self.agreement.missing()}): this rank gives up; run the same "
                    f"command again, it continues from the last checkpoint"
                )
                os._exit(os.EX_SOFTWARE)

    def dump(self, stage: str, step: int) -> str:
        """Write the stacks of all threads; returns where they are."""
        path = self.folder / f"rank-{self.ranks.rank}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {stage} of step {step + 1}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            return f"its stacks could not be written to {path}: {error.strerror}"
        return f"stacks are in {path}"

    def say(self, line: str) -> None:
        """One line on stderr, with this rank's name."""
        print(f"\nrank {self.ranks.rank} on {socket.gethostname()}: {line}", file=sys.stderr, flush=True)

    def __enter__(self) -> Watchdog:
        self.since_s = time.monotonic()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching; a failed collective becomes a `RankLost` that says who is missing."""
        self.done.set()
        self.thread.join()
        if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST):
            waited_s = time.monotonic() - self.since_s
            raise RankLost(
                f"rank {self.ranks.rank} lost another rank in {self.stage!r} of step {self.step + 1} after "
                f"{waited_s:.0f} s ({self.agreement.missing()}); see that rank's own message, then run the same "
                f"command again: it continues from the last checkpoint"
            ) from error
