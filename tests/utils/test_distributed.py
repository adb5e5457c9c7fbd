"""Who a process is and where ranks meet, from the environments that launchers leave behind."""

import socket
import subprocess

import pytest

from ace_dist.utils.cores import cores
from ace_dist.utils.distributed import first_host, job_port, rank_variables, tasks_of_nodes

# What `srun` of SLURM 22.05 gave the second of two tasks on two nodes (recorded; shortened).
SLURM = {
    "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "localhost,n2",
    "SLURM_NTASKS": "2",
}  # fmt: skip


def test_a_launchers_variables_win():
    """torchrun or DeepSpeed inside a SLURM job: their ranks count, not SLURM's."""
    given = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}
    assert rank_variables({**SLURM, **given}) == given


def test_a_task_of_srun():
    """Rank, world and local rank from the step; the first node is the meeting place; the port follows the job id."""
    found = rank_variables(SLURM)
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], found["LOCAL_WORLD_SIZE"]) == ("1", "2", "0", "1")
    assert found["MASTER_ADDR"] == "localhost"
    first = rank_variables({**SLURM, "SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == (found["MASTER_ADDR"], found["MASTER_PORT"])
    requeued = rank_variables({**SLURM, "SLURM_RESTART_COUNT": "1"})
    assert requeued["MASTER_PORT"] != found["MASTER_PORT"]
    assert rank_variables({**SLURM, "MASTER_PORT": "999"})["MASTER_PORT"] == "999"


def test_a_batch_script_outside_srun_is_one_process():
    """SLURM gives the batch script SLURM_PROCID and SLURM_NTASKS too; taking them would wait for ranks for ever."""
    batch = {key: value for key, value in SLURM.items() if "STEP" not in key}
    assert rank_variables(batch)["WORLD_SIZE"] == "1"


def test_a_task_of_submitit_on_this_machine():
    """The local executor's variables, inside a SLURM allocation as well."""
    local = {
        "SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_LOCALID": "1", "SUBMITIT_LOCAL_JOB_ID": "4711",
    }  # fmt: skip
    found = rank_variables({**SLURM, **local})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("1", "2", "1")


def test_ports_of_neighbours_and_restarts_differ():
    """500 jobs in a row with 5 starts each never share a port, and all ports are unprivileged and not ephemeral."""
    ports = [job_port(job, start) for job in range(7_000_000, 7_000_500) for start in range(5)]
    assert len(set(ports)) == len(ports) and min(ports) >= 20000 and max(ports) < 32768


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"), ("n[1-2]", "n1"), ("gpu-[007-009,12],login", "gpu-007"), ("a,b[1-3]", "a"),
        ("rack[3,5]-node[01-08]", "rack3-node01"), ("x1c[0-3]s2.site.org", "x1c0s2.site.org"),
    ],
)  # fmt: skip
def test_first_host(nodelist, host):
    """SLURM's host notation, as its manual (scontrol, hostlist expressions) has it."""
    assert first_host(nodelist) == host


def test_tasks_of_nodes():
    """Unequal nodes: the ranks of the last node share fewer cores."""
    assert tasks_of_nodes("8(x2),4") == [8, 8, 4] and tasks_of_nodes("3") == [3]


def test_a_node_name_that_does_not_resolve_is_asked_of_slurm(monkeypatch):
    """Node names need not be in DNS; SLURM knows their addresses."""

    def unknown(*_):
        raise socket.gaierror

    answer = "NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=n1 Port=6818"
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 0, answer, ""))
    assert rank_variables({**SLURM, "SLURM_STEP_NODELIST": "n[1-2]"})["MASTER_ADDR"] == "10.0.0.7"


def test_cores_follow_slurms_share(monkeypatch):
    """A task of 4 CPUs computes on 4 although it sees 16; without SLURM the ranks of a host share it equally."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert cores({"SLURM_CPUS_PER_TASK": "4", "WORLD_SIZE": "2"}) == 4
    assert cores({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2"}) == 8
    assert cores({"WORLD_SIZE": "32"}) == 1
    assert cores({"SLURM_CPUS_PER_TASK": "16", "LOCAL_SIZE": "4", "WORLD_SIZE": "4"}) == 4
