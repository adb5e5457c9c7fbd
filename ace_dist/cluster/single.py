"""Owns one job: checking its settings before it waits in a queue, and staying with it until its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ace_dist.cluster.jobs import Job, read_journal
from ace_dist.cluster.profiles import ClusterConfig
from ace_dist.cluster.submission import LocalQueue, log_path, refuse_secrets
from ace_dist.config import Config, config_dir, did_you_mean, load_config
from ace_dist.utils.errors import ConfigError

COMPOSED = ("train", "build_shards", "preflight")  # launchers whose settings are those of `Config`


def make_job(launcher: str, settings: Sequence[str], profile: ClusterConfig, folder: Path) -> Job:
    """A job of `launchers/<launcher>.py`, with its settings checked here and not after a night in the queue.

    Raises `ConfigError` for a launcher or setting that does not exist, a secret in a setting, or a batch size that the
    job's ranks cannot share.
    """
    scripts = config_dir().parent / "launchers"
    known = sorted(path.stem for path in scripts.glob("*.py") if path.stem not in ("submit", "sweep"))
    if launcher not in known:
        raise ConfigError(
            f"launcher={launcher} is not in {scripts}; there are {', '.join(known)}{did_you_mean(launcher, known)}"
        )
    refuse_secrets(profile, settings)
    if launcher in COMPOSED:
        config = load_config(settings)
        if launcher == "train":
            check_training(config, profile)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
    return Job(str(scripts / f"{launcher}.py"), tuple(settings), str((folder / f"{stamp}-{launcher}.jsonl").absolute()))


def check_training(config: Config, profile: ClusterConfig) -> None:
    """Raises `UserError` when the batch cannot be shared by the profile's ranks."""
    from ace_dist.train.engine import micro_batch_size

    micro_batch_size(config, profile.nodes * profile.tasks_per_node)


def run_here(job: Job, profile: ClusterConfig, folder: Path) -> None:
    """Run a job on this machine and print what its first rank prints. Ctrl-C has it save and end."""
    local = LocalQueue(profile, folder)
    started = local.start(job)
    try:
        stay(log_path(folder, started.job_id), started.done)
    except KeyboardInterrupt:
        local.stop()
        events = read_journal(Path(job.journal))
        print(f"\nended by Ctrl-C: {events[-1].event if events else 'before it started'}; log: {folder}", flush=True)


def stay(log: Path, ended: Callable[[], bool], every_s: float = 1.0) -> None:
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
        time.sleep(every_s)


def status_of(job: Job) -> int:
    """Exit status for a job that has ended: 0 when it finished, 75 when it stopped early and saved, else 1."""
    events = read_journal(Path(job.journal))
    start = max((event.start for event in events), default=0)
    kinds = {event.event for event in events if event.start == start}
    return next((status for kind, status in (("failed", 1), ("finished", 0), ("stopped", 75)) if kind in kinds), 1)
