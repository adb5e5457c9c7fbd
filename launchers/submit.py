"""Submit any launcher as a job: `python launchers/submit.py cluster=slurm launcher=train experiment=NAME key=value`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.cluster.profiles import split_settings
from ace_dist.cluster.single import make_job, run_here, status_of, stay
from ace_dist.cluster.submission import describe, log_path, queue, sbatch_text, submit
from ace_dist.config import run_launcher


@dataclass
class Settings:
    """What belongs to submitting; `cluster=...` picks the profile, everything else goes to the launcher."""

    launcher: str = "train"
    folder: str = "runs/jobs"  # logs, journals and submitit's files; the nodes must see it
    dry_run: bool = False  # print what would be submitted, and stop
    wait: bool = False  # stay with a SLURM job until its end; a local one is always stayed with


def main(argv: Sequence[str]) -> int:
    """Say what is submitted, submit it; returns 0, or the status of the job that was waited for."""
    settings, profile, rest = split_settings(argv, Settings)
    folder = Path(settings.folder)
    job = make_job(settings.launcher, rest, profile, folder)
    print(describe(profile, [job], folder), flush=True)
    if settings.dry_run:
        if profile.kind == "slurm":
            print(f"\n{sbatch_text(profile, f'ace-{settings.launcher}', folder)}")
        return 0
    if profile.kind == "local":
        run_here(job, profile, folder)
        return status_of(job)
    (job_id,) = submit(profile, [job], f"ace-{settings.launcher}", folder)
    log = log_path(folder, job_id)
    print(f"job      {job_id}; its first rank prints to {log}, cancel it with: scancel {job_id}", flush=True)
    if not settings.wait:
        return 0
    stay(log, lambda: not queue("slurm", [job_id]))
    return status_of(job)


if __name__ == "__main__":
    run_launcher(lambda argv: sys.exit(main(argv)))
