"""Owns the process group: who this rank is, on which device, and the few collectives that the loop needs."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ace_dist.utils.errors import RunError
from ace_dist.utils.rendezvous import cores, rank_variables

T = TypeVar("T")


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


def connect(device: str = "auto", timeout_s: float = 600.0) -> Ranks:
    """Join the process group that the environment describes (`utils.rendezvous`): a launcher's, SLURM's, or alone.

    NCCL on CUDA, gloo on CPUs. `device` is `training.device`; `timeout_s` bounds this call and every collective.
    Raises `RunError` when the ranks do not meet.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise RunError("training.device=cuda, but torch sees no CUDA device; set training.device=cpu or auto")
    use_cuda = cuda and device != "cpu"
    check_ranks_here(os.environ, torch.cuda.device_count() if use_cuda else 0)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if use_cuda else "cpu")
    os.environ.update(rank_variables(os.environ))
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    gpu = (
        torch.device("cuda", local % torch.cuda.device_count()) if use_cuda else None
    )  # SLURM may show a task only its own
    if gpu is not None:
        torch.cuda.set_device(gpu)
    elif "OMP_NUM_THREADS" not in os.environ:
        # DeepSpeed's launcher sets no thread count, torch then starts one thread a core in every rank, and two ranks on
        # two cores run slower than one.
        torch.set_num_threads(cores(os.environ))
    import deepspeed

    # At its first start on a CPU DeepSpeed would compile a shared-memory all-reduce for inference, for a minute, which
    # training never calls. Without the entry DeepSpeed uses torch.distributed for that operator too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed("nccl" if use_cuda else "gloo", verbose=False, timeout=timedelta(seconds=timeout_s))
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunError(
            f"rank {rank} of {world} could not meet the others at {where} ({str(error).splitlines()[0]}); see that all "
            f"ranks run and reach each other, or set MASTER_ADDR and MASTER_PORT"
        ) from error
    return Ranks(rank, world, gpu or torch.device("cpu"))


def check_ranks_here(environ: Mapping[str, str], gpus: int) -> None:
    """Whether DeepSpeed's launcher started as many ranks on this host as it has devices (`--num_gpus`).

    Raises `RunError` when ranks would share a GPU, which NCCL refuses. Without a GPU (`gpus` is 0) ranks that
    share a core give the same numbers more slowly, so the first one says so.
    """
    ranks = int(environ.get("LOCAL_SIZE", "1"))  # of DeepSpeed's launcher alone; SLURM shows a task its own GPU
    if gpus and ranks > gpus:
        raise RunError(f"{ranks} ranks on this host, but torch sees {gpus} GPUs; start with --num_gpus {gpus}")
    here = len(os.sched_getaffinity(0))
    if not gpus and ranks > here and environ.get("RANK") == "0":
        print(f"{ranks} ranks share {here} CPU cores and no GPU is used; --num_gpus {here} would be faster", flush=True)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether a run of `training.precision` computes in bf16: asked for, or `auto` on a CUDA device that has it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def disconnect() -> None:
    """Leave the process group, if there is one. DeepSpeed does it, as it keeps groups of its own that end with it."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, of one shape, one after another, with gradients to each rank's own."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    if not tensor.requires_grad:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(tensor.contiguous()))


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators. Every random choice of a step has its own (seed, step) generator anyway."""
    random.seed(seed)
    torch.manual_seed(seed)
