"""Owns the table of a sweep: mean ± standard deviation over seeds and folds, as text, CSV, Markdown, LaTeX and HTML.

A sweep of one of the paper's tables is laid out as the paper does, with the paper's numbers beside ours.
"""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ace_dist.cluster.sweeps import State, Sweep
from ace_dist.config import load_config
from ace_dist.evaluate.run_files import read_results
from ace_dist.tools.study.study import PlannedRun
from ace_dist.tools.study.tables import PRINTED, Table, printed_number
from ace_dist.utils.files import write_text

REPLICATES = ("seed", "dataset.fold")  # settings whose values are repetitions of one experiment
PARTS = ("base", "novel", "hm")
COLUMNS = (
    *((f"{part} {metric}", part, metric) for part in PARTS for metric in ("accuracy", "f1")),
    ("srt accuracy", "srt", "accuracy_mean"),
    ("srt f1", "srt", "f1_mean"),
    ("srt accuracy spread", "srt", "accuracy_std"),
    ("srt f1 spread", "srt", "f1_std"),
)
NOTE = (
    "Percent. Mean ± sample standard deviation (n-1) over seeds and folds; a single run has no deviation. "
    "srt: mean over the label sets of one run; srt spread: standard deviation over the label sets of one run."
)


PAPER_NOTE = (
    "Accuracy / macro F1 in percent. base, novel, HM: mean ± sample standard deviation (n-1) over seeds and folds. "
    "SRT, as the paper prints it: mean ± standard deviation over the label sets of one run, each averaged over seeds "
    "and folds; how both vary over seeds is in table.csv. The paper calls base actions seen and novel ones unseen."
)


@dataclass(frozen=True)
class Cell:
    """Mean, sample standard deviation (`None` for one run) and number of runs; `mean` is `None` without any."""

    mean: float | None
    std: float | None
    runs: int

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.1f}" if self.std is None else f"{self.mean:.1f} ± {self.std:.1f}"


@dataclass(frozen=True)
class Line:
    """One setting of the sweep (a table's row, swept values without seed and fold), its cells, the runs missing."""

    setting: str
    finished: int
    missing: tuple[str, ...]
    cells: tuple[Cell, ...]
    printed: dict[str, str] = field(default_factory=dict)  # column -> what the paper prints for this row and data set

    @property
    def count(self) -> str:
        """Finished runs, and out of how many when some are missing."""
        return f"{self.finished} of {self.finished + len(self.missing)}" if self.missing else str(self.finished)


@dataclass(frozen=True)
class Sheet:
    """A table as text: the header and the body in one, and the notes below."""

    rows: list[list[str]]
    notes: list[str]


def collect(sweep: Sweep, states: dict[str, State], table: Table | None = None) -> list[Line]:
    """One line a setting, in the order of the sweep. Raises `RunError` when a results file is damaged.

    With the sweep's table, lines carry what the paper prints for their row on their data set.
    """
    groups: dict[str, list[str]] = {}
    for run in sweep.runs.values():
        kept = {key: value for key, value in run.settings.items() if key not in REPLICATES}
        words = [value if key == "row" and table else f"{key}={value}" for key, value in kept.items()]
        groups.setdefault(" ".join(words) or "all runs", []).append(run.id)
    lines = []
    for setting, ids in groups.items():
        done = [name for name in ids if states[name].state == "finished"]
        results = [read_results(sweep.folder / name) for name in done]
        missing = tuple(f"{name}: {states[name].state}" for name in ids if name not in done)
        cells = tuple(cell(results, part, metric) for _, part, metric in COLUMNS)
        first = sweep.runs[ids[0]]
        printed = table.paper.get(dataset_of(first.overrides), {}).get(first.settings["row"], {}) if table else {}
        lines.append(Line(setting, len(done), missing, cells, printed))
    return lines


def planned_runs(sweep: Sweep, table: Table | None = None) -> list[PlannedRun]:
    """Every run of a sweep for a study: called as its table's row or its swept settings, without seed and fold."""
    keys = {row.name: row.key for row in table.rows} if table else {}
    planned = []
    for run in sweep.runs.values():
        kept = {key: value for key, value in run.settings.items() if key not in REPLICATES}
        words = [
            keys[value] if key == "row" and table else value if key == "method" else f"{key}={value}"
            for key, value in kept.items()
        ]
        seed = int(run.settings["seed"]) if "seed" in run.settings else load_config(run.overrides).seed
        planned.append(PlannedRun(" ".join(words) or "all runs", seed, sweep.folder / run.id))
    return planned


def dataset_of(overrides: Sequence[str]) -> str:
    """The name of the data set that overrides choose."""
    return load_config(overrides).dataset.name


def cell(results: Sequence[dict[str, Any]], part: str, metric: str) -> Cell:
    """A metric over runs; runs whose test split has no such actions (`null`) do not count."""
    values = [float(result[part][metric]) for result in results if result[part] is not None]
    if not values:
        return Cell(None, None, 0)
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def write_tables(lines: Sequence[Line], text: Sheet, folder: Path) -> list[Path]:
    """Write `table.csv` (every metric) and the sheet as `.md`, `.tex` and `.html`; returns their paths."""
    writers: dict[str, Callable[[Sheet], str]] = {"md": as_markdown, "tex": as_latex, "html": as_html}
    contents = {"csv": as_csv(lines), **{suffix: writer(text) for suffix, writer in writers.items()}}
    for suffix, content in contents.items():
        write_text(folder / f"table.{suffix}", content)
    return [folder / f"table.{suffix}" for suffix in contents]


def sheet(lines: Sequence[Line]) -> Sheet:
    """Every metric of every setting."""
    header = ["setting", "runs", *(title for title, _, _ in COLUMNS)]
    body = [[line.setting, line.count, *map(str, line.cells)] for line in lines]
    return Sheet([header, *body], [NOTE, *footnotes(lines)])


def paper_sheet(lines: Sequence[Line], table: Table, absent: Sequence[str] = ()) -> Sheet:
    """The paper's layout: a method a row, accuracy / F1 in a cell, the paper's own numbers in columns of their own.

    `absent`: rows of the table that the sweep has no run of, for the notes.
    """
    printed = [column for column in PRINTED.values() if any(column in line.printed for line in lines)]
    header = ["Method", "runs", *PRINTED.values(), *(f"paper: {column}" for column in printed)]
    body = []
    for line in lines:
        cells = {title: value for (title, _, _), value in zip(COLUMNS, line.cells, strict=True)}
        scores = [pair(str(cells[f"{part} accuracy"]), str(cells[f"{part} f1"])) for part in PARTS]
        srt = [spread(cells[f"srt {metric}"], cells[f"srt {metric} spread"]) for metric in ("accuracy", "f1")]
        paper = [line.printed.get(column, "-").replace("/", " / ").replace("±", " ± ") for column in printed]
        body.append([line.setting, line.count, *scores, pair(*srt), *paper])
    source = f"paper: {table.source}." if printed else f"{table.source} has no numbers for this data set."
    left_out = [f"not in this sweep: {', '.join(absent)}"] if absent else []
    return Sheet([header, *body], [PAPER_NOTE, source, *left_out, *footnotes(lines)])


def pair(accuracy: str, f1: str) -> str:
    """Both metrics in one cell."""
    return "-" if accuracy == f1 == "-" else f"{accuracy} / {f1}"


def spread(mean: Cell, deviation: Cell) -> str:
    """Mean and deviation over label sets, both averaged over runs."""
    return "-" if mean.mean is None or deviation.mean is None else f"{mean.mean:.1f} ± {deviation.mean:.1f}"


def footnotes(lines: Sequence[Line]) -> list[str]:
    """Every run that is not in a mean."""
    return [f"missing: {run}" for line in lines for run in line.missing]


def as_csv(lines: Sequence[Line]) -> str:
    """A row for each setting and metric: `setting, metric, mean, std, runs, missing, paper`, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", "metric", "mean", "std", "runs", "missing", "paper"])
    for line in lines:
        for (title, part, metric), value in zip(COLUMNS, line.cells, strict=True):
            numbers = ["" if number is None else repr(number) for number in (value.mean, value.std)]
            paper = printed_number(line.printed, part, metric) if line.printed else ""
            writer.writerow([line.setting, title, *numbers, value.runs, "; ".join(line.missing), paper])
    return text.getvalue()


def as_markdown(text: Sheet) -> str:
    """A Markdown table; reads as plain text too."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in text.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    body = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    body.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*body, "", *text.notes]) + "\n"


def as_latex(text: Sheet) -> str:
    """A booktabs table."""

    def escape(words: str) -> str:
        """LaTeX's own characters, made printable."""
        for character in "&%$#_{}":
            words = words.replace(character, "\\" + character)
        return words.replace("±", "$\\pm$")

    header, *body = [[escape(cell) for cell in row] for row in text.rows]
    content = [" & ".join(row) + r" \\" for row in body]
    comments = [f"% {note}" for note in text.notes]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join([
        *comments, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule",
        *content, r"\bottomrule", r"\end{tabular}",
    ]) + "\n"  # fmt: skip


def as_html(text: Sheet) -> str:
    """A page that works offline."""
    header, *body = [[html.escape(cell) for cell in row] for row in text.rows]
    head = "".join(f"<th>{cell}</th>" for cell in header)
    content = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in text.notes)
    style = "body{font-family:sans-serif}table{border-collapse:collapse}td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child{text-align:left}"  # noqa: E501
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep</title><style>{style}</style>\n'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{content}\n</tbody></table>{notes}</html>\n"
    )
