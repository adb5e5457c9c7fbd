"""Cluster profiles: the YAML files of `configs/cluster` that say where jobs run and what each of them gets."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig
from omegaconf.errors import OmegaConfBaseException

from ace_dist.config import choices, config_dir, did_you_mean, help_asked, resolve_path, split_settings
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.reading import read_yaml
from ace_dist.utils.secrets import STRONG_NAMES, WEAK_NAMES


@dataclass
class ClusterConfig:
    """Where a job runs and what it gets. `null` leaves a value to the cluster's own default."""

    kind: str = MISSING  # local | slurm
    nodes: int = 1  # machines of a job
    tasks_per_node: int = 1  # ranks of a node; one for each of its GPUs
    gpus_per_node: int = 0  # 0: a job without GPUs, on the CPU
    cpus_per_task: int | None = None  # cores of a rank
    mem_gb: float | None = None  # of a node
    time_min: int = 60  # a job that needs longer is requeued and continues
    signal_lead_s: int = 120  # before its time is up a job is told to save
    parallel: int = 4  # runs of a sweep at the same time
    partition: str | None = None  # SLURM's
    account: str | None = None  # SLURM's, to which the time is charged
    qos: str | None = None  # SLURM's quality of service
    constraint: str | None = None  # features that the nodes must have, in SLURM's notation
    exclude: str | None = None  # nodes to avoid, in SLURM's notation
    sbatch: dict[str, Any] = field(default_factory=dict)  # any other option of sbatch, such as {reservation: NAME}
    setup: list[str] = field(default_factory=list)  # shell lines before the ranks start, such as `module load cuda`
    python: str | None = None  # interpreter on the nodes; null: the one that submits
    environment: list[str] = field(default_factory=list)  # more variables of this shell for the job; FOO_* is several
    max_timeouts: int = 100  # requeues of a job whose time was up
    crash_requeues: int = 2  # requeues of a job that was killed by a signal (out of memory, a broken GPU)


def split_profile(argv: Sequence[str], default: ClusterConfig | None = None) -> tuple[ClusterConfig, list[str]]:
    """The profile `cluster=NAME` (a file of configs/cluster) or `cluster=FILE.yaml`, with `cluster.key=value` applied.

    Without `cluster=` it is `default`, and without that `cluster=local`.
    Returns the other arguments too; `--help` prints the settings and exits. Raises `ConfigError` with the nearest
    existing name of a profile or key that does not exist.
    """
    names = [arg.partition("=")[2] for arg in argv if arg.startswith("cluster=")]
    rest = [arg for arg in argv if not arg.startswith("cluster=")]
    path = profile_path(names[-1] if names else "local")
    if default and not names:
        base = json.loads(json.dumps(asdict(default)).replace("${", r"\\${"))  # a shell's variable, and no setting's
    else:
        base = read_yaml(path, ConfigError)
    if help_asked(argv):
        print(f"  cluster=NAME   one of {', '.join(choices('cluster'))}, or FILE.yaml")
    try:
        profile, rest = split_settings(rest, ClusterConfig, "cluster.", DictConfig(base))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if help_asked(argv):
        raise SystemExit(0)
    check(profile, path)
    return profile, rest


def profile_path(name: str) -> Path:
    """The file of a profile: a path that ends in .yaml, or a name in configs/cluster."""
    if name.endswith((".yaml", ".yml")):
        path = resolve_path(name)
        if not path.is_file():
            raise ConfigError(f"cluster={name}: there is no such file")
        return path
    if name not in (names := choices("cluster")):
        raise ConfigError(
            f"cluster={name} does not exist in configs/cluster/; there are {', '.join(names)}"
            f"{did_you_mean(name, names)}; a profile of your own is cluster=FILE.yaml"
        )
    return config_dir() / "cluster" / f"{name}.yaml"


def secrets_belong(profile: ClusterConfig) -> str:
    """Where a job may get a secret from."""
    if profile.kind == "local":
        return "have the tool keep it in a file of its own, as `wandb login` does"
    return "keep it in a file that only you can read and load it on the node: cluster.setup='[source ~/.keys]'"


def check(profile: ClusterConfig, path: Path) -> None:
    """What the types cannot say."""
    refuse_control_characters({f"cluster.{key}": value for key, value in vars(profile).items()})
    if hidden := [name for name in profile.environment if STRONG_NAMES.search(name) or WEAK_NAMES.search(name)]:
        raise ConfigError(
            f"cluster.environment lists {hidden[0]}, the name of a secret, and what a job sees is kept in files; "
            f"{secrets_belong(profile)}"
        )
    if profile.kind not in ("local", "slurm"):
        raise ConfigError(f"{path}: kind={profile.kind} is not one of local, slurm")
    for key in ("nodes", "tasks_per_node", "time_min", "parallel"):
        if getattr(profile, key) < 1:
            raise ConfigError(f"cluster.{key}={getattr(profile, key)} must be at least 1")
    if profile.kind == "local" and profile.nodes > 1:
        raise ConfigError(f"cluster.nodes={profile.nodes}: cluster.kind=local is this machine alone; use kind=slurm")
    if profile.kind == "local" and profile.setup:
        raise ConfigError(
            "cluster.setup is for cluster.kind=slurm; locally a job sees variables of this shell: cluster.environment"
        )
    if profile.gpus_per_node and profile.tasks_per_node != profile.gpus_per_node:
        raise ConfigError(
            f"cluster.tasks_per_node={profile.tasks_per_node} with cluster.gpus_per_node={profile.gpus_per_node}: "
            f"each rank drives one GPU, so make them equal"
        )
    if profile.kind == "slurm" and profile.signal_lead_s >= 60 * profile.time_min:
        raise ConfigError(
            f"cluster.signal_lead_s={profile.signal_lead_s} leaves nothing of cluster.time_min={profile.time_min}"
        )


def refuse_control_characters(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` naming a setting with a new line or the like: it would become a line of the job's file."""
    for name, value in settings.items():
        texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for text in texts:
            if isinstance(text, str) and re.search(r"[\x00-\x1f\x7f\x85\u2028\u2029]", text):
                raise ConfigError(f"{name}={text!r} holds a control character, such as a new line; write it without")
