"""Owns what `launchers/sweep.py` does with a sweep: which runs to submit, submitting them, and the status table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ace_dist.cluster.profiles import ClusterConfig
from ace_dist.cluster.single import check_training
from ace_dist.cluster.submission import LocalQueue, describe, refuse_secrets, sbatch_text, submit
from ace_dist.cluster.sweeps import STATES, Run, State, Sweep
from ace_dist.config import load_config


def check_runs(runs: Sequence[Run], profile: ClusterConfig) -> None:
    """Compose every run's configuration now; raises `UserError` for the first that is wrong."""
    for run in runs:
        refuse_secrets(profile, run.overrides)
        check_training(load_config(run.overrides), profile)


def select(runs: Sequence[Run], states: dict[str, State], verb: str) -> list[Run]:
    """The runs to submit: failed ones for `retry`, else all that are neither finished nor in the queue."""
    wanted = ("failed",) if verb == "retry" else ("new", "failed", "stopped")
    return [run for run in runs if states[run.id].state in wanted]


def launch(sweep: Sweep, runs: Sequence[Run], profile: ClusterConfig, dry_run: bool) -> int:
    """Submit runs, on SLURM as one job array; locally stay until they end. Returns 1 when a local run failed."""
    jobs = [sweep.job(run) for run in runs]
    print(f"sweep    {sweep.folder}: {len(sweep.runs)} runs, of which {len(runs)} to submit", flush=True)
    if not runs:
        print(status_table(sweep.states()))
        return 0
    print(describe(profile, jobs, sweep.jobs_folder), flush=True)
    name = f"ace-{sweep.folder.name}"
    if dry_run:
        if profile.kind == "slurm":
            print(f"\n{sbatch_text(profile, name, sweep.jobs_folder, len(jobs))}")
        return 0
    sweep.note_submission(profile, runs)
    if profile.kind == "local":
        return run_locally(sweep, runs, profile)
    for run, job_id in zip(runs, submit(profile, jobs, name, sweep.jobs_folder), strict=True):
        sweep.note_job(run, job_id, "slurm")
        print(f"job      {job_id}  {run.id}")
    print(f"next     python launchers/sweep.py status sweep={sweep.folder.name}", flush=True)
    return 0


def run_locally(sweep: Sweep, runs: Sequence[Run], profile: ClusterConfig) -> int:
    """Run on this machine, `profile.parallel` at a time, saying what starts and how it ends."""

    def started(index: int, job_id: str) -> None:
        """A run was started: note its process, so that `status` finds it."""
        sweep.note_job(runs[index], job_id, "local")
        print(f"started  {runs[index].id} (process {job_id})", flush=True)

    def ended(index: int) -> None:
        """A run ended: say in which state its folder is."""
        state = sweep.states()[runs[index].id]
        print(f"{state.state:<8} {runs[index].id} {state.detail}".rstrip(), flush=True)

    try:
        LocalQueue(profile, sweep.jobs_folder).run([sweep.job(run) for run in runs], started, ended)
    except KeyboardInterrupt:
        print("ended by Ctrl-C; the same command continues", flush=True)
    states = sweep.states()
    return int(any(states[run.id].state != "finished" for run in runs))


def status_table(states: dict[str, State]) -> str:
    """One line a run, and the sum of each state."""
    width = max(map(len, states), default=0)
    lines = [f"{name.ljust(width)}  {state.state:<10}  {state.detail}".rstrip() for name, state in states.items()]
    counts = Counter(state.state for state in states.values())
    total = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return "\n".join([*lines, f"{len(states)} runs: {total}"])
