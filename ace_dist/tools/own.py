"""Own videos from annotations to a report: the single commands that `ace own` runs one after the other.

Each command goes on where it was, so that `ace own` given again does too. What a person may have edited, the trees, is
kept.
"""

import contextlib
import io
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from ace_dist.config import Config
from ace_dist.data.task import load_task
from ace_dist.evaluate.caveats import FEW_STEPS, enough_epochs
from ace_dist.tools.synonyms.build import BuildConfig, build
from ace_dist.train.schedule import total_steps
from ace_dist.utils.errors import LabelError
from ace_dist.utils.files import private_folder

SAY_HOW_LONG = {"experiment", "training.epochs", "training.max_steps"}  # settings with which a user does
CHILDREN = range(6, 1, -1)  # M of the trees, the verb itself counted: the largest that WordNet has for every verb


@dataclass
class OwnSettings:
    annotations: str = MISSING  # a CSV file, an export of an annotation tool, or a folder: see docs/data.md
    output: str = "own"  # folder of everything that is made


def named_first(argv: Sequence[str]) -> list[str]:
    """`FILE key=value ...` as `annotations=FILE key=value ...`."""
    if argv and not argv[0].startswith("-") and ("=" not in argv[0] or Path(argv[0]).exists()):
        return [f"annotations={argv[0]}", *argv[1:]]
    return list(argv)


def training_words(own: OwnSettings, settings: Sequence[str]) -> list[str]:
    """The settings of the shards and of the training: those of the user, and ours where the user has none.

    `dataset.columns` is not among them: it is of the user's file, and the checked one has our columns.
    """
    settings = [word for word in settings if not word.lstrip("+").startswith("dataset.columns")]
    folder, given = Path(own.output), {word.partition("=")[0] for word in settings}
    ours = {
        "experiment": "own",
        "dataset.annotations": folder / "annotations.csv",
        "dataset.shards": folder / "shards",
        "dataset.synonyms": folder / "trees.json",
        "run": folder / "run",
    }
    return [*(f"{key}={value}" for key, value in ours.items() if key not in given), *settings]


def stages(own: OwnSettings, settings: Sequence[str], config: Config, ranks: Sequence[str]) -> Iterator[list[str]]:
    """The commands, each decided when the one before has ended. Raises `UserError` before one that cannot work.

    `config` is the configuration of `training_words`.
    """
    words = training_words(own, settings)
    table, trees = str(config.dataset.annotations), str(config.dataset.synonyms)
    yield ["annotations", *source(own.annotations), *split_words(settings), f"output={table}"]
    if Path(trees).is_file():
        print(f"synonym trees: {trees} is there and is kept", flush=True)
    else:
        yield ["synonyms", "build", *tree_words(table, trees)]
    # Within a SLURM array a build is one part of several, and the next stage needs them all.
    parts = [] if any(word.lstrip("+").startswith("dataset.tasks=") for word in settings) else ["dataset.tasks=1"]
    yield ["shards", "build", *words, *parts]
    words += [*length_words(config, settings), *ranks]
    if (Path(config.run) / "config.yaml").is_file():
        print(f"dry run: {config.run} has begun and needs none", flush=True)
    else:
        yield ["train", *words, "dry_run=true"]
    yield ["train", *words]
    labels = "'[LABEL, LABEL, ...]'"
    run = shlex.quote(config.run)
    print(f"next: ace classify run={run} video=FILE actions={labels}")
    print(f"      ace segment run={run} video=FILE actions={labels} output=timeline.html", flush=True)


def source(annotations: str) -> list[str]:
    """What the annotations are, as settings of a data set."""
    if (Path(annotations) / "groundTruth").is_dir():
        return ["dataset=mstcn", f"dataset.root={annotations}"]
    return ["dataset=csv", f"dataset.annotations={annotations}"]


def split_words(settings: Sequence[str]) -> list[str]:
    """Those of the settings that say how annotations are read and split."""
    others = ("dataset.annotations=", "dataset.shards=", "dataset.synonyms=")
    return [word for word in settings if word.startswith("dataset.") and not word.startswith(others)]


def length_words(config: Config, settings: Sequence[str]) -> list[str]:
    """As many epochs as make `FEW_STEPS` steps where few clips would make fewer; nothing where the user says how long.

    The default's 15 epochs of 18 clips are 17 steps, after which a model is where it was: at chance.
    """
    if {word.partition("=")[0] for word in settings} & SAY_HOW_LONG:
        return []
    training, clips = config.training, len(load_task(config).training_clips()[0])
    steps = total_steps(training, clips)
    if not 0 < steps < FEW_STEPS:
        return []
    epochs = enough_epochs(training.batch_size / clips)
    print(
        f"training.epochs={epochs}: {training.epochs:g} epochs of {clips} clips are {steps} steps, and fewer than "
        f"{FEW_STEPS} teach little; a number of yours stands",
        flush=True,
    )
    return [f"training.epochs={epochs}"]


def tree_words(table: str, trees: str) -> list[str]:
    """Settings of a build from WordNet that lacks no node. Raises `LabelError` when there is none such."""
    words = {"actions": table, "output": trees, "source": "wordnet"}
    missing: dict[str, str] = {}
    unseen = io.StringIO()  # the progress of a search, which is a bar on a terminal and lines elsewhere
    with (
        private_folder("ace-trees-") as folder,
        contextlib.redirect_stderr(unseen),
        contextlib.redirect_stdout(unseen),
    ):
        for children in CHILDREN:
            words["children"] = str(children)
            config = BuildConfig(actions=table, output=str(folder / "t.json"), source="wordnet", children=children)
            result = build(config, say=lambda line: None)
            missing = result.missing if result else {}
            if not missing:
                return [f"{key}={value}" for key, value in words.items()]
    node, reason = next(iter(missing.items()))
    raise LabelError(
        f"{reason} ({len(missing)} nodes such as {node!r}); write another verb for it in the annotations, or make "
        f"{trees} yourself (`ace synonyms --help`), and give the same command again"
    )
