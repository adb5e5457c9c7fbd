"""Owns cluster profiles: the YAML files of `configs/cluster` that say where jobs run and what each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ace_dist.config import config_dir, did_you_mean, help_asked, resolve_path, typed_settings
from ace_dist.utils.errors import ConfigError

Settings = TypeVar("Settings")


@dataclass
class ClusterConfig:
    """Where a job runs and what it gets. `null` leaves a value to the cluster's own default."""

    kind: str = MISSING  # local | slurm
    nodes: int = 1
    tasks_per_node: int = 1  # ranks of a node; one for each of its GPUs
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    mem_gb: float | None = None  # of a node
    time_min: int = 60  # a job that needs longer is requeued and continues
    signal_lead_s: int = 120  # before its time is up a job is told to save
    parallel: int = 4  # runs of a sweep at the same time
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None  # nodes to avoid, in SLURM's notation
    sbatch: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch, such as {reservation: NAME}
    setup: list[str] = field(default_factory=list)  # shell lines before the ranks start, such as `module load cuda`
    python: str | None = None  # interpreter on the nodes; null: the one that submits
    max_timeouts: int = 100  # requeues of a job whose time was up
    crash_requeues: int = 2  # requeues of a job that was killed by a signal (out of memory, a broken GPU)


def split_settings(argv: Sequence[str], schema: type[Settings]) -> tuple[Settings, ClusterConfig, list[str]]:
    """Divide `key=value` arguments of a cluster launcher: its own (those of `schema`), the profile, and the job's."""
    names = {entry.name for entry in fields(schema)}  # type: ignore[arg-type]
    own, cluster, rest = list[str](), list[str](), list[str]()
    for arg in argv:
        key = arg.partition("=")[0]
        (own if key in names or help_asked([arg]) else cluster if key.split(".")[0] == "cluster" else rest).append(arg)
    return typed_settings(own, schema), load_profile(cluster), rest


def load_profile(settings: Sequence[str]) -> ClusterConfig:
    """The profile `cluster=NAME` (a file of configs/cluster) or `cluster=FILE.yaml`, with `cluster.key=value` applied.

    Raises `ConfigError` with the nearest existing name of a profile or key that does not exist.
    """
    names = [arg.partition("=")[2] for arg in settings if arg.startswith("cluster=")]
    path = profile_path(names[-1] if names else "local")
    changes = [arg.removeprefix("cluster.") for arg in settings if arg.startswith("cluster.")]
    known = [entry.name for entry in fields(ClusterConfig)]
    for change in changes:
        key = change.split("=")[0].split(".")[0]
        if key not in known:
            raise ConfigError(
                f"unknown setting 'cluster.{key}'{did_you_mean(key, known)}; there are {', '.join(known)}"
            )
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(ClusterConfig), OmegaConf.load(path), OmegaConf.from_dotlist(changes)
        )
        profile = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(f"{path} with {' '.join(settings)}: {' '.join(str(error).split())}") from error
    assert isinstance(profile, ClusterConfig)
    check(profile, path)
    return profile


def profile_path(name: str) -> Path:
    """The file of a profile: a path that ends in .yaml, or a name in configs/cluster."""
    if name.endswith((".yaml", ".yml")):
        path = resolve_path(name)
        if not path.is_file():
            raise ConfigError(f"cluster={name}: there is no such file")
        return path
    folder = config_dir() / "cluster"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"cluster={name} does not exist in configs/cluster/; there are {', '.join(known)}"
            f"{did_you_mean(name, known)}; a profile of your own is cluster=FILE.yaml"
        )
    return folder / f"{name}.yaml"


def check(profile: ClusterConfig, path: Path) -> None:
    """What the types cannot say."""
    if profile.kind not in ("local", "slurm"):
        raise ConfigError(f"{path}: kind={profile.kind} is not one of local, slurm")
    for key in ("nodes", "tasks_per_node", "time_min", "parallel"):
        if getattr(profile, key) < 1:
            raise ConfigError(f"cluster.{key}={getattr(profile, key)} must be at least 1")
    if profile.kind == "local" and profile.nodes > 1:
        raise ConfigError(f"cluster.nodes={profile.nodes}: cluster.kind=local is this machine alone; use kind=slurm")
    if profile.kind == "local" and profile.setup:
        raise ConfigError("cluster.setup is for cluster.kind=slurm; locally the job has the environment of this shell")
    if profile.gpus_per_node and profile.tasks_per_node != profile.gpus_per_node:
        raise ConfigError(
            f"cluster.tasks_per_node={profile.tasks_per_node} with cluster.gpus_per_node={profile.gpus_per_node}: "
            f"each rank drives one GPU, so make them equal"
        )
    if profile.kind == "slurm" and profile.signal_lead_s >= 60 * profile.time_min:
        raise ConfigError(
            f"cluster.signal_lead_s={profile.signal_lead_s} leaves nothing of cluster.time_min={profile.time_min}"
        )
