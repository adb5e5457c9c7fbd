"""Owns a study: the rows of finished runs in `runs.csv`, their means, and paired differences with an interval.

Everything is in percent. A pair is two runs of one seed: the same clips in the same order, another method.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from ace_dist.evaluate.metrics import concept_distances
from ace_dist.evaluate.run_files import read_results, read_space
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text

SCORES = {  # column of runs.csv -> part and metric of results.json
    "base_accuracy": ("base", "accuracy"),
    "base_f1": ("base", "f1"),
    "novel_accuracy": ("novel", "accuracy"),
    "novel_f1": ("novel", "f1"),
    "srt_accuracy_mean": ("srt", "accuracy_mean"),
    "srt_accuracy_std": ("srt", "accuracy_std"),
    "srt_f1_mean": ("srt", "f1_mean"),
    "srt_f1_std": ("srt", "f1_std"),
}
FIELDS = ("experiment", "method", "seed", *SCORES)
TITLES = {
    "base_accuracy": "base",
    "novel_accuracy": "novel",
    "srt_accuracy_mean": "SRT mean",
    "srt_accuracy_std": "SRT spread",
}
LEVEL = 0.95
NOTE = (
    "Percent. mean ± sample standard deviation (n-1) over n seeds. SRT mean and spread: mean and standard deviation "
    "over the label sets of one run."
)
PAIRED_NOTE = (
    f"Accuracy, paired by seed, with Student's {LEVEL:.0%} interval over n seeds; not corrected for the number of "
    "comparisons. Seeds share the test clips and label sets, so the interval says nothing of other clips or words."
)
FIGURE_NOTE = (
    "Box plots: every label set of every seed, a line of dots a seed, the diamond under the root labels. Curves: "
    "shaded is the deviation over seeds, of SRT the mean spread over label sets."
)
CONCEPT_NOTE = "Cosine distances of phrase embeddings within an action and between actions, mean ± deviation over runs."


@dataclass(frozen=True)
class PlannedRun:
    """A run of a sweep: what it is called, its seed, where its results would be. Folds are runs of the same name."""

    method: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class StudyRow:
    """A line of `runs.csv`; a score is `None` when the test split has no such actions."""

    experiment: str
    method: str
    seed: int
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Study:
    """What a sweep gave: rows, the results and folders behind them by method, and what is missing, in words."""

    rows: tuple[StudyRow, ...]
    results: Mapping[str, tuple[dict[str, Any], ...]]
    folders: Mapping[str, tuple[Path, ...]]
    missing: tuple[str, ...]
    history: tuple[str, ...] = field(default=())  # hardware and commits of the runs


@dataclass(frozen=True)
class Difference:
    """Mean of n paired differences and its interval; no interval out of one pair."""

    mean: float
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.1f} (one seed)"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


# ------------------------------------------------------------------------------------------------------------ rows
def gather(planned: Iterable[PlannedRun], experiment: str) -> Study:
    """One row for each method and seed whose runs are all finished: the mean over its folds, as the paper has it.

    A run without `results.json` is in `missing`. Raises `RunError` for a damaged file, or when none is finished.
    """
    groups: dict[tuple[str, int], list[Path]] = {}
    for run in planned:
        groups.setdefault((run.method, run.seed), []).append(run.folder)
    rows, results, missing = list[StudyRow](), dict[str, tuple[dict[str, Any], ...]](), list[str]()
    finished, history, seconds = dict[str, tuple[Path, ...]](), dict[str, None](), list[float]()
    for (method, seed), folders in groups.items():
        absent = [folder for folder in folders if not (folder / "results.json").is_file()]
        if absent:
            names = ", ".join(folder.name for folder in absent)
            missing.append(f"{method}, seed {seed}: {names} not finished")
            continue
        found = [read_results(folder) for folder in folders]
        rows.append(StudyRow(experiment, method, seed, {name: fold_mean(found, *at) for name, at in SCORES.items()}))
        results[method] = (*results.get(method, ()), *found)
        finished[method] = (*finished.get(method, ()), *folders)
        history.update(dict.fromkeys(map(made_on, folders)))
        seconds += [value for folder in folders if (value := training_seconds(folder)) is not None]
    if not rows:
        raise RunError(f"no run is finished: {'; '.join(missing[:4]) or 'the sweep has no runs'}")
    if seconds:
        history[f"training {min(seconds):.0f} to {max(seconds):.0f} s a run, evaluation not counted"] = None
    return Study(tuple(rows), results, finished, tuple(missing), tuple(history))


def fold_mean(results: Sequence[Mapping[str, Any]], part: str, metric: str) -> float | None:
    """A score averaged over folds; folds without such actions do not count."""
    values = [float(result[part][metric]) for result in results if result[part] is not None]
    return statistics.fmean(values) if values else None


def made_on(folder: Path) -> str:
    """Commit and hardware of a run, in one line."""
    path = folder / "environment.json"
    if not path.is_file():
        return f"{folder.name}: no environment.json, so commit and hardware are unknown"
    facts = json.loads(path.read_text(encoding="utf-8"))
    git, hardware = facts["git"], facts["hardware"]
    commit = str(git["commit"])[:10] + (" with uncommitted changes" if git["modified"] else "")
    gpus = f", {', '.join(hardware['gpus'])}" if "gpus" in hardware else ""
    return f"commit {commit}, {facts['world_size']} rank(s), {hardware['cpu']} ({hardware['cores']} cores{gpus})"


def training_seconds(folder: Path) -> float | None:
    """Seconds from the start, or the last continuation, of a run to its last step; `None` when no step was logged."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return float(json.loads(lines[-1])["elapsed_s"]) if lines else None


def read_rows(path: Path) -> list[StudyRow]:
    """The lines of `runs.csv`; none without such a file. Raises `RunError` for other columns or bad numbers."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise RunError(f"{path}: expected the columns {','.join(FIELDS)}, found {reader.fieldnames}")
        rows = []
        for number, line in enumerate(reader, start=2):
            try:
                scores = {name: float(line[name]) if line[name] else None for name in SCORES}
                rows.append(StudyRow(line["experiment"], line["method"], int(line["seed"]), scores))
            except (TypeError, ValueError) as error:
                raise RunError(f"{path}, line {number}: {error}") from error
    return rows


def merge_rows(old: Sequence[StudyRow], new: Sequence[StudyRow]) -> list[StudyRow]:
    """Both, a new row in the place of an old one of the same experiment, method and seed; no other is lost."""
    rows = {(row.experiment, row.method, row.seed): row for row in [*old, *new]}
    return list(rows.values())


def write_rows(rows: Sequence[StudyRow], path: Path) -> None:
    """Write `runs.csv`, scores with four decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FIELDS)
    for row in rows:
        scores = ["" if value is None else f"{value:.4f}" for value in (row.scores[name] for name in SCORES)]
        writer.writerow([row.experiment, row.method, row.seed, *scores])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text.getvalue())


# --------------------------------------------------------------------------------------------------------- numbers
def mean_and_deviation(rows: Sequence[StudyRow], score: str) -> tuple[float, float | None, int] | None:
    """Mean, sample standard deviation (`None` out of one) and number of a score over rows; `None` without any."""
    values = [value for row in rows if (value := row.scores[score]) is not None]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)


def paired_difference(rows: Sequence[StudyRow], reference: Sequence[StudyRow], score: str) -> Difference | None:
    """Mean of `rows` minus `reference` over the seeds that both have, mean ± t(n-1) s/√n; `None` without a pair."""
    other = {row.seed: row.scores[score] for row in reference}
    pairs = [(row.scores[score], other[row.seed]) for row in rows if row.seed in other]
    differences = np.array([a - b for a, b in pairs if a is not None and b is not None])
    n = len(differences)
    if n == 0:
        return None
    mean = float(differences.mean())
    if n == 1:
        return Difference(mean, None, None, 1)
    half = float(student_t.ppf((1 + LEVEL) / 2, n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


# ------------------------------------------------------------------------------------------------------------ page
def concept_table(folders: Mapping[str, Sequence[Path]]) -> list[str]:
    """Cosine distances within and between the concepts of the text tower, before and after training, a line a method.

    What the paper's Fig. 5 suggests, measured in the full space over all phrases: mean ± deviation over runs. Raises
    `RunError` when a run has no `concept_space.npz`.
    """
    lines = [
        "| method | n | within, before | within, after | between, before | between, after |",
        "|---|" + "---:|" * 5,
    ]
    for method, runs in folders.items():
        cells = []
        spaces = [read_space(folder) for folder in runs]
        before, after = (
            [concept_distances(getattr(space, when), space.actions) for space in spaces] for when in ("before", "after")
        )
        for name in ("within", "between"):
            for distances in (before, after):
                values = [found[name] for found in distances]
                deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
                cells.append(f"{statistics.fmean(values):.3f}{deviation}")
        lines.append(f"| {method} | {len(spaces)} | {' | '.join(cells)} |")
    return lines


def study_page(
    rows: Sequence[StudyRow],
    reference: str,
    missing: Sequence[str],
    history: Sequence[str],
    figures: Sequence[Path],
    concepts: Sequence[str] = (),
) -> str:
    """Markdown of one experiment: means, differences to `reference`, what is missing, how it was made, the figures.

    `concepts`: the lines of `concept_table`.

    Raises `RunError` when no row is of the reference.
    """
    methods: dict[str, list[StudyRow]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    if reference not in methods:
        raise RunError(f"reference={reference} has no finished run; there are {', '.join(methods)}")
    lines = [f"# {rows[0].experiment}", "", NOTE, "", *summary_table(methods), ""]
    lines += [f"## Difference to {reference}", "", PAIRED_NOTE, "", *difference_table(methods, reference), ""]
    if concepts:
        lines += ["## Concept space", "", CONCEPT_NOTE, "", *concepts, ""]
    gaps = [*missing, *unpaired(methods, reference)]
    if gaps:
        lines += ["## Missing", "", *(f"- {gap}" for gap in gaps), ""]
    if history:
        lines += ["## Made by", "", *(f"- {line}" for line in history), ""]
    if figures:
        lines += [FIGURE_NOTE, ""]
    return "\n".join([*lines, *(f"![{path.stem}]({path.name})\n" for path in figures)]).rstrip() + "\n"


def summary_table(methods: Mapping[str, Sequence[StudyRow]]) -> list[str]:
    """Mean ± deviation of every score, a line a method."""
    lines = ["| method | n | " + " | ".join(name.replace("_", " ") for name in SCORES) + " |"]
    lines.append("|---|" + "---:|" * (len(SCORES) + 1))
    for method, rows in methods.items():
        cells = []
        for name in SCORES:
            found = mean_and_deviation(rows, name)
            deviation = "" if found is None or found[1] is None else f" ± {found[1]:.1f}"
            cells.append("-" if found is None else f"{found[0]:.1f}{deviation}")
        lines.append(f"| {method} | {len(rows)} | {' | '.join(cells)} |")
    return lines


def difference_table(methods: Mapping[str, Sequence[StudyRow]], reference: str) -> list[str]:
    """Paired differences in accuracy to the reference, a line a method."""
    lines = [f"| method | n | {' | '.join(TITLES.values())} |", "|---|" + "---:|" * (len(TITLES) + 1)]
    for method, rows in methods.items():
        if method != reference:
            found = [paired_difference(rows, methods[reference], name) for name in TITLES]
            n = max((difference.n for difference in found if difference), default=0)
            lines.append(f"| {method} | {n} | {' | '.join('-' if d is None else str(d) for d in found)} |")
    return lines


def unpaired(methods: Mapping[str, Sequence[StudyRow]], reference: str) -> list[str]:
    """Seeds that are in no pair, in words."""
    known = {row.seed for row in methods[reference]}
    gaps = []
    for method, rows in methods.items():
        odd = sorted({row.seed for row in rows} ^ known)
        if odd:
            gaps.append(f"{method} and {reference} are not paired at seed {', '.join(map(str, odd))}")
    return gaps
