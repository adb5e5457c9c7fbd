"""Write a run's report again, beside other runs: `python launchers/report.py run=DIR compare='[DIR, DIR]'`.

Or the report of a study out of a sweep: `python launchers/report.py sweep=DIR output=DIR reference=procvlr` adds its
runs to `runs.csv` of the output folder and writes the experiment's page and figures there. With grid=ace instead of
sweep=... it draws the gain of that method over a grid of settings, from the `runs.csv` in the output folder.
With runs='runs/*' it lists run folders: what each is, how far it came, its scores, and which settings differ.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ace_dist.config import run_launcher, typed_settings
from ace_dist.utils.errors import ConfigError


@dataclass
class Settings:
    """What to report; every run must be finished and of the same data set and fold."""

    run: str = ""
    compare: list[str] = field(default_factory=list)
    picture: str | None = None  # a PNG file: concept space before and after beside the scores
    sweep: str = ""  # instead of `run`: a sweep's folder
    output: str = ""  # where a sweep's report goes
    experiment: str = ""  # name in runs.csv; empty: the sweep's table
    reference: str = ""  # the method that a sweep's others are compared with, as runs.csv calls it
    runs: str = ""  # instead of `run`: a pattern of run folders to list, finished or not
    grid: str = ""  # instead of `run`: a method whose gain over `reference` is drawn for every cell of `experiment`


def main(argv: Sequence[str]) -> None:
    """Write `report.html` and `figures/` into the run's folder, and the picture when asked for; or a study's files."""
    settings = typed_settings(argv, Settings)
    if [settings.run, settings.runs, settings.sweep, settings.grid].count("") != 3:
        raise ConfigError(
            "run is not set: give a run folder as run=... and others to compare as compare='[DIR, DIR]', or instead a "
            "sweep's folder as sweep=..., a method as grid=..., or folders to list as runs='runs/*'"
        )
    if settings.runs:
        list_runs(settings.runs)
        return
    if settings.sweep or settings.grid:
        study(settings)
        return
    from ace_dist.evaluate.report import result_picture, write_report

    compare = [Path(folder) for folder in settings.compare]
    print(f"report: {write_report(Path(settings.run), compare)}")
    if settings.picture:
        print(f"picture: {result_picture(Path(settings.run), Path(settings.picture), compare)}")


def list_runs(pattern: str) -> None:
    """The table of runs, the settings that differ between them, and what is no run."""
    from ace_dist.tools.study.run_list import differing_settings, find_runs, runs_table

    runs, others = find_runs(pattern)
    print(runs_table(runs), "base, novel, HM, SRT: accuracy / macro F1, in percent", sep="\n")
    if lines := differing_settings(runs):
        print("", "settings that differ, each value with the runs that have it:", *lines, sep="\n  ")
    print(*others, sep="\n", file=sys.stderr)


def study(settings: Settings) -> None:
    """The report of a sweep, or the gains over a grid."""
    from ace_dist.cluster.sweeps import Sweep
    from ace_dist.tools.study.grid import write_gains
    from ace_dist.tools.study.report import write_study
    from ace_dist.tools.study.rows import planned_runs
    from ace_dist.tools.study.tables import load_table

    sweep = Sweep.read(Path(settings.sweep)) if settings.sweep else None
    experiment = settings.experiment or (sweep.table if sweep else "")
    for key, value in {"output": settings.output, "reference": settings.reference, "experiment": experiment}.items():
        if not value:
            raise ConfigError(f"{key} is not set: the report of a sweep or grid needs {key}=...")
    if sweep is None:
        print(*write_gains(Path(settings.output), experiment, settings.grid, settings.reference), sep="\n")
        return
    table = load_table(sweep.table) if sweep.table else None
    curves = table.curves if table else {}
    commands = [submission["command"] for submission in sweep.submissions]
    planned = planned_runs(sweep, table)
    for path in write_study(planned, Path(settings.output), experiment, settings.reference, curves, commands):
        print(path)


if __name__ == "__main__":
    run_launcher(main)
