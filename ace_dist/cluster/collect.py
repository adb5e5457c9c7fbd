"""Owns the table of a sweep: mean ± standard deviation over seeds and folds, as text, CSV, Markdown, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_dist.cluster.sweeps import State, Sweep
from ace_dist.evaluation.run_files import read_results
from ace_dist.files import write_text

__all__ = ["Cell", "Line", "as_csv", "as_html", "as_latex", "as_markdown", "collect", "write_tables"]

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
    """One setting of the sweep: its swept values without seed and fold, its cells, and the runs that are missing."""

    setting: str
    finished: int
    missing: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def count(self) -> str:
        """Finished runs, and out of how many when some are missing."""
        return f"{self.finished} of {self.finished + len(self.missing)}" if self.missing else str(self.finished)


def collect(sweep: Sweep, states: dict[str, State]) -> list[Line]:
    """One line a setting, in the order of the sweep. Raises `ReportError` when a results file is damaged."""
    groups: dict[str, list[str]] = {}
    for run in sweep.runs.values():
        kept = [f"{key}={value}" for key, value in run.settings.items() if key not in REPLICATES]
        groups.setdefault(" ".join(kept) or "all runs", []).append(run.id)
    lines = []
    for setting, ids in groups.items():
        done = [name for name in ids if states[name].state == "finished"]
        results = [read_results(sweep.folder / name) for name in done]
        missing = tuple(f"{name}: {states[name].state}" for name in ids if name not in done)
        cells = tuple(cell(results, part, metric) for _, part, metric in COLUMNS)
        lines.append(Line(setting, len(done), missing, cells))
    return lines


def cell(results: Sequence[dict[str, Any]], part: str, metric: str) -> Cell:
    """A metric over runs; runs whose test split has no such actions (`null`) do not count."""
    values = [float(result[part][metric]) for result in results if result[part] is not None]
    if not values:
        return Cell(None, None, 0)
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def write_tables(lines: Sequence[Line], folder: Path) -> list[Path]:
    """Write `table.csv`, `.md`, `.tex` and `.html`; returns their paths."""
    writers: dict[str, Callable[[Sequence[Line]], str]] = {
        "csv": as_csv, "md": as_markdown, "tex": as_latex, "html": as_html,
    }  # fmt: skip
    paths = []
    for suffix, writer in writers.items():
        paths.append(folder / f"table.{suffix}")
        write_text(paths[-1], writer(lines))
    return paths


def rows(lines: Sequence[Line]) -> list[list[str]]:
    """Header and body as text."""
    header = ["setting", "runs", *(title for title, _, _ in COLUMNS)]
    return [header, *([line.setting, line.count, *map(str, line.cells)] for line in lines)]


def footnotes(lines: Sequence[Line]) -> list[str]:
    """Every run that is not in a mean."""
    return [f"missing: {run}" for line in lines for run in line.missing]


def as_csv(lines: Sequence[Line]) -> str:
    """A row for each setting and metric: `setting, metric, mean, std, runs, missing`, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", "metric", "mean", "std", "runs", "missing"])
    for line in lines:
        for (title, _, _), value in zip(COLUMNS, line.cells, strict=True):
            numbers = ["" if number is None else repr(number) for number in (value.mean, value.std)]
            writer.writerow([line.setting, title, *numbers, value.runs, "; ".join(line.missing)])
    return text.getvalue()


def as_markdown(lines: Sequence[Line]) -> str:
    """A Markdown table; reads as plain text too."""
    table = [[text.replace("|", "\\|") for text in row] for row in rows(lines)]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    body = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    body.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*body, "", NOTE, *footnotes(lines)]) + "\n"


def as_latex(lines: Sequence[Line]) -> str:
    """A booktabs table."""

    def escape(text: str) -> str:
        for character in "&%$#_{}":
            text = text.replace(character, "\\" + character)
        return text.replace("±", "$\\pm$")

    header, *body = [[escape(text) for text in row] for row in rows(lines)]
    content = [" & ".join(row) + r" \\" for row in body]
    comments = [f"% {text}" for text in (NOTE, *footnotes(lines))]
    columns = "l" + "r" * (len(header) - 1)
    return "\n".join([
        *comments, rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule",
        *content, r"\bottomrule", r"\end{tabular}",
    ]) + "\n"  # fmt: skip


def as_html(lines: Sequence[Line]) -> str:
    """A page that works offline."""
    header, *body = [[html.escape(text) for text in row] for row in rows(lines)]
    head = "".join(f"<th>{text}</th>" for text in header)
    content = "\n".join("<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in body)
    notes = "".join(f"<p>{html.escape(text)}</p>" for text in (NOTE, *footnotes(lines)))
    style = "body{font-family:sans-serif}table{border-collapse:collapse}td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child{text-align:left}"  # noqa: E501
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep</title><style>{style}</style>\n'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{content}\n</tbody></table>{notes}</html>\n"
    )
