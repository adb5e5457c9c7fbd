"""Settings that several commands share, and the reading of those of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ace_dist.config import Config, load_config, split_settings
from ace_dist.utils.errors import ConfigError

RunWords = Callable[[Sequence[str]], int]  # runs the command that words ask for; returns its exit status


def load_run(argv: Sequence[str]) -> Config:
    """The configuration of a run, with the settings of its rendered world checked too, if it has one."""
    config = load_config(argv)
    from ace_dist.worlds import check_world

    check_world(config.dataset)
    return config


@dataclass
class RankSettings:
    ranks: int | None = None  # processes that `ace` starts on this machine; null: one a GPU, two without a GPU


def is_rank(environ: Mapping[str, str]) -> bool:
    """Whether a launcher, submitit or `srun` with several tasks started this process as one rank of a command.

    An interactive shell on a node (`srun --pty bash`, `salloc`) is a step of one task.
    """
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return "RANK" in environ or "SUBMITIT_EXECUTOR" in environ or tasks > 1


def without_ranks(name: str, words: list[str]) -> list[str]:
    """The words of one rank without `ranks=N`, which `ace` starts. Raises `ConfigError` when N is another number."""
    own, others = split_settings(words, RankSettings)
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if own.ranks not in (None, started) and "--cfg" not in words:
        raise ConfigError(
            f"ranks={own.ranks}: `ace` starts ranks, and here {started} was started without it; write "
            f"`ace {name} ...`, or leave ranks= out and give the number to your launcher"
        )
    return others


@dataclass
class NoSettings:
    pass


@dataclass
class ClipsOfRun:
    shards: str | None = None  # folder of the shards; null: where the run read them


@dataclass
class WeightsOfRun:
    interpolate: float | None = None  # weights at this share of the way from before training to after; null: the run's
