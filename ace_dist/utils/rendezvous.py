"""Owns how a process learns its rank and where the ranks meet: from a launcher, SLURM, submitit, or nobody.

Everything here is a function of the environment; nothing touches torch.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Mapping

# SLURM's own ephemeral ports and Linux's (from 32768) are left alone.
FIRST_PORT, PORTS = 20000, 12768
STARTS = 16  # ports of one job: a start after a requeue must not meet what is left of the one before


def rank_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """torch's variables RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for this process.

    From the first of these that describes it: the same variables (torchrun, DeepSpeed's launcher), a task of submitit
    on this machine, a task of `srun`, or nothing, which is a group of one. MASTER_ADDR and MASTER_PORT that are set
    stand.
    A batch script outside `srun` is one process and no task, whatever the size of its job.
    """
    if "RANK" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        return {name: environ[name] for name in names if name in environ}
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        found = submitit_variables(environ)
    elif "SLURM_STEP_ID" in environ:
        found = slurm_variables(environ)
    else:
        found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return found | {name: environ[name] for name in ("MASTER_ADDR", "MASTER_PORT") if name in environ}


def submitit_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of a task that submitit's local executor started; its job id is a process id."""
    tasks = environ["SUBMITIT_LOCAL_NTASKS"]
    return {
        "RANK": environ["SUBMITIT_LOCAL_GLOBALID"],
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": environ["SUBMITIT_LOCAL_LOCALID"],
        "LOCAL_WORLD_SIZE": tasks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(job_port(int(environ["SUBMITIT_LOCAL_JOB_ID"]), 0)),
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
    """A port that all ranks of one start of one job derive alike, and that its neighbours in the queue do not."""
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
    found = re.search(r"\bNodeAddr=(\S+)", text)
    return found.group(1) if found else host


def free_port() -> int:
    """A free TCP port of this host."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cores(environ: Mapping[str, str]) -> int:
    """Cores that this rank may keep busy: SLURM's share of a task, else an equal part of the host's cores."""
    here = len(os.sched_getaffinity(0))
    if "SLURM_CPUS_PER_TASK" in environ:
        return max(1, min(here, int(environ["SLURM_CPUS_PER_TASK"])))
    return max(1, here // int(environ.get("LOCAL_WORLD_SIZE", environ["WORLD_SIZE"])))
