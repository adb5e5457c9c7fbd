"""What ends a run in good order: a loss that is not finite, a stop signal, a stage that hangs, a rank that is lost."""

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from ace_dist.config import TrainingConfig
from ace_dist.data.loader.base import Batch
from ace_dist.train.callbacks import Callback
from ace_dist.utils.distributed import Ranks
from ace_dist.utils.errors import RunError, UserError
from ace_dist.utils.lost_ranks import RankLost, is_lost

# SLURM sends USR1 or USR2 ahead of its time limit when asked to, TERM (then KILL after KillWait, 30 s) without asking.
MEANING = {
    signal.SIGUSR1: "preempted",
    signal.SIGUSR2: "preempted",
    signal.SIGTERM: "preempted",
    signal.SIGINT: "interrupted",
}
ORDER = (None, "preempted", "interrupted")  # the larger one counts: who interrupts a run does not want it requeued
EXIT_CODES = {None: 0, "stop_after_steps": 0, "preempted": os.EX_TEMPFAIL, "interrupted": 130}  # 128 + SIGINT

BAD_GRADIENTS = (
    "gradients are not finite although the loss is: train in another folder (run=DIR) with lower training.lr_video and "
    "training.lr_text, or with training.precision=fp32; the last checkpoint is intact"
)


class NonFiniteLoss(UserError):
    """A loss that is NaN or infinite; no checkpoint holds weights that it has moved."""


class StopSignal:
    """While entered, the signals of `MEANING` set `meaning`; what handled them before is restored on leaving.

    The handler only sets a flag. Saving inside it would hang: a scheduler's library calls it on one rank alone, and a
    save takes all of them. The ranks all-reduce the flag at each step and save together, and whoever started the run
    requeues it.

    A second Ctrl-C, more than a second after the first, raises `KeyboardInterrupt`: stop now, without saving. Within
    the second it counts as the first, because a terminal and a launcher both pass on one key press.
    """

    def __init__(self) -> None:
        self.meaning: str | None = None
        self.interrupted_s = 0.0
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.before = {number: signal.signal(number, self.note) for number in MEANING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler. The first signal stands, except that Ctrl-C outranks a launcher's TERM that follows from it."""
        meaning, now_s = MEANING[signal.Signals(number)], time.monotonic()
        if meaning == "interrupted" and self.meaning == "interrupted" and now_s - self.interrupted_s > 1:
            raise KeyboardInterrupt
        if meaning == "interrupted" and self.meaning != "interrupted":
            self.interrupted_s = now_s
            self.meaning = meaning
            if os.environ.get("RANK", "0") == "0":
                # Written past Python's buffers, which the handler may have interrupted.
                os.write(2, b"\ninterrupted: saving after this step (again: stop at once)\n")
        self.meaning = self.meaning or meaning


class PendingLoss(NamedTuple):
    """A loss on its way to the host, and the batch whose clips an error names."""

    step: int
    loss: Tensor
    pixels: Tensor  # bool [B]: the clip's pixels are finite
    ids: tuple[str, ...]
    event: torch.cuda.Event | None  # when the copies are complete; None: at once

    def describe(self) -> tuple[int, str]:
        """The step, and in words the loss and the clips with pixels that are not finite, else all clips."""
        broken = [name for name, fine in zip(self.ids, self.pixels.tolist(), strict=True) if not fine]
        clips = f"pixels that are not finite in clips {', '.join(broken)}" if broken else f"clips {', '.join(self.ids)}"
        return self.step, f"loss {float(self.loss)}, {clips}"

    def is_finite(self) -> bool:
        return bool(self.loss.isfinite())


class PendingGradients(NamedTuple):
    """Whether all gradients up to a step are finite, on its way to the host."""

    step: int
    finite: Tensor
    event: torch.cuda.Event | None

    def describe(self) -> tuple[int, str]:
        return self.step, ""

    def is_finite(self) -> bool:
        return bool(self.finite)


def record_event(tensor: Tensor) -> torch.cuda.Event | None:
    """When a GPU has done all that was launched so far; None on a CPU, which has."""
    if not tensor.is_cuda:
        return None
    event = torch.cuda.Event()
    event.record()
    return event


class Health:
    """What the ranks tell each other at every step: a loss that is not finite, a stop signal, a save that is due.

    Losses are copied to the host behind the forward pass. On a CPU they are there at once, and a bad one ends the run
    before the optimizer moves. On a GPU the host never waits for them on a step that is not logged: `check` looks at
    the copies that have arrived, which are a step or two old, and `wait=True` (a step that is logged, validated or
    saved) at all of them. So the optimizer may have moved before a bad loss is seen, but what it spoilt is neither
    logged nor saved.
    """

    def __init__(self, ranks: Ranks, stop_signal: StopSignal) -> None:
        assert ranks.hosts is not None
        self.ranks, self.hosts, self.stop_signal = ranks, ranks.hosts, stop_signal
        self.pending: list[PendingLoss | PendingGradients] = []

    def note(self, step: int, loss: Tensor, batch: Batch) -> None:
        """Remember a loss that the device is still computing; no host sync."""
        pixels = batch.video.flatten(1).sum(1).isfinite().to("cpu", non_blocking=True)
        value = loss.detach().to("cpu", non_blocking=True)
        self.pending.append(PendingLoss(step, value, pixels, tuple(batch.ids), record_event(loss)))

    def note_gradients(self, step: int, finite: Tensor | None) -> None:
        """Remember `Engine.finite` behind the optimizer's step, the same on every rank; no host sync."""
        if finite is not None:
            value = finite.to("cpu", non_blocking=True, copy=True)
            self.pending.append(PendingGradients(step, value, record_event(finite)))

    def check(self, step: int, save: bool = False, wait: bool = False) -> tuple[str | None, bool]:
        """Whether a rank was told to stop, and how, and whether the clock of one asks for a `save`. Collective.

        Raises `NonFiniteLoss` on every rank when the loss of one is not finite.
        """
        flags = self.hosts.reduce(bad=self.has_bad(wait), stop=ORDER.index(self.stop_signal.meaning), save=save)
        if flags["bad"]:
            raise self.error(step)
        return ORDER[flags["stop"]], bool(flags["save"])

    def has_bad(self, wait: bool) -> bool:
        """Whether what has arrived is not finite; forgets the good ones. `wait`: until all have arrived."""
        while self.pending:
            first = self.pending[0]
            if first.event is not None:
                if wait:
                    first.event.synchronize()
                elif not first.event.query():
                    return False
            if not first.is_finite():
                return True
            del self.pending[0]
        return False

    def error(self, step: int) -> UserError:
        """What to raise on every rank when one has a bad loss, or all a bad gradient, noticed at `step`. Collective."""
        for part in self.pending:
            if part.event is not None:
                part.event.synchronize()
        mine = [part.describe() for part in self.pending if not part.is_finite()]
        found = [(bad, rank, words) for rank, own in enumerate(self.ranks.gather(mine)) for bad, words in own]
        first = min(found)[0]
        found = [(bad, rank, words) for bad, rank, words in found if words]  # without those of gradients
        if not any(bad == first for bad, _, _ in found):
            return RunError(f"step {first + 1}: {BAD_GRADIENTS}")
        clips = "; ".join(f"rank {rank}: {words}" for bad, rank, words in found if bad == first)
        when = "stopped before the optimizer moved" if first == step else f"noticed in step {step + 1}, nothing saved"
        return NonFiniteLoss(
            f"the loss of step {first + 1} is not finite, {when} ({clips}). When the clips look right, train in "
            f"another folder (run=DIR) with lower training.lr_video and training.lr_text; the last checkpoint is intact"
        )

    def explain_skipped(self, step: int) -> RunError:
        """What to raise when DeepSpeed left a step out because of its gradients. Collective.

        Raises `NonFiniteLoss` itself when a loss was the reason.
        """
        self.check(step, wait=True)
        return RunError(BAD_GRADIENTS)


class Watchdog(Callback):
    """A thread that looks at the stage this rank is in.

    A stage longer than `training.stall_after_s` is named on stderr, once, and the stacks of all threads are written to
    `<run>/stalls/rank-N.txt`. A stage longer than `training.collective_timeout_s` ends the process, whatever the rank
    waits for: data, the device, or another rank. Collectives cannot be left to bound that: DeepSpeed makes groups of
    its own, with torch's timeout of 30 minutes.
    """

    GRACE_S = 5.0  # where a collective has the same timeout, its own error comes first
    STOPPED_S = 10.0  # that this thread wakes late: the whole process stood still (Ctrl-Z), which is no stage's fault

    def __init__(self, run_dir: Path, ranks: Ranks, settings: TrainingConfig) -> None:
        assert ranks.hosts is not None
        self.folder, self.ranks, self.hosts = run_dir / "stalls", ranks, ranks.hosts
        self.stall_s, self.give_up_s = settings.stall_after_s, settings.collective_timeout_s
        self.place, self.since_s = "'start' of step 1", time.monotonic()
        self.told = False
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.since_s = time.monotonic()
        self.thread.start()
        return self

    def on_stage(self, stage: str, step: int) -> None:
        self.note(f"{stage!r} of step {step + 1}")

    def note(self, place: str) -> None:
        """This rank goes on to something else, in words for the messages."""
        self.place, self.since_s, self.told = place, time.monotonic(), False

    def watch(self) -> None:
        pause_s, asked_s = min(1.0, self.stall_s / 4), time.monotonic()
        while not self.done.wait(pause_s):
            late_s = time.monotonic() - asked_s - pause_s
            if late_s > self.STOPPED_S:
                self.since_s += late_s
            asked_s = time.monotonic()
            place, stalled_s = self.place, asked_s - self.since_s
            if stalled_s > self.stall_s and not self.told:
                self.told = True
                self.say(f"{place} takes more than {self.stall_s:g} s; {self.dump(place)}")
            if stalled_s > self.give_up_s + self.GRACE_S:
                self.say(
                    f"error: {place} did not end in {self.give_up_s:g} s "
                    f"(training.collective_timeout_s; {self.hosts.missing()}): this rank gives up; run the same "
                    f"command again, it continues from the last checkpoint"
                )
                os._exit(os.EX_SOFTWARE)

    def dump(self, place: str) -> str:
        """Write the stacks of all threads; returns where they are."""
        path = self.folder / f"rank-{self.ranks.rank}.txt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {place}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            return f"its stacks could not be written to {path}: {error.strerror}"
        return f"stacks are in {path}"

    def say(self, line: str) -> None:
        print(f"\nrank {self.ranks.rank} on {socket.gethostname()}: {line}", file=sys.stderr, flush=True)

    def close(self, error: BaseException | None) -> None:
        """Stop watching; a failed collective becomes a `RankLost` that says who is missing."""
        self.done.set()
        self.thread.join()
        if is_lost(error):
            waited_s = time.monotonic() - self.since_s
            raise RankLost(
                f"rank {self.ranks.rank} lost another rank in {self.place} after "
                f"{waited_s:.0f} s ({self.hosts.missing()}); see that rank's own message, then run the same "
                f"command again: it continues from the last checkpoint"
            ) from error
