"""Pages, tables and figures of runs and studies: `ace report`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from ace_dist.cli.settings import ClipsOfRun
from ace_dist.config import parse_settings, resolve_path
from ace_dist.utils.errors import ConfigError


@dataclass
class ReportSettings:
    run: str = MISSING  # a run folder
    compare: list[str] | None = None  # other finished runs of the same data set and fold; null: as the page has them
    output: str | None = None  # another folder for the page and its figures; results that lie there are shown
    dataset: ClipsOfRun = field(default_factory=ClipsOfRun)


def report_run(argv: list[str]) -> None:
    """Write a run's report again, beside other runs: `ace report run=DIR compare='[DIR, DIR]'`."""
    settings = parse_settings(argv, ReportSettings)
    from ace_dist.data.run_inputs import check_is_run, results_place

    run_dir = Path(settings.run)
    check_is_run(run_dir)
    output = results_place(run_dir, settings.output)
    from ace_dist.evaluate.report import write_report

    compare = None if settings.compare is None else [Path(folder) for folder in settings.compare]
    print(f"report: {write_report(run_dir, compare, output, settings.dataset.shards)}")


@dataclass
class RunsSettings:
    runs: str = MISSING  # a pattern of run folders, finished or not


def report_runs(argv: list[str]) -> None:
    """List run folders: `ace report runs='runs/*'`: scores, progress, and which settings differ."""
    settings = parse_settings(argv, RunsSettings)
    from ace_dist.tools.study.run_list import differing_settings, find_runs, runs_table

    runs, others = find_runs(settings.runs)
    print(runs_table(runs), "base, novel, HM, SRT: accuracy / macro F1, in percent", sep="\n")
    if lines := differing_settings(runs):
        print("", "settings that differ, each value with the runs that have it:", *lines, sep="\n  ")
    print(*others, sep="\n", file=sys.stderr)


@dataclass
class StudySettings:
    sweep: str = MISSING  # a sweep's folder
    output: str = MISSING  # the folder of runs.csv, pages and figures
    reference: str = ""  # the method that the others are compared with, as runs.csv calls it; table=encoders needs none
    experiment: str = ""  # name in runs.csv; empty: the sweep's table
    dataset: str = ""  # of a sweep over several: the one whose runs are reported


def report_sweep(argv: list[str]) -> None:
    """Report a study out of a sweep: `ace report sweep=DIR output=DIR reference=procvlr`.

    Adds its runs to `runs.csv` of the output folder and writes the experiment's page and figures there.
    """
    settings = parse_settings(argv, StudySettings)
    from ace_dist.cluster.sweep import Sweep
    from ace_dist.tools.study.report import write_study
    from ace_dist.tools.study.rows import planned_runs
    from ace_dist.tools.study.tables import load_table

    sweep = Sweep.read(resolve_path(settings.sweep))
    experiment = settings.experiment or sweep.table
    if not experiment:
        raise ConfigError("experiment is not set: the sweep has no table, so name its runs with experiment=...")
    table = load_table(sweep.table) if sweep.table else None
    curves, pairs = (table.curves, table.pairs) if table else ({}, {})
    commands = [submission["command"] for submission in sweep.submissions]
    planned = planned_runs(sweep, table)
    if settings.dataset:
        there = sorted({run.dataset for run in planned})
        if settings.dataset not in there:
            raise ConfigError(f"dataset={settings.dataset}: the sweep has runs of {', '.join(there)}")
        planned = [run for run in planned if run.dataset == settings.dataset]
    for path in write_study(planned, Path(settings.output), experiment, settings.reference, curves, commands, pairs):
        print(path)


@dataclass
class FiguresSettings:
    figures: str = MISSING  # the folder of runs.csv, where the figures go


def report_figures(argv: list[str]) -> None:
    """Draw the figures of a study again from its `runs.csv`: `ace report figures=DIR`. Takes none of its runs."""
    from ace_dist.tools.study.report import redraw

    print(*redraw(Path(parse_settings(argv, FiguresSettings).figures)), sep="\n")


@dataclass
class GridSettings:
    grid: str = MISSING  # the method whose gain is drawn
    output: str = MISSING  # the folder of runs.csv
    reference: str = MISSING  # the method that it is compared with
    experiment: str = MISSING  # whose cells are drawn, as runs.csv calls it


def report_grid(argv: list[str]) -> None:
    """Draw the gain of a method over a grid of settings, from the `runs.csv` in the output folder.

    `ace report grid=ace reference=procvlr experiment=NAME output=DIR`
    """
    settings = parse_settings(argv, GridSettings)
    from ace_dist.tools.study.grid import write_gains

    print(*write_gains(Path(settings.output), settings.experiment, settings.grid, settings.reference), sep="\n")
