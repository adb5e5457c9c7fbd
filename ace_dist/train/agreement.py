"""Owns what ranks have to agree on: a few flags at every step, the failure of one rank, and who is missing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from ace_dist.utils.errors import UserError

if TYPE_CHECKING:
    from ace_dist.utils.distributed import Ranks


P = ParamSpec("P")
T = TypeVar("T")
ROLL_CALL_S = 10.0  # a rank that lives answers at once


class Agreement:
    """The largest value of each flag over all ranks, by one all-reduce a step (`benchmarks/results/checkpoint.csv`).

    On gloo whatever the device: on GPUs the hosts agree while the devices compute, no CUDA stream waits for the flags,
    and a lost rank is seen at once (its connection closes), while NCCL's kernels wait for it until their timeout.
    """

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        self.ranks = ranks
        self.flags = gloo_group(timeout_s)
        self.roll = gloo_group(timeout_s)  # a group that failed once cannot be asked who is missing

    def reach(self, **flags: int) -> dict[str, int]:
        """The maximum of each flag over ranks. Collective: every rank names the same flags."""
        packed = torch.tensor(list(flags.values()), dtype=torch.int64)
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=self.flags)
        return dict(zip(flags, packed.tolist(), strict=True))

    def missing(self) -> str:
        """After a collective failed: which ranks do not answer, in words. Takes up to `ROLL_CALL_S` seconds."""
        try:
            dist.monitored_barrier(self.roll, timedelta(seconds=ROLL_CALL_S), wait_all_ranks=self.ranks.is_first)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        return "all ranks answer again"


def gloo_group(timeout_s: float) -> dist.ProcessGroup:
    """A group of all ranks for tensors on the host."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup)  # every rank is a member
    return group


def on_first(ranks: Ranks, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """Call `work` on rank 0; returns its result there and None elsewhere. Collective.

    What it raises for a user or from the operating system is raised on every rank, so that none waits for the others.
    """
    result: T | None = None
    failure: Exception | None = None
    if ranks.is_first:
        try:
            result = work(*args, **kwargs)
        except (UserError, OSError) as error:
            failure = error
    told = ranks.gather(failure)[0]
    if told is not None:
        raise failure or told  # on rank 0 the original, which knows its cause
    return result
