"""The table of a sweep: mean ± standard deviation over seeds and folds, as text, CSV, Markdown, LaTeX and HTML.

A sweep of one of the paper's tables is laid out as the paper does, with the paper's numbers beside ours.
"""

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.cluster.sweep import State, Sweep
from ace_dist.config import load_config
from ace_dist.evaluate.run_files import read_results
from ace_dist.tools.study.rows import Mean, mean_hm, mean_score, swept_settings
from ace_dist.tools.study.tables import HEADINGS, Printed, Table, printed_number
from ace_dist.utils.files import write_text

PARTS = ("base", "novel", "hm")
METRICS = ("accuracy", "f1")
COLUMNS = (  # title, part and metric of results.json
    *((f"{part} {metric}", part, metric) for part in PARTS for metric in METRICS),
    ("srt accuracy", "srt", "accuracy_mean"),
    ("srt f1", "srt", "f1_mean"),
    ("srt accuracy spread", "srt", "accuracy_std"),
    ("srt f1 spread", "srt", "f1_std"),
)
NOTE = (
    "Percent. Mean ± sample standard deviation (n-1) over seeds and folds; a single run has no deviation. "
    "hm: the harmonic mean of the two averaged columns, as the paper's is; its deviation is of the runs' own. "
    "srt: mean over the label sets of one run; srt spread: standard deviation over the label sets of one run."
)
PAPER_NOTE = (
    "Accuracy / macro F1 in percent. base, novel: mean ± sample standard deviation (n-1) over seeds and folds. HM: "
    "harmonic mean of these two columns, as the paper's is, ± the deviation of the runs' own. "
    "SRT, as the paper prints it: mean ± standard deviation over the label sets of one run, each averaged over seeds "
    "and folds; how both vary over seeds is in table.csv. The paper calls base actions seen and novel ones unseen."
)


@dataclass(frozen=True)
class Line:
    """One setting of the sweep (a table's row, swept values without seed and fold), its cells, the runs missing."""

    setting: str
    finished: int
    missing: tuple[str, ...]
    cells: dict[str, Mean | None]  # by title of `COLUMNS`; None without a run
    printed: Printed  # what the paper prints for this row and data set

    @property
    def count(self) -> str:
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
        settings = swept_settings(run).items()
        words = [value if key == "row" and table else f"{key}={value}" for key, value in settings]
        groups.setdefault(" ".join(words) or "all runs", []).append(run.id)
    lines = []
    for setting, ids in groups.items():
        finished = [name for name in ids if states[name].state == "finished"]
        missing = tuple(f"{name}: {states[name].state}" for name in ids if name not in finished)
        results = [read_results(sweep.folder / name) for name in finished]
        cells = {
            title: mean_hm(results, metric) if part == "hm" else mean_score(results, part, metric)
            for title, part, metric in COLUMNS
        }
        printed: Printed = {}
        first = sweep.runs[ids[0]]
        if table:
            paper = table.paper.get(load_config(first.overrides).dataset.name, {})
            printed = paper.get(first.settings["row"], {})
        lines.append(Line(setting, len(finished), missing, cells, printed))
    return lines


def write_tables(lines: Sequence[Line], text: Sheet, folder: Path) -> list[Path]:
    """Write `table.csv` (every metric) and the sheet as `.md`, `.tex` and `.html`; returns their paths."""
    contents = {"csv": as_csv(lines), "md": as_markdown(text), "tex": as_latex(text), "html": as_html(text)}
    for suffix, content in contents.items():
        write_text(folder / f"table.{suffix}", content)
    return [folder / f"table.{suffix}" for suffix in contents]


def sheet(lines: Sequence[Line]) -> Sheet:
    """Every metric of every setting."""
    header = ["setting", "runs", *(title for title, _, _ in COLUMNS)]
    body = [[line.setting, line.count, *(str(mean or "-") for mean in line.cells.values())] for line in lines]
    return Sheet([header, *body], [NOTE, *footnotes(lines)])


def paper_sheet(lines: Sequence[Line], table: Table, absent: Sequence[str] = ()) -> Sheet:
    """The paper's layout: a method a row, accuracy / F1 in a cell, the paper's own numbers in columns of their own.

    `absent`: rows of the table that the sweep has no run of, for the notes.
    """
    titles = list(HEADINGS.values())
    printed = [part for part in HEADINGS if any(line.printed.get(part) for line in lines)]
    body = []
    for line in lines:
        pairs = [[str(line.cells[f"{part} {metric}"] or "-") for metric in METRICS] for part in PARTS]
        srt = [(line.cells[f"srt {metric}"], line.cells[f"srt {metric} spread"]) for metric in METRICS]
        pairs.append([f"{mean.mean:.1f} ± {spread.mean:.1f}" if mean and spread else "-" for mean, spread in srt])
        scores = ["-" if pair == ["-", "-"] else " / ".join(pair) for pair in pairs]
        body.append([line.setting, line.count, *scores, *(printed_cell(line.printed, part) for part in printed)])
    source = f"paper: {table.source}." if printed else f"{table.source} has no numbers for this data set."
    left_out = [f"not in this sweep: {', '.join(absent)}"] if absent else []
    header = ["Method", "runs", *titles, *(f"paper: {HEADINGS[part]}" for part in printed)]
    return Sheet([header, *body], [PAPER_NOTE, source, *left_out, *footnotes(lines)])


def printed_cell(printed: Printed, part: str) -> str:
    """Accuracy / F1 of a part as the paper prints it, of the robustness test with its deviations."""
    cells = []
    for metric in METRICS:
        mean, std = (printed_number(printed, part, f"{metric}{kind}") for kind in ("_mean", "_std"))
        score = printed_number(printed, part, metric) if mean is None else mean
        if score is not None:
            cells.append(f"{score:.1f}" if std is None else f"{score:.1f} ± {std:.1f}")
    return " / ".join(cells) or "-"


def footnotes(lines: Sequence[Line]) -> list[str]:
    return [f"missing: {run}" for line in lines for run in line.missing]


def as_csv(lines: Sequence[Line]) -> str:
    """A row for each setting and metric: `setting, metric, mean, std, runs, missing, paper`, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["setting", "metric", "mean", "std", "runs", "missing", "paper"])
    for line in lines:
        for title, part, metric in COLUMNS:
            mean = line.cells[title]
            numbers = [mean.mean, "" if mean.deviation is None else mean.deviation, mean.n] if mean else ["", "", 0]
            writer.writerow(
                [line.setting, title, *numbers, "; ".join(line.missing), printed_number(line.printed, part, metric)]
            )
    return text.getvalue()


def as_markdown(text: Sheet) -> str:
    """A Markdown table; reads as plain text too."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in text.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    body = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table]
    body.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*body, "", *text.notes]) + "\n"


def as_latex(text: Sheet) -> str:
    """A booktabs table."""
    escapes = str.maketrans({character: "\\" + character for character in "&%$#_{}"} | {"±": "$\\pm$"})
    header, *body = [" & ".join(cell.translate(escapes) for cell in row) + r" \\" for row in text.rows]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(text.rows[0]) - 1)}}}"
    lines = [begin, r"\toprule", header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*(f"% {note}" for note in text.notes), *lines]) + "\n"


def as_html(text: Sheet) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in text.rows[0])
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in text.rows[1:])
    content = "\n".join(f"<tr>{row}</tr>" for row in cells)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in text.notes)
    style = "body{font-family:sans-serif}table{border-collapse:collapse}td,th{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:right}td:first-child,th:first-child{text-align:left}"  # noqa: E501
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Sweep</title><style>{style}</style>\n'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n{content}\n</tbody></table>{notes}</html>\n"
    )
