"""The console command `ace`, `python -m ace_dist` and the launchers: finding a command, running it, its help.

`COMMANDS`, at the end, is the one table of all three. `ace` starts the ranks of a training itself; the others are one
rank each, for DeepSpeed, SLURM and `ace` to start. A command that runs others is given what it needs for that in the
table, so that no command imports this file.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from functools import partial
from io import StringIO

from ace_dist import __version__
from ace_dist.cli.chains import demo, own
from ace_dist.cli.data import build_shards, convert_ata, split_annotations, verify_shards
from ace_dist.cli.failures import exit_status
from ace_dist.cli.jobs import submit
from ace_dist.cli.machine import completion, config_get, config_list, doctor
from ace_dist.cli.reports import report_figures, report_grid, report_run, report_runs, report_sweep
from ace_dist.cli.settings import RankSettings, RunWords, is_rank, load_run, without_ranks
from ace_dist.cli.sweeps import sweep_collect, sweep_retry, sweep_run, sweep_status
from ace_dist.cli.synonyms import build_synonyms, inspect_synonyms, synonym_senses
from ace_dist.cli.timelines import calibrate, evaluate_timelines, segment, watch
from ace_dist.cli.trained_runs import classify, explore, export
from ace_dist.cli.training import (
    EvaluateSettings,
    TrainSettings,
    estimate,
    evaluate,
    evaluated_config,
    preflight,
    train,
)
from ace_dist.cli.weights import get_weights, import_weights, models, pretrain_tabletop
from ace_dist.cli.words import take_umask, take_verbose, with_home
from ace_dist.config import did_you_mean, help_asked, split_settings
from ace_dist.utils.errors import ConfigError, UserError
from ace_dist.utils.extras import missing_packages_named, require
from ace_dist.utils.processes import end_with_launcher

RANKED = ("train", "evaluate", "preflight")  # `ace` starts their ranks
DEMO_BY_DEFAULT = (*RANKED, "shards build", "shards verify", "estimate", "submit", "weights pretrain")


def ace() -> int:
    """The console command: as `main`, but it starts the ranks of a training, and runs nothing without settings."""
    return main(run=start)


def start(argv: Sequence[str]) -> int:
    """Run a command; one of `RANKED` in as many processes as suit this machine, or as `ranks=N` says."""
    argv = take_verbose(take_umask(with_home(argv)))
    if not argv or argv[0].startswith("-"):
        return execute(argv)
    name, rest = find_command(argv)
    if not rest and name in DEMO_BY_DEFAULT:
        return execute([*name.split(), "--help"])
    if name not in RANKED or help_asked(rest) or "--cfg" in rest or is_rank(os.environ):
        return execute(argv)
    own, settings = split_settings(rest, RankSettings)
    from ace_dist.cluster.ranks import default_ranks, run_ranks
    from ace_dist.data.run_inputs import check_start

    require("deepspeed")  # said once, and not by each rank
    if name == "evaluate":
        config = evaluated_config(split_settings(settings, EvaluateSettings)[0])
    else:
        config = load_run(split_settings(settings, TrainSettings)[1])
        if name == "train":
            check_start(config)
    return run_ranks([name, *settings], own.ranks or default_ranks(config))


def main(*words: str, run: RunWords | None = None) -> int:
    """Run the command of `words` and the program's own arguments; returns the exit status."""
    return exit_status(run or execute, [*words, *sys.argv[1:]])


def execute(argv: Sequence[str]) -> int:
    """Run `NAME [SUBCOMMAND] key=value ...`; returns its exit status. Raises `UserError` for what a user can mend.

    `--local_rank`, which DeepSpeed's launcher puts before the name with `--module ace_dist`, is ignored. `umask=077`
    and `verbose=true` are of every command.
    """
    end_with_launcher(os.environ)
    argv = [word for word in argv if not word.replace("_", "-").lstrip("-").startswith("local-rank")]
    argv = take_verbose(take_umask(with_home(argv)))
    if argv and argv[0] in ("--version", "-V"):
        print(f"ace-dist {__version__}")
        return 0
    if not argv or (argv[0].startswith("-") and help_asked(argv)):
        print(overview())
        return 0
    name, rest = find_command(argv)
    if help_asked(rest):
        return show_help(name, rest)
    with missing_packages_named():
        return COMMANDS[name](without_ranks(name, rest) if name in RANKED else rest) or 0


def show_help(name: str, words: list[str]) -> int:
    """Print what a command does, examples, its settings, and those of a run that it reads."""
    from ace_dist.tools.help import examples, usual_settings

    shown = examples(name, lambda argv: find_command(argv)[0])
    print(inspect.getdoc(bare_function(name)), "", "examples:", "", *(f"  {line}" for line in shown), sep="\n")
    print("", "settings, written key=value:", sep="\n")
    if name in RANKED:
        split_settings(words, RankSettings)
    with suppress(SystemExit):
        COMMANDS[name](words)
    if usual := usual_settings(name):
        head = (
            "usual settings of a run, with the code's defaults (`ace train ... --cfg` prints all as the files set it):"
        )
        print("", head, "", *(f"  {line}" for line in usual), sep="\n")
    return 0


def find_command(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The name of the command that the words ask for, which may be a launcher's, and the words after it.

    Of a command with subcommands it is the first one; of `report` the one that a setting is called as (`sweep=DIR`).
    Raises `ConfigError` with the nearest name when there is none such.
    """
    first, rest = argv[0].removesuffix(".py").replace("-", "_"), list(argv[1:])
    first = LAUNCHERS.get(first, first)
    if first in COMMANDS:
        return first, rest
    names = [name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{first} ")]
    if not names:
        known = list(dict.fromkeys(name.split(" ")[0] for name in COMMANDS))
        raise ConfigError(f"there is no command {first!r}; there are {', '.join(known)}{did_you_mean(first, known)}")
    if rest and "=" not in rest[0] and not rest[0].startswith("-"):
        if rest[0] not in names:
            raise ConfigError(f"{first} {rest[0]!r} is not one of {', '.join(names)}{did_you_mean(rest[0], names)}")
        return f"{first} {rest[0]}", rest[1:]
    if help_asked(rest) and len(rest) == 1:
        print(*(f"{first} {name}\n    {first_line(f'{first} {name}')}" for name in names), sep="\n")
    keys = {word.partition("=")[0] for word in rest if first == "report"}
    return f"{first} {next((name for name in names if name in keys), names[0])}", rest


def first_line(name: str) -> str:
    return (inspect.getdoc(bare_function(name)) or "").splitlines()[0]


def overview() -> str:
    """Every command with the first line of its docstring, and where to begin."""
    return "\n".join([
        f"ace-dist {__version__}. Its commands, as `ace NAME key=value`:\n",
        *(f"  {name:18} {first_line(name)}" for name in COMMANDS),
        "\nBegin with the demo:    ace demo",
        "or with your own CSV:   ace own annotations.csv",
        "Each one explains itself with --help.",
        "umask=077, which every command takes, makes files that nobody else can read; verbose=true says more.",
    ])  # fmt: skip


def help_text(name: str) -> str:
    """What `ace NAME --help` prints."""
    with redirect_stdout(StringIO()) as said, suppress(SystemExit, UserError):
        execute([*name.split(), "--help"])
    return said.getvalue()


def bare_function(name: str) -> Callable[..., int | None]:
    """The function of a command, without what the table gives to it."""
    command = COMMANDS[name]
    return command.func if isinstance(command, partial) else command


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "demo": partial(demo, start=start), "own": partial(own, start=start),
    "train": train, "evaluate": evaluate, "classify": classify, "explore": explore, "export": export,
    "segment": segment, "watch": watch, "calibrate": calibrate, "timelines": evaluate_timelines,
    "annotations": split_annotations,
    "shards build": build_shards, "shards verify": verify_shards, "shards ata": convert_ata,
    "synonyms build": build_synonyms, "synonyms inspect": inspect_synonyms, "synonyms senses": synonym_senses,
    "models": models,
    "weights import": import_weights, "weights get": get_weights, "weights pretrain": pretrain_tabletop,
    "report run": report_run, "report runs": report_runs, "report sweep": report_sweep,
    "report grid": report_grid, "report figures": report_figures,
    "estimate": estimate, "preflight": preflight,
    "submit": partial(submit, find_command=find_command, execute=execute),
    "sweep run": partial(sweep_run, execute=execute), "sweep status": sweep_status,
    "sweep collect": sweep_collect, "sweep retry": partial(sweep_retry, execute=execute),
    "config get": config_get, "config list": config_list, "doctor": doctor,
    "completion": partial(completion, names=lambda: list(COMMANDS), help_text=help_text),
}  # fmt: skip
LAUNCHERS = {bare_function(name).__name__: name for name in COMMANDS}  # launchers/build_shards.py: "shards build"
