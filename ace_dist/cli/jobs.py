"""Any command as a job: `ace submit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.cli.settings import RunWords, load_run
from ace_dist.cluster.profiles import split_profile
from ace_dist.config import split_settings
from ace_dist.utils.errors import ConfigError

FindCommand = Callable[[Sequence[str]], tuple[str, list[str]]]  # words -> name of the command, the words after it


@dataclass
class SubmitSettings:
    launcher: str = "train"  # the command that is submitted; what is not a setting of submitting goes to it
    folder: str = "runs/jobs"  # logs, journals and submitit's files; the nodes must see it
    dry_run: bool = False  # print what would be submitted, and stop
    wait: bool = False  # stay with a SLURM job until its end; a local one is always stayed with


def submit(argv: list[str], find_command: FindCommand, execute: RunWords) -> int:
    """Submit any command as a job: `ace submit cluster=slurm launcher=train experiment=NAME key=value`.

    Exits with 0, and after a job that was waited for with 0 when it finished, 75 when it stopped and saved, else 1.
    """
    settings, others = split_settings(argv, SubmitSettings)
    profile, rest = split_profile(others)
    from ace_dist.cluster import submit as jobs

    name, words = find_command([*settings.launcher.split(), *rest])
    if name.split()[0] in ("submit", "sweep", "demo", "own"):
        raise ConfigError(f"launcher={settings.launcher} starts others itself: start it as it is")
    jobs.check_job(load_run, name, words, profile)
    jobs.check_gpus(profile, 1)
    folder = Path(settings.folder)
    job = jobs.build_job(execute, settings.launcher, rest, folder)
    print(jobs.describe(profile, [job], folder), flush=True)
    if settings.dry_run:
        if profile.kind == "slurm":
            print(f"\n{jobs.sbatch_text(profile, f'ace-{settings.launcher}', folder)}")
        return 0
    if profile.kind == "local":
        jobs.run_here(job, profile, folder)
        return jobs.exit_status(job)
    (job_id,) = jobs.submit(profile, [job], f"ace-{settings.launcher}", folder)
    log = jobs.log_path(folder, job_id)
    print(f"job      {job_id}; its first rank prints to {log}, cancel it with: scancel {job_id}", flush=True)
    if not settings.wait:
        return 0
    jobs.stay(log, lambda: jobs.has_left(job_id))
    return jobs.exit_status(job)
