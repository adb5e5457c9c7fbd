"""Ranks that end or stand still: the flags that all ranks share at every step, and who is missing when they cannot."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ace_dist.utils.errors import UserError

ROLL_CALL_S = 5.0  # a rank that lives answers at once

# What gloo and NCCL say when a peer is gone or does not answer (torch 2.15).
LOST = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe", "connection refused", "nccl")


class RankLost(UserError):
    """Another rank ended or does not answer."""

    leaves_threads = True  # gloo's, in a collective that will never end


class HostGroup:
    """All ranks by gloo, whatever the device: on GPUs the hosts talk while the devices compute, no CUDA stream waits,
    and a lost rank is seen at once (its connection closes), while NCCL's kernels wait for it until their timeout.

    One all-reduce a step costs what `benchmarks/results/checkpoint.csv` says.
    """

    def __init__(self, rank: int, world: int, timeout_s: float) -> None:
        """Collective. `timeout_s` bounds `reduce`."""
        self.rank, self.world = rank, world
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        self.store: Any = None  # connected now: to one that stands still, connecting takes for ever
        if world > 1:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self.store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False)  # type: ignore[attr-defined]

    def reduce(self, **flags: int) -> dict[str, int]:
        """The maximum of each flag over ranks. Collective: every rank names the same flags."""
        packed = torch.tensor(list(flags.values()), dtype=torch.int64)
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=self.group)
        return dict(zip(flags, packed.tolist(), strict=True))

    def missing(self) -> str:
        """After a collective failed: which ranks do not answer, in words. Takes up to `ROLL_CALL_S` seconds.

        Every rank that comes here leaves a note where the ranks met, which is in the process of rank 0 and ends or
        stands still with it.
        """
        if self.world == 1:
            return "there is no other rank"
        seen = {self.rank}
        roll_call = threading.Thread(target=self.call_roll, args=(seen,), daemon=True)  # may never return
        roll_call.start()
        roll_call.join(ROLL_CALL_S)
        absent = [rank for rank in range(self.world) if rank not in seen]
        if not absent:
            return "all ranks answer again"
        if 0 in absent:  # whose store knows of the others
            return "no answer from rank 0"
        return f"no answer from rank{'s' if len(absent) > 1 else ''} {', '.join(map(str, absent))}"

    def call_roll(self, seen: set[int]) -> None:
        """Say that this rank is here, and add to `seen` who says so too, until all have."""
        with suppress(RuntimeError):  # the store is gone
            self.store.set(f"ace_dist/roll_call/{self.rank}", "here")
            while len(seen) < self.world:
                seen.update(rank for rank in range(self.world) if self.store.check([f"ace_dist/roll_call/{rank}"]))
                time.sleep(0.1)


def is_lost(error: BaseException | None) -> bool:
    """Whether an error says that a collective failed because of another rank."""
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in LOST)


@contextmanager
def lost_ranks_named(hosts: HostGroup) -> Iterator[None]:
    """Turn the error of a collective that failed because of another rank into a `RankLost` that names it."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise RankLost(
            f"rank {hosts.rank} lost another rank ({hosts.missing()}); see that rank's own message, then run the same "
            f"command again: a training continues from its last checkpoint"
        ) from error
