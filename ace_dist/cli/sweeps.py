"""Grids of trainings: `ace sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from ace_dist.cli.settings import RunWords, load_run
from ace_dist.cluster.profiles import ClusterConfig, split_profile
from ace_dist.config import help_asked, parse_settings, split_settings
from ace_dist.utils.errors import ConfigError

if TYPE_CHECKING:
    from ace_dist.cluster.sweep import Sweep, SweepRun


@dataclass
class SweepSettings:
    sweep: str = ""  # its name; empty: made of table and data set
    folder: str = "runs/sweeps"  # of all sweeps
    table: str = ""  # a table or figure of the paper: its rows are the grid's first axis
    search: str = ""  # rates: choose the learning rates of method=NAME on base classes of held-out groups
    dry_run: bool = False  # print what would be submitted, and stop


def sweep_run(argv: list[str], execute: RunWords) -> int:
    """Run a grid of trainings: `ace sweep sweep=NAME method=ace,procvlr seed=0..4 cluster=slurm ...`.

    Given again, the same command submits whatever is neither finished nor in the queue. With table=table1 (a file of
    ace_dist/assets/tables) the rows of that table of the paper come first in the grid, and the sweep's table has the
    paper's layout with the paper's numbers beside; so says `experiment=table1 dataset=tabletop` in fewer words. On this
    machine the sweep ends with its table. `search=rates method=NAME dataset=NAME` looks for learning rates instead.
    """
    settings, others = split_settings(argv, SweepSettings)
    if settings.search:
        return search_rates(settings, others, execute)
    profile, grid = split_profile(others)
    from ace_dist.cluster.sweep import expand
    from ace_dist.tools.study.tables import expand_table, load_table, name_a_table, rows_without_run

    if not settings.table:
        settings.table, grid = name_a_table(grid)
        if settings.table and not settings.sweep:
            datasets = next(arg.partition("=")[2] for arg in others if arg.startswith("dataset="))
            settings.sweep = "_".join([settings.table, *datasets.split(",")])
    if not settings.sweep:
        raise ConfigError("sweep is not set: name the sweep with sweep=NAME")
    sweep = begun_sweep(Path(settings.folder) / settings.sweep)
    table = load_table(settings.table) if settings.table else None
    runs = sweep.add(expand_table(grid, table) if table else expand(grid), settings.table)
    if table and (absent := rows_without_run(runs, table)):
        print(f"left out {', '.join(absent)}: see ace_dist/assets/tables/{table.name}.yaml", flush=True)
    return launch_runs(sweep, runs, "run", profile, execute, settings.dry_run)


def search_rates(settings: SweepSettings, others: list[str], execute: RunWords) -> int:
    """Choose the learning rates of methods on base classes alone, by the rule of `ace_dist/tools/study/rates.py`.

    On a cluster each call submits the runs that the rule asks for next; the same command goes on when they are done.
    So it does when another process runs them here.
    """
    from ace_dist.cluster.sweep import select
    from ace_dist.tools.study.rates import build_searches, write_rates

    if settings.search != "rates" or settings.table:
        raise ConfigError(f"search={settings.search} table={settings.table}: there is search=rates, without a table")
    profile, grid = split_profile(others)
    given = dict(word.split("=", 1) for word in grid if "=" in word)
    name = ["rates", given.get("method", ""), given.get("dataset", given.get("experiment", ""))]
    folder = Path(settings.folder) / (settings.sweep or "_".join(name).replace(",", "_"))
    searches = build_searches(grid, folder, load_run)
    while wanted := [run for search in searches for run in search.wanted()]:
        sweep = begun_sweep(folder)
        runs = sweep.add(wanted)
        to_submit = select(runs, sweep.states(), "run")
        code = submit_runs(sweep, runs, "run", profile, execute, settings.dry_run)
        if not to_submit:
            print("next     the same command, when these runs have ended: they are with another process", flush=True)
        if code or settings.dry_run or profile.kind != "local" or not to_submit:
            return code
    write_rates(searches, folder / "rates.csv")
    print(
        (folder / "rates.csv").read_text(encoding="utf-8"),
        "chosen, of the smallest within one standard error:",
        sep="\n",
    )
    print(*(f"  method={search.method} {search.settings_to_use()}" for search in searches), sep="\n")
    return 0


def begun_sweep(folder: Path) -> Sweep:
    """The sweep of a folder, or a new one."""
    from ace_dist.cluster.sweep import Sweep

    return Sweep.read(folder) if (folder / "sweep.json").is_file() else Sweep(folder)


def launch_runs(
    sweep: Sweep, runs: Sequence[SweepRun], verb: str, profile: ClusterConfig, execute: RunWords, dry_run: bool
) -> int:
    """As `submit_runs`; on this machine the table of the sweep follows."""
    code = submit_runs(sweep, runs, verb, profile, execute, dry_run)
    if profile.kind == "local" and not dry_run:
        print_table(sweep)
    return code


def submit_runs(
    sweep: Sweep, runs: Sequence[SweepRun], verb: str, profile: ClusterConfig, execute: RunWords, dry_run: bool
) -> int:
    """Check every run's settings, then submit what `verb` asks for."""
    from ace_dist.cluster import submit as jobs
    from ace_dist.cluster.sweep import launch, select

    for run in runs:
        jobs.check_job(load_run, "train", sweep.words(run), profile)
    return launch(sweep, select(runs, sweep.states(), verb), profile, execute, dry_run)


@dataclass
class KnownSweep:
    sweep: str = MISSING  # its name
    folder: str = "runs/sweeps"  # of all sweeps


def read_sweep(settings: KnownSweep) -> Sweep:
    from ace_dist.cluster.sweep import Sweep

    return Sweep.read(Path(settings.folder) / settings.sweep)


def sweep_status(argv: list[str]) -> None:
    """Say where each run of a sweep is: `ace sweep status sweep=NAME`."""
    sweep = read_sweep(parse_settings(argv, KnownSweep))
    from ace_dist.cluster.sweep import status_table

    print(status_table(sweep.states()))


def sweep_collect(argv: list[str]) -> None:
    """Make a sweep's table: `ace sweep collect sweep=NAME`."""
    print_table(read_sweep(parse_settings(argv, KnownSweep)))


@dataclass
class RetrySettings(KnownSweep):
    unknown: bool = False  # those too of which nobody here can say whether they still run: SLURM, or a machine, is gone
    dry_run: bool = False  # print what would be submitted, and stop


def sweep_retry(argv: list[str], execute: RunWords) -> int:
    """Submit failed runs again: `ace sweep retry sweep=NAME`.

    They go where they were before, unless cluster=NAME says otherwise; cluster.key=value changes single values.
    """
    settings, others = split_settings(argv, RetrySettings)
    if help_asked(argv):
        split_profile(others)  # prints and exits
    if rest := [word for word in others if not word.startswith(("cluster=", "cluster."))]:
        raise ConfigError(f"retry takes no settings of runs, found {rest[0]!r}; give sweep=NAME alone")
    sweep = read_sweep(settings)
    profile, _ = split_profile(others, sweep.last_profile())
    verb = "retry unknown" if settings.unknown else "retry"
    return launch_runs(sweep, list(sweep.runs.values()), verb, profile, execute, settings.dry_run)


def print_table(sweep: Sweep) -> None:
    """Print the table of a sweep, or of the paper, and write it beside the runs; missing runs are in its notes."""
    from ace_dist.tools.study.collect import as_markdown, collect, paper_sheet, sheet, write_tables
    from ace_dist.tools.study.report import pair_lines
    from ace_dist.tools.study.rows import planned_runs
    from ace_dist.tools.study.tables import load_table, rows_without_run

    table = load_table(sweep.table) if sweep.table else None
    lines = collect(sweep, sweep.states(), table)
    absent = rows_without_run(list(sweep.runs.values()), table) if table else []
    text = paper_sheet(lines, table, absent) if table else sheet(lines)
    print(as_markdown(text))
    if table and table.pairs:
        print(*pair_lines(planned_runs(sweep, table), table.pairs), "", sep="\n")
    print("\n".join(map(str, write_tables(lines, text, sweep.folder))))
