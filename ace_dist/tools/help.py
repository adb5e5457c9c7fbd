"""What `ace NAME --help` shows besides a command's own settings: its examples, and the usual settings of a run."""

import shlex
from collections.abc import Callable, Sequence

from ace_dist.config import Config, assets_dir
from ace_dist.config.settings import documented_fields

SPLIT = ("dataset.novel", "dataset.novel_share", "dataset.test_groups", "dataset.left_out_groups", "dataset.fold")
READ = ("dataset.annotations", "dataset.root", "dataset.classes", "dataset.allow_quarantine")
BUILT = (
    "dataset.shards", "dataset.encoding.codec", "dataset.encoding.short_side", "dataset.clip.seconds", "dataset.pad",
    "dataset.workers", "dataset.task", "dataset.tasks",
)  # fmt: skip
TRAINED = (
    "run", "seed", "init_from", "dataset.shards", "dataset.synonyms", *SPLIT, "loader.backend", "loader.threads",
    "training.device", "training.epochs", "training.max_steps", "training.batch_size", "training.accumulation",
    "training.lr_video", "training.lr_text", "training.save_every_steps", "evaluation.every_steps",
    "evaluation.validation_groups",
)  # fmt: skip
USUAL = {  # settings of a run that a command reads
    "demo": ("seed", "dataset.shards", "dataset.workers", *(key for key in TRAINED if key.startswith("training."))),
    "own": (*TRAINED, "dataset.allow_quarantine", "dataset.workers"),
    "train": TRAINED,
    "annotations": (*READ, *SPLIT),
    "shards build": (*READ, *BUILT),
    "shards verify": ("dataset.shards", "dataset.synonyms", "dataset.workers", "loader.backend", "training.device"),
    "estimate": TRAINED,
    "preflight": TRAINED,
    "submit": TRAINED,
    "sweep run": TRAINED[1:],
}


def examples(name: str, command_of: Callable[[Sequence[str]], str]) -> list[str]:
    """The lines of `assets/examples.txt` that show the command; `command_of` names that of a line's words."""
    lines = (assets_dir() / "examples.txt").read_text(encoding="utf-8").splitlines()
    shown = [line for line in lines if line.startswith("ace ")]
    return [line for line in shown if command_of(shlex.split(line, comments=True)[1:]) == name]


def usual_settings(name: str) -> list[str]:
    """A line each: name, default of the code and meaning of the settings of a run that the command reads."""
    rows = {row[0]: row for row in documented_fields(Config)}
    return [f"{key}={default}   {note}" for key, default, note in map(rows.__getitem__, USUAL.get(name, ()))]
