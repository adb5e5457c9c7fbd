"""Owns the process group: who this rank is, on which device, and the few collectives that the loop needs."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ace_dist.errors import UserError

__all__ = ["DistributedError", "Ranks", "connect", "disconnect", "seed_everything", "uses_bf16"]

T = TypeVar("T")


class DistributedError(UserError):
    """An environment that does not describe a group of ranks."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place: `rank` of `world`, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for every rank."""
        dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in rank order, on every rank (pickled: small things only)."""
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def mean(self, values: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """Means over ranks of named scalars on the device; one collective, one host sync."""
        packed = torch.stack([value.detach().float() for value in values.values()])
        dist.all_reduce(packed)
        return dict(zip(values, (packed / self.world).tolist(), strict=True))


def connect(device: str = "auto") -> Ranks:
    """Join the process group described by RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT.

    Without these variables the process is a group of one. NCCL on CUDA, gloo on CPUs. `device` is `training.device`.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise DistributedError("training.device=cuda, but torch sees no CUDA device; set training.device=cpu or auto")
    use_cuda = cuda and device != "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if use_cuda else "cpu")
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if use_cuda:
        torch.cuda.set_device(local)
    else:
        share_cores()
    import deepspeed

    # At its first start on a CPU DeepSpeed would compile a shared-memory all-reduce for inference, for a minute, which
    # training never calls. Without the entry DeepSpeed uses torch.distributed for that operator too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if use_cuda else "gloo", verbose=False)
    return Ranks(rank, world, torch.device("cuda", local) if use_cuda else torch.device("cpu"))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether a run of `training.precision` computes in bf16: asked for, or `auto` on a CUDA device that has it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def share_cores() -> None:
    """Divide the cores among the ranks of this host unless OMP_NUM_THREADS was set by the user.

    DeepSpeed's launcher sets no thread count, torch then starts one thread a core in every rank, and two ranks on two
    cores run slower than one.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // here))


def disconnect() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    """A free TCP port of this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators. Every random choice of a step has its own (seed, step) generator anyway."""
    random.seed(seed)
    torch.manual_seed(seed)
