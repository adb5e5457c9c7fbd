"""Several ranks of one command on this machine, as DeepSpeed's own launcher starts them.

That launcher ends on Ctrl-C before its ranks have saved, and sends each a second signal. Here a signal reaches each
rank once, and this process waits for the exit status that the ranks agreed on.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from ace_dist.config import Config
from ace_dist.utils.cores import host_cores
from ace_dist.utils.errors import UserError

GRACE_S = 60.0  # for the others to name a lost rank themselves
POLL_S = 0.1
HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def default_ranks(config: Config) -> int:
    """One a GPU; without a GPU two, or one on a single core. Fewer where the batch cannot be shared so."""
    import torch

    from ace_dist.train.engine import micro_batch_size

    gpus = torch.cuda.device_count() if config.training.device != "cpu" else 0
    for count in range(gpus or min(2, host_cores()), 1, -1):
        try:
            micro_batch_size(config, count)
        except UserError:
            continue
        return count
    return 1


def run_ranks(words: Sequence[str], count: int) -> int:
    """`python -m ace_dist WORDS` in `count` processes; returns the exit status of the command.

    The variables are those of DeepSpeed's launcher: by them ranks find a port themselves and end with this process.
    """
    shared = {name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE")} | {"CROSS_SIZE": "1"}
    ranks: list[subprocess.Popen[bytes]] = []
    with signals_for(ranks):
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-P", "-u", "-m", "ace_dist", *words]
            ranks.append(subprocess.Popen(command, env=os.environ | shared | own, start_new_session=True))
        return exit_status(wait_for(ranks))


@contextmanager
def signals_for(ranks: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Inside, a signal to this process goes to every rank once, and this process waits for them."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        for rank in ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    before = {number: signal.signal(number, hand_on) for number in HANDED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_for(ranks: Sequence["subprocess.Popen[bytes]"]) -> list[int]:
    """The statuses of all ranks. Those that still run `GRACE_S` after one has failed are killed."""
    failed_s: float | None = None
    while any(rank.poll() is None for rank in ranks):
        if failed_s is None and any(rank.returncode for rank in ranks):
            failed_s = time.monotonic()
        if failed_s is not None and time.monotonic() - failed_s > GRACE_S:
            for rank in ranks:
                rank.kill()
        time.sleep(POLL_S)
    return [rank.returncode for rank in ranks]


def exit_status(codes: Sequence[int]) -> int:
    """What the first rank with a failure of its own said; 128 + signal where all were killed, as shells have it."""
    for rank, code in enumerate(codes):
        if code < 0:
            print(f"rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr, flush=True)
    said = [code for code in codes if code > 0]
    return said[0] if said else 128 - min(codes) if any(codes) else 0
