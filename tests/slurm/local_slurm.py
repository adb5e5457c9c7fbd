"""A SLURM of two nodes on this machine: munge, slurmctld and two slurmd on 127.0.0.1, in a folder of its own.

    python tests/slurm/local_slurm.py COMMAND ...      # runs the command inside it, then stops everything

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge. The nodes `n1` and `n2` are two daemons on
one host, each of which claims CPUs that it need not have, so tests of scheduling and faults run on any small machine.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=30
SlurmdTimeout={slurmd_timeout_s}
ReturnToService=2
MessageTimeout=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node_1} CPUs=4 RealMemory=2000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node_2} CPUs=4 RealMemory=2000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=n1,n2 State=UP PriorityTier=2
"""


def missing() -> str | None:
    """Why no SLURM can be started here, or `None`."""
    absent = [name for name in PROGRAMS if find(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    return None


def find(program: str) -> str | None:
    """Path of a program; daemons live in `sbin`, which PATH may lack."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")


def die_with_parent() -> None:
    """In a new process: be killed when the parent dies (Linux's PR_SET_PDEATHSIG), in a session of its own."""
    ctypes.CDLL(None).prctl(1, 9)
    os.setsid()


def free_ports(count: int) -> list[int]:
    """That many different free ports of 127.0.0.1."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_for(what: str, condition, timeout_s: float = 60.0, every_s: float = 0.1):
    """The first true value of `condition()`; `TimeoutError` with the text of `what()` or `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(every_s)
    raise TimeoutError(f"waited {timeout_s:.0f} s for {what() if callable(what) else what}")


@dataclass
class LocalSlurm:
    """The running daemons. `environment` is what a command needs to talk to them."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    released: dict[str, str | None] = field(default_factory=dict)  # job -> restarts when it was last let go

    def command(self, *words: str, check: bool = True) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def start(self, name: str, *words: str) -> None:
        """Start a daemon in the foreground; it ends with this process, however that ends."""
        output = (self.folder / f"{name}.out").open("ab")
        self.daemons[name] = subprocess.Popen(
            words, env=self.environment, stdout=output, stderr=output, preexec_fn=die_with_parent
        )

    def start_node(self, name: str) -> None:
        """Start the daemon of a node, and wait until the controller would use it."""
        self.start(name, str(find("slurmd")), "-D", "-N", name, "-f", self.environment["SLURM_CONF"])
        wait_for(lambda: f"node {name}: {self.command('sinfo', '-N', '-l')}", lambda: self.node_state(name) == "IDLE")

    def kill_node(self, name: str) -> None:
        """The node dies as if its power were cut: the daemon and every process of its jobs are killed."""
        daemon = self.daemons.pop(name)
        steps = children_of_steps(name, self.folder)
        daemon.kill()
        daemon.wait()
        for process in steps:
            kill(process)

    def node_state(self, name: str) -> str:
        """`IDLE`, `ALLOCATED`, `MIXED`, `DOWN*`, ... of a node."""
        text = self.command("scontrol", "show", "node", "-o", name, check=False)
        return next((word.removeprefix("State=") for word in text.split() if word.startswith("State=")), "")

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`, empty when the job is forgotten."""
        text = self.command("scontrol", "show", "job", "-o", job_id, check=False)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = 120.0) -> str:
        """Wait until a job is in one of these states; returns it."""
        return wait_for(
            lambda: f"job {job_id} to be {' or '.join(states)}; it is {self.job(job_id)}",
            lambda: next((s for s in states if self.job(job_id).get("JobState") == s), None),
            timeout_s,
        )

    def release(self, job_id: str) -> None:
        """Let a requeued job start soon; SLURM holds it back for two minutes.

        Within the second of its requeue a node takes the new start for the old one ("credential revoked") and fails it.
        """
        self.wait_for_state(job_id, "PENDING", timeout_s=60)
        self.command("scontrol", "update", f"jobid={job_id}", "StartTime=now+3")
        self.released[job_id] = self.job(job_id).get("Restarts")

    def release_if_held(self, job_id: str) -> None:
        """The same for a job that was requeued once more than the test asked for.

        SLURM's controller repeats a signal to a step until each of its nodes answers. On a busy machine that is so late
        that the step of the next start, which has the same number, gets it, saves and requeues itself.
        """
        job = self.job(job_id)
        held = job.get("JobState") == "PENDING" and job.get("Reason") == "BeginTime"
        if held and job["Restarts"] not in ("0", self.released.get(job_id)):  # once a start: each release moves it on
            self.release(job_id)

    def stop(self) -> None:
        """Cancel every job, then end every daemon; nothing is left running."""
        self.command("scancel", "--state=PENDING", "--full", "-u", "root", check=False)
        self.command("scancel", "--signal=KILL", "--full", "-u", "root", check=False)
        for node in ("n1", "n2"):
            for process in children_of_steps(node, self.folder):
                kill(process)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def children_of_steps(node: str, folder: Path) -> list[int]:
    """Process ids of the job steps of a node of this SLURM (`slurmstepd` and everything below it)."""
    parents: dict[int, int] = {}
    steps = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat, environ = (entry / "stat").read_text(), (entry / "environ").read_bytes()
        except OSError:  # it ended meanwhile
            continue
        parents[int(entry.name)] = int(stat.rsplit(")", 1)[1].split()[1])
        ours = f"SLURM_CONF={folder}/".encode() in environ
        if ours and f"SLURMD_NODENAME={node}\0".encode() in environ:
            steps.append(int(entry.name))
    with_daemons = {parents[step] for step in steps if "slurmstepd" in name_of(parents[step])}
    return [*with_daemons, *steps]


def name_of(process: int) -> str:
    """Name of a process, empty when it ended."""
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def kill(process: int) -> None:
    """SIGKILL; fine when it ended already."""
    try:
        os.kill(process, 9)
    except ProcessLookupError:
        return


@contextmanager
def local_slurm(slurmd_timeout_s: int = 10) -> Iterator[LocalSlurm]:
    """Start SLURM, yield it, stop it. It calls a silent node down after `slurmd_timeout_s`, SLURM's default is 300."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    controller, node_1, node_2 = free_ports(3)
    conf = folder / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname(), folder=folder, controller=controller, node_1=node_1, node_2=node_2,
            slurmd_timeout_s=slurmd_timeout_s,
        )
    )  # fmt: skip
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    slurm = LocalSlurm(folder, os.environ | {"SLURM_CONF": str(conf)})
    try:
        slurm.start(
            "munged", str(find("munged")), "--foreground", "--force", f"--socket={folder}/munge.socket",
            f"--key-file={key}", f"--log-file={folder}/munged.log", f"--pid-file={folder}/munged.pid",
            f"--seed-file={folder}/munged.seed", "--num-threads=2",
        )  # fmt: skip
        wait_for("munged", (folder / "munge.socket").exists)
        slurm.start("slurmctld", str(find("slurmctld")), "-D", "-f", str(conf))
        wait_for("slurmctld", lambda: "UP" in slurm.command("scontrol", "ping", check=False))
        for node in ("n1", "n2"):
            slurm.start_node(node)
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    if reason := missing():
        raise SystemExit(reason)
    with local_slurm() as running:
        raise SystemExit(subprocess.run(sys.argv[1:], env=running.environment, check=False).returncode)
