"""The paper's tables and figures: rows with settings (`assets/tables`), the paper's own numbers (`configs/paper`).

`encoders` is a table of ours: ACE beside plain fine-tuning, an encoder a row.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]

from ace_dist.cluster.sweep import SweepRun, expand, run_id
from ace_dist.config import assets_dir, config_dir, did_you_mean
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.reading import read_object

Printed = Mapping[str, Mapping[str, float] | None]  # part -> metric -> number; a part the paper does not print is None
HEADINGS = {"base": "base", "novel": "novel", "hm": "HM", "srt": "SRT"}  # part of results.json -> column of a table


@dataclass(frozen=True)
class TableRow:
    """A row: its name as printed, and its settings (`key=value`)."""

    name: str
    key: str  # for folders and files: its method when it is a method and nothing else, or letters of its name
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table or figure. `paper`: data set -> row -> what the paper prints, in the shape of `results.json`.

    `remarks`: row -> how it differs from what the paper ran. `left_out`: experiment -> rows that it cannot have.
    `curves`: axis label -> number on the axis -> key of a row. `pairs`: name -> keys of two rows, which are
    compared, the second with the first.
    """

    name: str
    source: str
    experiments: tuple[str, ...]
    rows: tuple[TableRow, ...]
    paper: dict[str, dict[str, Printed]]
    left_out: dict[str, tuple[str, ...]]
    remarks: dict[str, str]
    curves: dict[str, dict[float, str]]
    pairs: dict[str, tuple[str, str]]


def table_names() -> list[str]:
    return sorted(path.stem for path in (assets_dir() / "tables").glob("*.yaml"))


def load_table(name: str) -> Table:
    """A file of `assets/tables`. Raises `ConfigError` for one that does not exist or names a row it does not have."""
    if name not in table_names():
        raise ConfigError(
            f"table={name} does not exist; there are {', '.join(table_names())}{did_you_mean(name, table_names())}"
        )
    path = assets_dir() / "tables" / f"{name}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = {}
    for row, settings in content["rows"].items():
        key = re.sub(r"\W+", "_", row).strip("_").lower()
        if len(settings) == 1 and settings[0].startswith("method="):
            key = settings[0].removeprefix("method=")
        rows[row] = TableRow(row, key, tuple(settings))
    paper = printed_rows(name)
    left_out, curves, remarks = (content.get(part, {}) for part in ("left_out", "curves", "remarks"))
    groups = [*paper.values(), remarks, *left_out.values(), *(points.values() for points in curves.values())]
    if strangers := {row for group in groups for row in group} - set(rows):
        raise ConfigError(f"{path}: {', '.join(sorted(strangers))} is not one of its rows")
    return Table(
        name=name,
        source=content["source"],
        experiments=tuple(content["experiments"]),
        rows=tuple(rows.values()),
        paper=paper,
        left_out={experiment: tuple(names) for experiment, names in left_out.items()},
        remarks=remarks,
        curves={axis: {float(x): rows[row].key for x, row in points.items()} for axis, points in curves.items()},
        pairs=row_pairs(rows, content["versus"]) if "versus" in content else {},
    )


def row_pairs(rows: Mapping[str, TableRow], versus: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Rows "NAME, FIRST" and "NAME, SECOND" of a table by NAME, where `versus` is [FIRST, SECOND]."""
    first, second = versus
    names = [name.removesuffix(f", {first}") for name in rows if name.endswith(f", {first}")]
    return {name: (rows[f"{name}, {first}"].key, rows[f"{name}, {second}"].key) for name in names}


def experiments_by_dataset(table: str) -> dict[str, str]:
    """The experiments of a table by the data set that their files choose."""
    experiments = {}
    for experiment in load_table(table).experiments:
        content = yaml.safe_load((config_dir() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
        (dataset,) = (entry["override /dataset"] for entry in content["defaults"] if "override /dataset" in entry)
        experiments[dataset] = experiment
    return experiments


def name_a_table(settings: Sequence[str]) -> tuple[str, list[str]]:
    """Read `experiment=table1 dataset=tabletop` as table1 of `experiment=demo`; other settings stay as they are.

    Returns the table's name (empty when `experiment` is none) and the grid. `dataset=ata,ikea` names several.
    Raises `ConfigError` when the table has no experiment of that data set.
    """
    given = dict(setting.split("=", 1) for setting in settings if "=" in setting)
    name = given.get("experiment", "")
    if name not in table_names():
        return "", list(settings)
    experiments = experiments_by_dataset(name)
    datasets = given.get("dataset", "").split(",")
    if strangers := [dataset for dataset in datasets if dataset not in experiments]:
        raise ConfigError(
            f"experiment={name} is a table of the paper and needs dataset=NAME, one of {', '.join(experiments)}"
            f"; found {', '.join(strangers) or 'none'}"
        )
    rest = [setting for setting in settings if setting.partition("=")[0] not in ("experiment", "dataset")]
    return name, [f"experiment={','.join(experiments[dataset] for dataset in datasets)}", *rest]


def printed_rows(name: str) -> dict[str, dict[str, Printed]]:
    """What the paper prints in a table, by data set and row; nothing for a figure, which has no numbers."""
    path = config_dir() / "paper" / f"{name}.json"
    rows: dict[str, dict[str, Printed]] = {}
    for line in read_object(path, ConfigError)["rows"] if path.is_file() else []:
        parts = {part: line.get(part) for part in HEADINGS}
        rows.setdefault(line["dataset"], {})[line["row"]] = parts
    return rows


def printed_number(printed: Printed, part: str, metric: str) -> float | None:
    """One number of a printed row: of `part` (base, novel, hm, srt) the `metric` of results.json; None if absent."""
    scores = printed.get(part)
    return scores.get(metric) if scores else None


def expand_table(settings: Sequence[str], table: Table) -> list[SweepRun]:
    """Every point of a grid whose first axis is a table's rows, as a run whose settings have the `row`.

    A row's settings come last and win. Rows that an experiment cannot have (`left_out`) are not among them.
    """
    runs = []
    for row in table.rows:
        for point in expand(settings):
            chosen = [text.partition("=")[2] for text in point.overrides if text.startswith("experiment=")]
            if row.name not in table.left_out.get(chosen[-1] if chosen else "demo", ()):
                name, swept = run_id({"row": row.key, **point.settings}), {"row": row.name, **point.settings}
                runs.append(SweepRun(name, swept, [*point.overrides, *row.settings]))
    return runs


def rows_without_run(runs: Sequence[SweepRun], table: Table) -> list[str]:
    there = {run.settings["row"] for run in runs}
    return [row.name for row in table.rows if row.name not in there]
