"""What the host has: cores to keep busy, free memory; without torch, which workers that read videos do not load."""

import os
from collections.abc import Mapping


def host_cores() -> int:
    """Cores of this machine that the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_gib() -> float:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


def cores(environ: Mapping[str, str]) -> int:
    """Cores that this rank may keep busy: SLURM's share of a task, else an equal part of the host's cores.

    Ranks that `ace` or DeepSpeed's launcher started in one task (LOCAL_SIZE) share the cores of that task.
    """
    here = host_cores()
    if "SLURM_CPUS_PER_TASK" in environ:
        return max(1, min(here // int(environ.get("LOCAL_SIZE", "1")), int(environ["SLURM_CPUS_PER_TASK"])))
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")  # torch's, DeepSpeed's launcher's, or all on this host
    return max(1, here // int(next((environ[name] for name in names if name in environ), "1")))
