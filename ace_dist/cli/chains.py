"""Commands that run others, one after the other, from data to the report: `ace demo`, `ace own`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass

from ace_dist.cli.settings import RankSettings, RunWords, load_run
from ace_dist.config import split_settings
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.extras import require

TRAINS = "deepspeed"  # asked for first: without it the last stage would end what the others took minutes for


@dataclass
class DemoSettings(RankSettings):
    run: str = "runs/demo"  # the run folder of ACE; the other one's is RUN-procvlr


def demo(argv: list[str], start: RunWords) -> int:
    """Build the demo's data, train a method without synonyms and ACE, and compare them: `ace demo [key=value ...]`.

    Settings go to the build and to both trainings, such as `training.max_steps=20`. A run that is there goes on.
    """
    own, settings = split_settings(argv, DemoSettings)
    load_run(["experiment=demo", *settings])  # says what is wrong before anything is made; with --help it ends here
    if fixed := [word for word in settings if word.startswith(("experiment=", "method="))]:
        raise ConfigError(f"{fixed[0]}: the demo compares two methods in its own world; `ace train` takes any")
    require(TRAINS)
    ranks = [] if own.ranks is None else [f"ranks={own.ranks}"]
    other = f"{own.run}-procvlr"
    for words in (
        ["shards", "experiment=demo", *settings],
        ["train", "experiment=demo", "method=procvlr", f"run={other}", *settings, *ranks],
        ["train", "experiment=demo", f"run={own.run}", *settings, *ranks],
        ["report", f"run={own.run}", f"compare=[{other}]"],
    ):
        print(f"$ ace {shlex.join(words)}", flush=True)
        if status := start(words):
            return status
    return 0


def own(argv: list[str], start: RunWords) -> int:
    """Train on your own videos, from annotations to the report: `ace own annotations.csv [key=value ...]`.

    Takes a CSV file, an export of ELAN, CVAT, Label Studio or VIA, a folder per label, or a folder in MS-TCN's layout.
    Runs and prints the single commands: the split, synonym trees, shards, a dry run that says how long the training
    takes, the training with its test and report. Settings go to all of them. Given again, it goes on.
    """
    from ace_dist.tools.own import OwnSettings, named_first, stages, training_words

    settings, others = split_settings(named_first(argv), OwnSettings)
    ranks, rest = split_settings(others, RankSettings)
    config = load_run(training_words(settings, rest))  # with --help it ends here
    require(TRAINS)
    for words in stages(settings, rest, config, [f"ranks={ranks.ranks}"] if ranks.ranks else []):
        print(f"\n$ ace {shlex.join(words)}", flush=True)
        if status := start(words):
            print("stopped; the same command goes on", file=sys.stderr)
            return status
    return 0
