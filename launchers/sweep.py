"""Run a grid of trainings: `python launchers/sweep.py sweep=NAME method=ace,procvlr seed=0..4 cluster=slurm ...`.

`python launchers/sweep.py status sweep=NAME` says where each run is, `collect` makes the table, `retry` submits the
failed runs again, where they were before unless cluster=... says otherwise; the first command, given again, submits
whatever is neither finished nor in the queue. With table=table1 (a file of configs/tables) the rows of that table of
the paper come first in the grid, and the sweep's table has the paper's layout with the paper's numbers beside; so says
`experiment=table1 dataset=tabletop` in fewer words. On this machine the sweep ends with its table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.cluster.profiles import split_settings
from ace_dist.cluster.study import check_runs, launch, select, status_table
from ace_dist.cluster.sweeps import Sweep, expand
from ace_dist.config import help_asked, run_launcher
from ace_dist.tools.study.collect import as_markdown, collect, paper_sheet, sheet, write_tables
from ace_dist.tools.study.tables import expand_table, load_table, name_a_table, rows_without_run
from ace_dist.utils.errors import ConfigError

VERBS = ("run", "status", "collect", "retry")


@dataclass
class Settings:
    """What belongs to the sweep; `cluster=...` picks the profile, everything else is the grid."""

    sweep: str = ""  # its name
    folder: str = "runs/sweeps"
    table: str = ""  # a table or figure of the paper: its rows are the grid's first axis
    dry_run: bool = False  # print what would be submitted, and stop


def main(argv: Sequence[str]) -> int:
    """Submit, or say how it stands; returns 0 when every run asked about is finished or under way."""
    verb, rest = (argv[0], argv[1:]) if argv and "=" not in argv[0] and not help_asked(argv) else ("run", argv)
    if verb not in VERBS:
        raise ConfigError(f"{verb!r} is not one of {', '.join(VERBS)}")
    settings, profile, grid = split_settings(rest, Settings)
    if verb == "run" and not settings.table:
        settings.table, named = name_a_table(grid)
        if settings.table and not settings.sweep:
            datasets = next(arg.partition("=")[2] for arg in grid if arg.startswith("dataset="))
            settings.sweep = "_".join([settings.table, *datasets.split(",")])
        grid = named
    if not settings.sweep:
        raise ConfigError("sweep is not set: name the sweep with sweep=NAME")
    folder = Path(settings.folder) / settings.sweep
    if verb != "run" and (grid or settings.table):
        found = grid[0] if grid else f"table={settings.table}"
        raise ConfigError(f"{verb} takes no settings of runs, found {found!r}; give sweep=NAME alone")
    sweep = Sweep.read(folder) if verb != "run" or (folder / "sweep.json").is_file() else Sweep(folder)
    if verb == "status":
        print(status_table(sweep.states()))
        return 0
    if verb == "collect":
        print_table(sweep)
        return 0
    if verb == "retry" and not any(arg.startswith("cluster") for arg in rest):
        profile = sweep.last_profile()
    table = load_table(settings.table) if settings.table else None
    points = expand_table(grid, table) if table else expand(grid)
    runs = sweep.add(points, settings.table) if verb == "run" else list(sweep.runs.values())
    if table and (absent := rows_without_run(runs, table)):
        print(f"left out {', '.join(absent)}: see ace_dist/assets/tables/{table.name}.yaml", flush=True)
    check_runs(runs, profile)
    code = launch(sweep, select(runs, sweep.states(), verb), profile, dry_run=settings.dry_run)
    if profile.kind == "local" and not settings.dry_run:
        print_table(sweep)
    return code


def print_table(sweep: Sweep) -> None:
    """Print the table of a sweep, or of the paper, and write it beside the runs; missing runs are in its notes."""
    table = load_table(sweep.table) if sweep.table else None
    lines = collect(sweep, sweep.states(), table)
    absent = rows_without_run(list(sweep.runs.values()), table) if table else []
    text = paper_sheet(lines, table, absent) if table else sheet(lines)
    print(as_markdown(text))
    print("\n".join(map(str, write_tables(lines, text, sweep.folder))))


if __name__ == "__main__":
    run_launcher(lambda argv: sys.exit(main(argv)))
