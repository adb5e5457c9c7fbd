"""The list of run folders: what each is, how far it came, what it scored, and in which settings they differ."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import Any

from ace_dist.config import Config, read_config
from ace_dist.evaluate.run_files import read_results
from ace_dist.evaluate.runs import aligned_lines, score_pair
from ace_dist.train.checkpoint import CheckpointFolder
from ace_dist.train.run_lock import RunLock
from ace_dist.utils.errors import RunError, UserError
from ace_dist.utils.reading import read_object

HEADER = ("", "folder", "method", "dataset", "seed", "steps", "state", "base", "novel", "HM", "SRT", "commit")
OWN = ("name", "run")  # settings that every run has its own of


@dataclass(frozen=True)
class ListedRun:
    """One run folder. `results` is None until it is finished."""

    folder: Path
    config: Config
    steps: int  # that its newest checkpoint holds
    state: str
    results: dict[str, Any] | None
    commit: str


def find_runs(pattern: str) -> tuple[list[ListedRun], list[str]]:
    """The runs among the folders that a pattern such as `runs/*` matches, and a sentence for each folder that is none.

    Raises `RunError` when nothing matches.
    """
    folders = [Path(path) for path in sorted(glob(str(Path(pattern).expanduser()))) if Path(path).is_dir()]
    if not folders:
        raise RunError(f"runs={pattern} matches no folder; quote the pattern: runs='runs/*'")
    runs, others = [], []
    for folder in folders:
        try:
            runs.append(read_run_state(folder))
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            others.append(f"{folder} is not listed: {' '.join(str(error).split())}")
    return runs, others


def read_run_state(folder: Path) -> ListedRun:
    """One run folder. Raises what the reader of a file in it that is missing or damaged raises."""
    config = read_config(folder)
    environment = folder / "environment.json"
    if not environment.is_file():
        raise UserError(f"{environment} does not exist: `ace train` writes it when a run starts")
    git = read_object(environment, UserError)["git"]
    commit = (git["commit"] or "unknown")[:8] + "+" * bool(git["modified"])
    checkpoints = CheckpointFolder(folder / "checkpoints", keep=1).complete()
    steps = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    if (folder / "results.json").is_file():
        return ListedRun(folder, config, steps, "finished", read_results(folder), commit)
    owner = RunLock(folder).owner()
    state = f"running on {owner['host']}" if owner else f"stopped at step {steps}"
    return ListedRun(folder, config, steps, state, None, commit)


def runs_table(runs: Sequence[ListedRun]) -> str:
    """One line a run, scores as accuracy / macro F1 in percent, `+` after a commit that had been changed."""
    lines: list[Sequence[str]] = [HEADER]
    for number, run in enumerate(runs, start=1):
        config, results = run.config, run.results or {}
        names = [str(number), str(run.folder), config.method.name, config.dataset.name, str(config.seed)]
        scores = [score_pair(results.get(part)) for part in ("base", "novel", "hm")]
        lines.append([*names, str(run.steps), run.state, *scores, score_pair(results.get("srt"), "_mean"), run.commit])
    return "\n".join(aligned_lines(lines))


def differing_settings(runs: Sequence[ListedRun]) -> list[str]:
    """A line for each setting that is not the same in all runs: each value, and the numbers of the runs with it."""
    settings = [dict(dotted(asdict(run.config))) for run in runs]
    lines = []
    for key in dict.fromkeys(key for one in settings for key in one):
        values: dict[str, list[str]] = {}
        for number, one in enumerate(settings, start=1):
            values.setdefault(str(one.get(key, "not set")), []).append(str(number))
        if len(values) > 1 and key not in OWN:
            lines.append(f"{key}: " + "; ".join(f"{value} ({', '.join(who)})" for value, who in values.items()))
    return lines


def dotted(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
