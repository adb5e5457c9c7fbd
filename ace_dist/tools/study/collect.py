"""The table of a sweep: mean ± standard deviation over seeds and folds, as text, CSV, Markdown, LaTeX and HTML.

A sweep of one of the paper's tables is laid out as the paper does, with the paper's numbers beside ours.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_dist.cluster.sweep import State, Sweep
from ace_dist.config import Config, load_config, resolve_path
from ace_dist.evaluate.run_files import read_results
from ace_dist.tools.study.rows import Mean, mean_hm, mean_score
from ace_dist.tools.study.tables import HEADINGS, Printed, Table, printed_number
from ace_dist.utils.errors import LabelError
from ace_dist.utils.files import write_text
from ace_dist.utils.reading import read_object
from ace_dist.utils.tables import csv_text
from ace_dist.utils.text import markdown

PARTS = ("base", "novel", "hm")
METRICS = ("accuracy", "f1")
LATEX_WORDS = {"±": "$\\pm$", "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
COLUMNS = (  # title, part and metric of results.json
    *((f"{part} {metric}", part, metric) for part in PARTS for metric in METRICS),
    ("srt accuracy", "srt", "accuracy_mean"),
    ("srt f1", "srt", "f1_mean"),
    ("srt accuracy spread", "srt", "accuracy_std"),
    ("srt f1 spread", "srt", "f1_std"),
    ("srt base accuracy", "srt_base", "accuracy_mean"),
    ("srt base f1", "srt_base", "f1_mean"),
    ("srt base accuracy spread", "srt_base", "accuracy_std"),
    ("srt base f1 spread", "srt_base", "f1_std"),
    *((f"gzsl {part} {metric}", f"gzsl.{part}", metric) for part in PARTS for metric in METRICS),
    ("gzsl area", "gzsl.curve", "area"),
)
NOTE = (
    "Percent. Mean ± sample standard deviation (n-1) over seeds and folds; a single run has no deviation. "
    "hm: the harmonic mean of the two averaged columns, as the paper's is; its deviation is of the runs' own. "
    "srt: mean over the label sets of one run; srt spread: standard deviation over them; srt base: the same for base "
    "actions. gzsl: base and novel clips among all classes; area: under the curve of novel over base accuracy at every "
    "bias."
)
PAPER_NOTE = (
    "Accuracy / macro F1 in percent. base, novel: mean ± sample standard deviation (n-1) over seeds and folds. HM: "
    "harmonic mean of these two columns, as the paper's is, ± the deviation of the runs' own. "
    "SRT, as the paper prints it: mean ± standard deviation over the label sets of one run, each averaged over seeds "
    "and folds; how both vary over seeds is in table.csv. The paper calls base actions seen and novel ones unseen."
)
BESIDE_NOTE = (
    "Not in the paper: SRT base is the robustness test on base actions; GZSL has base and novel clips among all "
    "classes, its area lies under the curve of novel over base accuracy at every bias taken from base classes' scores."
)


BESIDE = {  # title of `COLUMNS` without its metric -> column of a table
    "srt base": "SRT base",
    "gzsl base": "GZSL base",
    "gzsl novel": "GZSL novel",
    "gzsl hm": "GZSL HM",
    "gzsl area": "GZSL area",
}


@dataclass(frozen=True)
class Line:
    """One setting of the sweep (a table's row, swept values without seed and fold), its cells, the runs missing."""

    setting: str
    finished: int
    missing: tuple[str, ...]
    cells: dict[str, Mean | None]  # by title of `COLUMNS`; None without a run
    printed: Printed  # what the paper prints for this row and data set
    words: str = ""  # where its words come from; empty: not said

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
        settings = run.line().items()
        words = [value if key == "row" and table else f"{key}={value}" for key, value in settings]
        groups.setdefault(" ".join(words) or "all runs", []).append(run.id)
    lines = []
    for setting, ids in groups.items():
        finished = [name for name in ids if states[name].state == "finished"]
        missing = tuple(f"{name}: {states[name].state}" for name in ids if name not in finished)
        results = [read_results(sweep.folder / name) for name in finished]
        cells = {title: cell(results, part, metric) for title, part, metric in COLUMNS}
        printed: Printed = {}
        first, said = sweep.runs[ids[0]], ""
        if table:
            config = load_config(first.overrides)
            printed, said = (
                table.paper.get(config.dataset.name, {}).get(first.settings["row"], {}),
                describe_words(config),
            )
        lines.append(Line(setting, len(finished), missing, cells, printed, said))
    return lines


def cell(results: Sequence[Mapping[str, Any]], part: str, metric: str) -> Mean | None:
    """A score over the runs of a line; a harmonic mean is that of the averaged columns."""
    if part.endswith("hm"):
        return mean_hm(results, metric, within=part.removesuffix("hm"))
    return mean_score(results, part, metric)


def describe_words(config: Config) -> str:
    """The condition of a row, for a note: whose synonyms train and test it, with M, or that labels stand alone."""
    method = config.method
    if not (method.leaf_augmentation or method.random_labels or method.shadow_negatives):
        return "labels alone"
    trained = tree_source(config.dataset.synonyms)
    tested = tree_source(config.evaluation.synonyms or config.dataset.synonyms)
    size = f"M = {method.children or 'all'} and {method.grandchildren or 'all'}"
    return f"trees {trained} ({size})" + ("" if tested == trained else f", tested with {tested}")


def tree_source(path: str | None) -> str:
    """Who made a tree file, by its `_meta`: by hand, a language model by name, WordNet."""
    file = resolve_path(path or "")
    if not file.is_file():
        return f"{path}, which is gone"
    meta = read_object(file, LabelError).get("_meta", {})
    made = " ".join(str(meta[name]) for name in ("source", "model") if name in meta) or "of unknown making"
    return f"{made}{', edited by hand' if meta.get('hand_edits') else ''} [{file.name}]"


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
    printed = [part for part in HEADINGS if any(line.printed.get(part) for line in lines)]
    beside = BESIDE if any(line.cells["gzsl base accuracy"] for line in lines) else {}
    body = []
    for line in lines:
        scores = [score_cell(line, title) for title in (*PARTS, "srt", *beside)]
        body.append([line.setting, line.count, *scores, *(printed_cell(line.printed, part) for part in printed)])
    source = f"paper: {table.source}." if printed else f"{table.source} has no numbers for this data set."
    remarks = [f"{row}: {remark}" for row, remark in table.remarks.items() if row not in absent]
    left_out = [f"not in this sweep: {', '.join(absent)}"] if absent else []
    header = ["Method", "runs", *HEADINGS.values(), *beside.values(), *(f"paper: {HEADINGS[part]}" for part in printed)]
    conditions: dict[str, list[str]] = {}
    for line in lines:
        conditions.setdefault(line.words, []).append(line.setting)
    said = [f"words, {words}: {', '.join(rows)}" for words, rows in conditions.items() if words]
    notes = [PAPER_NOTE, *([BESIDE_NOTE] if beside else []), source, *said, *remarks, *left_out, *footnotes(lines)]
    return Sheet([header, *body], notes)


def score_cell(line: Line, part: str) -> str:
    """Accuracy / F1 of a part of a line, of a robustness test its mean ± spread; the area alone."""
    if part == "gzsl area":
        return str(line.cells[part] or "-")
    pairs = []
    for metric in METRICS:
        mean, spread = line.cells[f"{part} {metric}"], line.cells.get(f"{part} {metric} spread")
        pairs.append(f"{mean.mean:.1f} ± {spread.mean:.1f}" if mean and spread else str(mean or "-"))
    return "-" if pairs == ["-", "-"] else " / ".join(pairs)


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
    rows: list[list[object]] = [["setting", "metric", "mean", "std", "runs", "missing", "paper"]]
    for line in lines:
        for title, part, metric in COLUMNS:
            mean = line.cells[title]
            numbers = [mean.mean, "" if mean.deviation is None else mean.deviation, mean.n] if mean else ["", "", 0]
            paper = printed_number(line.printed, part, metric)
            rows.append([line.setting, title, *numbers, "; ".join(line.missing), paper])
    return csv_text(rows)


def as_markdown(text: Sheet) -> str:
    """A Markdown table; reads as plain text too."""
    table = [[markdown(cell) for cell in row] for row in text.rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    body = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in table]
    body.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*body, "", *text.notes]) + "\n"


def as_latex(text: Sheet) -> str:
    """A booktabs table."""
    escapes = str.maketrans({character: "\\" + character for character in "&%$#_{}"} | LATEX_WORDS)
    header, *body = [" & ".join(cell.translate(escapes) for cell in row) + r" \\" for row in text.rows]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(text.rows[0]) - 1)}}}"
    lines = [begin, r"\toprule", header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*(f"% {' '.join(note.split())}" for note in text.notes), *lines]) + "\n"


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
