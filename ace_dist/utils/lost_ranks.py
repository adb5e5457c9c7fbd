"""Ranks that end or stand still: the flags that all ranks share at every step, and who is missing when they cannot."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ace_dist.utils.errors import UserError

ROLL_CALL_S = 10.0  # a rank that lives answers at once

# What gloo and NCCL say when a peer is gone or does not answer (torch 2.15).
LOST = ("connection closed", "connection reset", "timed out", "timeout", "broken pipe", "connection refused", "nccl")


class RankLost(UserError):
    """Another rank ended or does not answer."""


class HostGroup:
    """All ranks by gloo, whatever the device: on GPUs the hosts talk while the devices compute, no CUDA stream waits,
    and a lost rank is seen at once (its connection closes), while NCCL's kernels wait for it until their timeout.

    One all-reduce a step costs what `benchmarks/results/checkpoint.csv` says.
    """

    def __init__(self, rank: int, world: int, timeout_s: float) -> None:
        """Collective. `timeout_s` bounds `reduce`."""
        self.rank = rank
        self.group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        # For the roll call, as a group cannot be asked once a collective of it has failed. Ranks meet in the first one,
        # so none is late for these, whose short timeout also bounds how long a rank waits for one that stands still.
        limit = timedelta(seconds=ROLL_CALL_S)
        self.everyone: Any = dist.new_group(backend="gloo", timeout=limit)
        self.others: Any = dist.new_group(list(range(1, world)), backend="gloo", timeout=limit) if world > 1 else None

    def reduce(self, **flags: int) -> dict[str, int]:
        """The maximum of each flag over ranks. Collective: every rank names the same flags."""
        packed = torch.tensor(list(flags.values()), dtype=torch.int64)
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=self.group)
        return dict(zip(flags, packed.tolist(), strict=True))

    def missing(self) -> str:
        """After a collective failed: which ranks do not answer, in words. Takes up to twice `ROLL_CALL_S` seconds.

        In torch's barrier every rank reports to the first and waits for it, so the first alone knows who is missing,
        and nobody can say that the first is. Therefore the others meet without it too.
        """
        everyone = absent(self.everyone, is_first=self.rank == 0)
        if everyone is None:
            return "all ranks answer again"
        if self.rank == 0:
            return f"no answer from {in_words(everyone)}"
        others = absent(self.others, is_first=self.rank == 1)
        if others is None:
            return "no answer from rank 0"
        if self.rank == 1:
            return f"no answer from {in_words([rank + 1 for rank in others])}"
        return "no answer from a rank that rank 0 or rank 1 names"


def absent(group: Any, is_first: bool) -> list[int] | None:
    """Who of a group does not come to a barrier, counted within the group, as far as its first one knows; None: all."""
    try:
        dist.monitored_barrier(group, timedelta(seconds=ROLL_CALL_S), wait_all_ranks=is_first)
    except RuntimeError as error:
        found = re.search(r"Ranks? ([\d, ]+) failed to pass", str(error))
        return [int(number) for number in re.findall(r"\d+", found[1])] if found else []
    return None


def in_words(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}" if ranks else "a rank"


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
