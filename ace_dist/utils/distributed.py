"""The process group: who this rank is and where the ranks meet, its device, and the few collectives of the loop.

A process learns its rank from a launcher's variables, from SLURM or submitit, or it is alone.
"""

import os
import random
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from ace_dist.utils.console import quiet_deepspeed
from ace_dist.utils.cores import cores, host_cores
from ace_dist.utils.errors import RunError, UserError
from ace_dist.utils.lost_ranks import HostGroup, lost_ranks_named
from ace_dist.utils.meeting import Meeting, started_on_one_host

P = ParamSpec("P")
T = TypeVar("T")

# SLURM's own ephemeral ports and Linux's (from 32768) are left alone.
FIRST_PORT, PORTS = 20000, 12768
STARTS = 16  # ports of one job: a start after a requeue must not meet what is left of the one before


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place: `rank` of `world`, and its device. `hosts`: all ranks once more, beside the devices."""

    rank: int
    world: int
    device: torch.device
    hosts: HostGroup | None = None

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
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
    shared = ranks.gather(failure)[0]
    if shared is not None:
        raise failure or shared  # on rank 0 the original, which knows its cause
    return result


def connect(device: str = "auto", timeout_s: float = 600.0) -> Ranks:
    """Join the process group that the environment describes (`rank_variables`): a launcher's, SLURM's, or alone.

    NCCL on CUDA, gloo on CPUs. `device` is `training.device`; `timeout_s` bounds this call and every collective.
    Raises `RunError` when the ranks do not meet.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        job_without = "SUBMITIT_EXECUTOR" in os.environ and not os.environ.get("CUDA_VISIBLE_DEVICES")
        remedy = "this job was given none: set cluster.gpus_per_node, or" if job_without else "set"
        raise RunError(
            f"training.device=cuda, but torch sees no CUDA device; {remedy} training.device=cpu or auto (of "
            f"`ace evaluate`: device=)"
        )
    use_cuda = cuda and device != "cpu"
    check_ranks_here(os.environ, torch.cuda.device_count() if use_cuda else 0)
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if use_cuda else "cpu")
    by_themselves = started_on_one_host(os.environ)
    os.environ.update(rank_variables(os.environ))
    rank, world, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    meeting = Meeting.arrange(rank, world, timeout_s) if by_themselves else None
    gpu = None
    if use_cuda:
        gpu = torch.device("cuda", local % torch.cuda.device_count())  # SLURM may show a task only its own
        torch.cuda.set_device(gpu)
    elif "OMP_NUM_THREADS" not in os.environ:
        # DeepSpeed's launcher sets no thread count, torch then starts one thread a core in every rank, and two ranks on
        # two cores run slower than one.
        torch.set_num_threads(cores(os.environ))
    quiet_deepspeed()
    import deepspeed

    quiet_deepspeed()
    # At its first start on a CPU DeepSpeed would compile a shared-memory all-reduce for inference, for a minute, which
    # training never calls. Without the entry DeepSpeed uses torch.distributed for that operator too.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    try:
        deepspeed.init_distributed("nccl" if use_cuda else "gloo", verbose=False, timeout=timedelta(seconds=timeout_s))
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise RunError(
            f"rank {rank} of {world} could not meet the others at {where} ({str(error).splitlines()[0]}); see that all "
            f"ranks run and reach each other, or set another port (deepspeed: --master_port N; else MASTER_PORT)"
        ) from error
    finally:
        if meeting is not None:
            meeting.close()  # the group keeps the store
    return Ranks(rank, world, gpu or torch.device("cpu"), HostGroup(rank, world, timeout_s))


@contextmanager
def connected(device: str = "auto", timeout_s: float = 600.0) -> Iterator[Ranks]:
    """`connect`, and `disconnect` at the end. Raises `RankLost`, which says who is missing, when a collective fails."""
    ranks = connect(device, timeout_s)
    assert ranks.hosts is not None
    with lost_ranks_named(ranks.hosts):
        yield ranks
    disconnect()


def check_ranks_here(environ: Mapping[str, str], gpus: int) -> None:
    """Whether DeepSpeed's launcher started as many ranks on this host as it has devices.

    Raises `RunError` when ranks would share a GPU, which NCCL refuses. Without a GPU (`gpus` is 0) ranks that
    share a core give the same numbers more slowly, so the first one says so.
    """
    how = "ranks=N of `ace`, --num_gpus N of deepspeed"
    ranks = int(environ.get("LOCAL_SIZE", "1"))  # of DeepSpeed's launcher alone; SLURM shows a task its own GPU
    if gpus and ranks > gpus:
        raise RunError(f"{ranks} ranks on this host, but torch sees {gpus} GPUs; start {gpus} ({how})")
    here = host_cores()
    if not gpus and ranks > here and environ.get("RANK") == "0":
        print(f"{ranks} ranks share {here} CPU cores and no GPU is used; {here} would be faster ({how})", flush=True)


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


def gather_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, of one shape, one after another, with gradients to each rank's own."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    if tensor.is_meta:  # where FLOPs are counted: the shape alone
        return torch.cat([tensor] * dist.get_world_size())
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


def rank_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """torch's variables RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for this process.

    From the first of these that describes it: the same variables (torchrun, DeepSpeed's launcher), a task of submitit
    on this machine, a task of `srun`, or nothing, which is a group of one. MASTER_ADDR and MASTER_PORT that are set
    stand; submitit's tasks here and a group of one get theirs from `Meeting`. A batch script outside `srun` is one
    process and no task, whatever the size of its job.
    """
    if "RANK" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return {name: environ[name] for name in names if name in environ}
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        variables = submitit_variables(environ)
    elif "SLURM_STEP_ID" in environ:
        variables = slurm_variables(environ)
    else:
        variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return variables | {name: environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environ}


def submitit_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a task that submitit's local executor started."""
    tasks = environ["SUBMITIT_LOCAL_NTASKS"]
    return {
        "RANK": environ["SUBMITIT_LOCAL_GLOBALID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environ["SUBMITIT_LOCAL_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks,
    }


def slurm_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a task of an `srun` step. SLURM_JOB_ID is unique for each task of a job array."""
    start = int(environ.get("SLURM_RESTART_COUNT", "0")) + int(environ["SLURM_STEP_ID"])
    node = int(environ["SLURM_NODEID"])
    return {
        "RANK": environ["SLURM_PROCID"],
        "WORLD_SIZE": environ["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_of_nodes(environ["SLURM_STEP_TASKS_PER_NODE"])[node]),
        "MASTER_ADDR": environ.get("MASTER_ADDR") or node_address(first_host(environ["SLURM_STEP_NODELIST"])),
        "MASTER_PORT": str(job_port(int(environ["SLURM_JOB_ID"]), start)),
    }


def job_port(job_id: int, start: int) -> int:
    """A port for one start of one job: the same on all its ranks, another one for the jobs next to it in the queue."""
    return FIRST_PORT + (STARTS * job_id + start % STARTS) % PORTS


def first_host(nodelist: str) -> str:
    """The first host of SLURM's notation: `gpu-[007-009,12],login` begins with `gpu-007`."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodelist).split(",")[0]


def tasks_of_nodes(counts: str) -> list[int]:
    """Tasks of each node from SLURM's notation: `8(x2),4` is [8, 8, 4]."""
    tasks: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        tasks += [int(count)] * int(times or 1)
    return tasks


def node_address(host: str) -> str:
    """An address of a node: its name when that resolves, else what SLURM knows as its NodeAddr, else its name."""
    try:
        socket.getaddrinfo(host, None)
        return host
    except socket.gaierror:
        words = ("scontrol", "show", "node", "--oneliner", host)
    try:
        text = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return host  # then connecting fails with its name in the message
    match = re.search(r"\bNodeAddr=(\S+)", text)
    return match[1] if match else host
