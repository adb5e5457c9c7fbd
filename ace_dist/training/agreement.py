"""Owns what ranks agree on at every step: one all-reduce of a few integers, apart from the data's own collectives."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from ace_dist.distributed import Ranks

__all__ = ["Agreement"]


class Agreement:
    """The largest value of each flag over all ranks.

    On a gloo group of its own, so that on GPUs the flags never wait for a CUDA stream and a lost rank is seen by the
    hosts even while NCCL waits for it.
    """

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        self.ranks = ranks
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
        assert isinstance(group, dist.ProcessGroup)  # every rank is a member
        self.group = group

    def reach(self, **flags: int) -> dict[str, int]:
        """The maximum of each flag over ranks. Collective: every rank names the same flags."""
        packed = torch.tensor(list(flags.values()), dtype=torch.int64)
        dist.all_reduce(packed, dist.ReduceOp.MAX, group=self.group)
        return dict(zip(flags, packed.tolist(), strict=True))
