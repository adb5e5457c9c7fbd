"""Hands jobs to SLURM or to this machine through submitit, stays with them, and asks whether they are still there.

sbatch passes the submitting shell's environment on to the job, and SLURM keeps a copy in its state folder. So a job
gets the variables of a list (`PASSED`, `cluster.environment`) and no secret. One that needs a secret reads it on the
node: `cluster.setup=['source ~/.keys']`.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

from ace_dist.cluster.jobs import Job, Main, read_journal
from ace_dist.cluster.profiles import ClusterConfig, refuse_control_characters, secrets_belong
from ace_dist.config import Config
from ace_dist.utils.console import say_once
from ace_dist.utils.cores import host_cores
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.secrets import SHAPES, STRONG_NAMES, WEAK_NAMES, redact

Load = Callable[[Sequence[str]], Config]  # composes a run's configuration and checks it
POLL_S = 0.5
PASSED = (  # variables that a job sees, * for any ending: the shell, Python, the machine's libraries, the cluster
    "HOME", "USER", "LOGNAME", "SHELL", "PATH", "PWD", "TERM", "TZ", "TMPDIR", "LANG", "LANGUAGE", "LC_*", "XDG_*",
    "PYTHON*", "VIRTUAL_ENV", "CONDA_*", "MAMBA_*", "PYENV_*", "UV_*", "LD_LIBRARY_PATH", "LD_PRELOAD", "LIBRARY_PATH",
    "CPATH", "CC", "CXX", "MODULE*", "LMOD_*", "LOADEDMODULES", "_LMFILES_", "BASH_FUNC_*", "SSL_CERT_*", "*_proxy",
    "CUDA*", "NVIDIA_*", "NCCL_*", "GLOO_*", "UCX_*", "FI_*", "OMPI_*", "OMP_*", "MKL_*", "OPENBLAS_*", "NUMBA_*",
    "TORCH*", "PYTORCH_*", "TRITON_*", "DALI_*", "DS_*", "DEEPSPEED_*", "HF_*", "TRANSFORMERS_*", "WN_*", "WANDB_*",
    "TRACKIO_*", "ACE_*", "SLURM_*", "SBATCH_*", "SUBMITIT_*", "SCRATCH*", "*_SCRATCH", "WORK", "STORE", "PROJECT",
)  # fmt: skip
PLACE = ("partition", "account", "qos", "constraint")  # of sbatch's options
COMPOSED = ("train", "shards build", "shards verify", "preflight")  # commands whose settings are a run's


def slurm_parameters(profile: ClusterConfig, name: str, folder: Path) -> dict[str, Any]:
    """A profile in submitit's names, with what every job of this project has.

    A rank that dies takes its step down at once instead of leaving the others in a collective. USR1 and USR2 to the
    whole job reach the ranks and must not kill the batch shell meanwhile. A step that a signal has killed is requeued
    `crash_requeues` times.
    """
    refuse_control_characters({"folder": str(folder), "name": name})
    crashes = f"{shlex.quote(str(folder.absolute()))}/$SLURM_JOB_ID.crashes"
    parameters = {
        **{key: getattr(profile, key) for key in ("nodes", "cpus_per_task", *PLACE, "exclude")},
        "job_name": name,
        "ntasks_per_node": profile.tasks_per_node,
        "gpus_per_node": profile.gpus_per_node or None,
        "mem": None if profile.mem_gb is None else f"{round(profile.mem_gb * 1024)}M",
        "time": profile.time_min,
        "signal_delay_s": profile.signal_lead_s,
        "array_parallelism": profile.parallel,
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **profile.sbatch},
        # Since SLURM 22.05 a step no longer inherits the job's CPUs per task.
        "srun_args": ["--kill-on-bad-exit=1"]
        + ([f"--cpus-per-task={profile.cpus_per_task}"] if profile.cpus_per_task else []),
        "setup": ["trap : USR1 USR2", *profile.setup],
        "teardown": [
            "status=$?",
            f"crashes={crashes}",
            'if [ "$status" -gt 128 ] && [ "$status" -lt 160 ] && '
            f'[ "$(cat "$crashes" 2>/dev/null | wc -l)" -lt {profile.crash_requeues} ]; then',
            '    echo "a rank was killed (srun ended with $status); requeued" | tee -a "$crashes"',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "fi",
            "exit $status",
        ],
    }
    return {key: value for key, value in parameters.items() if value is not None}


def sbatch_text(profile: ClusterConfig, name: str, folder: Path, count: int = 1) -> str:
    """The sbatch file that `count` jobs would be submitted with, an array when there are several."""
    python = profile.python or shlex.quote(sys.executable)
    command = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder.absolute()))}"
    array = {"map_count": count} if count > 1 else {}
    text: str = _make_sbatch_string(command, folder.absolute(), **slurm_parameters(profile, name, folder), **array)
    return text


def submit(profile: ClusterConfig, jobs: Sequence[Job], name: str, folder: Path) -> list[str]:
    """Submit jobs to SLURM, an array when there are several; returns their ids, `17` or `17_0`, `17_1`, ...

    Raises `RunError` with sbatch's own words when it refuses.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise RunError(
            "cluster.kind=slurm, but sbatch and srun are not on this machine; submit from a login node of the cluster, "
            "or use cluster=local"
        )
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder, max_num_timeout=profile.max_timeouts, python=profile.python)
    executor.update_parameters(**slurm_parameters(profile, name, folder))
    try:
        with job_environment(profile, jobs):
            return [job.job_id for job in executor.submit_array(list(jobs))]
    except FailedJobError as error:
        raise RunError(f"sbatch refused the job: {' '.join(str(error).split())}") from error


@contextmanager
def job_environment(profile: ClusterConfig, jobs: Sequence[Job], **variables: str) -> Iterator[None]:
    """Inside, the environment has the variables that a job may see (`passed_on`), and these new ones."""
    texts = [*profile.setup, *(word for job in jobs for word in job.words)]
    before = dict(os.environ)
    kept = {name: value for name, value in before.items() if passed_on(name, value, profile.environment, texts)}
    os.environ.clear()
    os.environ.update(kept | variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def passed_on(name: str, value: str, added: Sequence[str], texts: Sequence[str] = ()) -> bool:
    """Whether a job sees a variable: one of `PASSED` or `added`, or one that a setting names as `$NAME`.

    A secret never passes, by its name or by its value.
    """
    if STRONG_NAMES.search(name) or WEAK_NAMES.search(name) or SHAPES.search(value):
        return False
    if any(fnmatchcase(name, pattern) for pattern in (*PASSED, *added)):
        return True
    return any(re.search(rf"\$(?:{re.escape(name)}\b|{{{re.escape(name)}}})", text) for text in texts)


def refuse_secrets(profile: ClusterConfig, settings: Sequence[str]) -> None:
    """Settings and setup lines are written into files; raises `ConfigError` when one of them holds a secret."""
    for text in (*settings, *profile.setup, *(f"{key}={value}" for key, value in profile.sbatch.items())):
        if redact(text) != text:
            raise ConfigError(
                f"{redact(text)!r} holds a secret, which would be written into the job's files; "
                f"{secrets_belong(profile)}"
            )


def visible_gpus() -> list[str]:
    """The GPUs that torch sees on this machine, as CUDA_VISIBLE_DEVICES names them: by number or UUID."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(count)) if named is None else named.split(",")
    return [name.strip() for name in names][:count]


def check_gpus(profile: ClusterConfig, jobs: int) -> None:
    """Raises `ConfigError` when the jobs that run at the same time need more GPUs than this machine has for them."""
    if profile.kind != "local" or not profile.gpus_per_node:
        return
    at_once, there = min(profile.parallel, jobs), len(visible_gpus())
    if at_once * profile.gpus_per_node > there:
        raise ConfigError(
            f"cluster.gpus_per_node={profile.gpus_per_node} for {at_once} job(s) at a time needs "
            f"{at_once * profile.gpus_per_node} GPUs, but torch sees {there} here; lower it or cluster.parallel"
        )


class LocalQueue:
    """Runs jobs on this machine through submitit, `profile.parallel` at a time, each with GPUs of its own.

    The jobs ignore Ctrl-C except while training, which saves (`ace_dist.train.health`); the queue passes it on as TERM.
    """

    def __init__(self, profile: ClusterConfig, folder: Path) -> None:
        self.profile, self.folder = profile, folder
        self.gpus = visible_gpus() if profile.gpus_per_node else []
        self.running: dict[int, submitit.LocalJob[None]] = {}  # by slot, below `profile.parallel`

    def start(self, job: Job) -> int:
        """Start a job in a free slot, which is returned.

        OMP_NUM_THREADS divides the cores among all ranks of all slots, unless the user has set it.
        """
        profile, gpus = self.profile, self.profile.gpus_per_node
        slot = min(set(range(profile.parallel)) - self.running.keys())
        executor = submitit.LocalExecutor(self.folder, python=profile.python)
        executor.update_parameters(
            tasks_per_node=profile.tasks_per_node,
            gpus_per_node=gpus,
            timeout_min=profile.time_min,
            stderr_to_stdout=True,
        )
        # Past update_parameters, which takes numbers alone and no UUIDs.
        executor.parameters["visible_gpus"] = self.gpus[slot * gpus : (slot + 1) * gpus]
        variables = {}
        if profile.parallel > 1 and "OMP_NUM_THREADS" not in os.environ:
            ranks = profile.parallel * profile.tasks_per_node
            variables["OMP_NUM_THREADS"] = str(max(1, host_cores() // ranks))
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with job_environment(profile, [job], **variables):
                self.running[slot] = executor.submit(job)
        finally:
            signal.signal(signal.SIGINT, before)
        return slot

    def run(self, jobs: Sequence[Job], started: Callable[[int, str], None], ended: Callable[[int], None]) -> None:
        """Run all jobs to their ends. `started(index, id)` and `ended(index)` are told as it happens.

        On Ctrl-C nothing more is started, the running jobs are asked to save and end, and `KeyboardInterrupt` goes on.
        """
        waiting, indices = list(enumerate(jobs)), dict[int, int]()  # of the jobs by slot
        try:
            while waiting or self.running:
                for slot in [slot for slot, job in self.running.items() if job.done()]:
                    del self.running[slot]
                    ended(indices.pop(slot))
                while waiting and len(self.running) < self.profile.parallel:
                    index, job = waiting.pop(0)
                    slot = self.start(job)
                    indices[slot] = index
                    started(index, self.running[slot].job_id)
                time.sleep(POLL_S)
        except KeyboardInterrupt:
            self.stop()
            for index in indices.values():
                ended(index)
            raise

    def stop(self) -> None:
        """Ask what is running to save and end, and wait for it."""
        for job in self.running.values():
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller hands it to the ranks
        while not all(job.done() for job in self.running.values()):
            time.sleep(POLL_S)


def queue(job_ids: Sequence[str]) -> dict[str, str]:
    """SLURM's word (PENDING, RUNNING, COMPLETING, ...) for those jobs that have not ended."""
    words = ("squeue", "--noheader", "--array", "--format=%i|%T", "--me")
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise RunError(f"{' '.join(words)} failed, so the state of the jobs is unknown: {error}") from error
    states = dict(line.strip().split("|") for line in done.stdout.splitlines())
    return {job_id: states[job_id] for job_id in job_ids if job_id in states}


def has_left(job_id: str) -> bool:
    """Whether a job has left SLURM's queue; of a controller that does not answer, a line says so."""
    try:
        return not queue([job_id])
    except RunError as error:
        say_once(str(error))
        return False


def log_path(folder: Path, job_id: str) -> Path:
    """What the first rank of a job prints, over all its starts."""
    return folder / f"{job_id}_0_log.out"


def describe(profile: ClusterConfig, jobs: Sequence[Job], folder: Path) -> str:
    """What is about to be submitted, for the console."""
    ranks = profile.nodes * profile.tasks_per_node
    each = f"{profile.nodes} node(s) x {profile.tasks_per_node} rank(s)"
    if profile.gpus_per_node:
        each += f" on {profile.gpus_per_node} GPU(s) a node"
    where = [f"{key} {getattr(profile, key)}" for key in PLACE if getattr(profile, key)]
    lines = [
        f"where    {', '.join([profile.kind, *where])}",
        f"each     {each} = {ranks} rank(s)" + (f", {profile.time_min} min" if profile.kind == "slurm" else ""),
        f"logs     {folder}",
    ]
    if profile.kind == "local" and not profile.gpus_per_node and (gpus := visible_gpus()):
        lines.append(f"gpus     none of the {len(gpus)} here; cluster.gpus_per_node=1 gives each job one")
    if len(jobs) > 1:
        lines.append(f"jobs     {len(jobs)}, {profile.parallel} at a time")
    return "\n".join([*lines, *(f"runs     {shlex.join(job.words)}" for job in jobs)])


def check_job(load: Load, command: str, settings: Sequence[str], profile: ClusterConfig) -> None:
    """Compose the settings of a job here, and not after a night in the queue.

    Raises `ConfigError` for a setting that does not exist, a secret in a setting, or a batch size that the job's ranks
    cannot share, and `UserError` for trees and label sets that are not there. Of weights and shards, which only the
    node may see, a line says so.
    """
    refuse_secrets(profile, settings)
    refuse_control_characters({setting.partition("=")[0]: setting for setting in settings})
    if command in COMPOSED:
        config = load(settings)
        if command == "train":
            from ace_dist.data.run_inputs import absent_here, check_files, check_run_place
            from ace_dist.train.engine import micro_batch_size

            check_run_place(Path(config.run))
            check_files(config)
            for name in absent_here(config):
                say_once(f"{name} is not on this machine: the job needs it where it runs")
            micro_batch_size(config, profile.nodes * profile.tasks_per_node)


def build_job(execute: Main, command: str, settings: Sequence[str], folder: Path) -> Job:
    """A job of a command, with a journal of its own in `folder`."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    return Job(execute, (command, *settings), str((folder / f"{stamp}-{command}.jsonl").absolute()))


def run_here(job: Job, profile: ClusterConfig, folder: Path) -> None:
    """Run a job on this machine and print what its first rank prints. Ctrl-C has it save and end."""
    local = LocalQueue(profile, folder)
    started = local.running[local.start(job)]
    try:
        stay(log_path(folder, started.job_id), started.done)
    except KeyboardInterrupt:
        local.stop()
        events = read_journal(Path(job.journal))
        print(f"\nended by Ctrl-C: {events[-1].event if events else 'before it started'}; log: {folder}", flush=True)


def stay(log: Path, ended: Callable[[], bool]) -> None:
    """Print what is appended to a log until the job has ended."""
    position = 0
    while True:
        over = ended()
        if log.is_file():
            with log.open(encoding="utf-8", errors="replace") as file:
                file.seek(position)
                print(file.read(), end="", flush=True)
                position = file.tell()
        if over:
            return
        time.sleep(1)


def exit_status(job: Job) -> int:
    """Exit status for a job that has ended: 0 when it finished, 75 when it stopped early and saved, else 1."""
    events = read_journal(Path(job.journal))
    start = max((event.start for event in events), default=0)
    kinds = {event.event for event in events if event.start == start}
    return next((status for kind, status in (("failed", 1), ("finished", 0), ("stopped", 75)) if kind in kinds), 1)
