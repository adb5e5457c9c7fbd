"""Which number of seen actions predicts the novel ones? Rows of the search for a recipe, and how each rule ranks them.

`runs.csv` has the columns of the tabletop study, with `cell` before them and the last validation behind, in percent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ace_dist.tools.study.rows import (
    FIELDS,
    LEVEL,
    SCORES,
    StudyRow,
    mean_over,
    parse_scores,
    read_lines,
    score_cells,
    write_lines,
)
from ace_dist.utils.errors import RunError
from ace_dist.utils.locks import lock
from ace_dist.utils.tables import unguarded

SIGNALS = (
    "validation_accuracy",
    "validation_f1",
    "validation_srt_accuracy_mean",
    "validation_srt_accuracy_std",
)
COLUMNS = ("cell", *FIELDS, *SIGNALS)
TARGET = "srt_accuracy_mean"  # of novel actions
Scores = Mapping[str, float | None]
FloatArray = NDArray[np.float64]
RULES: Mapping[str, Callable[[Mapping[str, float]], float]] = {
    "base accuracy": lambda scores: scores["validation_accuracy"],
    "base SRT mean": lambda scores: scores["validation_srt_accuracy_mean"],
    "base SRT mean - spread": lambda scores: (
        scores["validation_srt_accuracy_mean"] - scores["validation_srt_accuracy_std"]
    ),
}


@dataclass(frozen=True)
class CellRow:
    """A line of `runs.csv`; a score that was not taken is None. `experiment`: screening, full or signal."""

    cell: str
    experiment: str
    method: str
    seed: int
    scores: Scores

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.cell, self.experiment, self.method, self.seed


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation, averaged over cells, and its bootstrap interval."""

    mean: float
    low: float
    high: float
    cells: int
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}] ({self.runs} runs, {self.cells} cells)"


def read_cell_rows(path: Path) -> list[CellRow]:
    """Rows of `runs.csv`, none when there is no such file. Raises `RunError` naming a line that is no row."""

    def parse(line: Mapping[str, str]) -> CellRow:
        cell, experiment, method = (unguarded(line[name]) for name in ("cell", "experiment", "method"))
        return CellRow(cell, experiment, method, int(line["seed"]), parse_scores(line, (*SCORES, *SIGNALS)))

    return read_lines(path, [COLUMNS], parse)


def write_cell_rows(rows: Sequence[CellRow], path: Path) -> None:
    """Write `runs.csv`, scores with four decimals; of two rows of one run the later one."""
    kept = {row.key: row for row in rows}.values()
    write_lines(path, COLUMNS, ([*row.key, *score_cells(map(row.scores.get, (*SCORES, *SIGNALS)))] for row in kept))


def add_cell_row(row: CellRow, path: Path) -> None:
    """Add a line to `runs.csv`. Several processes may do so at once: each waits until the one before has written."""
    with lock(path.with_name(f".{path.name}.lock")):
        write_cell_rows([*read_cell_rows(path), row], path)


def cell_rows(rows: Sequence[CellRow], cell: str) -> list[StudyRow]:
    """The rows of one cell, for differences paired by seed."""
    return [StudyRow(row.experiment, row.method, row.seed, row.scores) for row in rows if row.cell == cell]


def seed_means(rows: Sequence[CellRow], cells: Sequence[str], scores: Sequence[str]) -> list[StudyRow]:
    """The mean over `cells` of each method and seed, the unit of the study; None where a cell lacks the score."""
    found: dict[tuple[str, str, int], dict[str, Scores]] = {}
    for row in rows:
        found.setdefault((row.experiment, row.method, row.seed), {})[row.cell] = row.scores
    means = []
    for (experiment, method, seed), by_cell in found.items():
        values = {score: [by_cell.get(cell, {}).get(score) for cell in cells] for score in scores}
        whole = {score: None if None in these else mean_over(these) for score, these in values.items()}
        means.append(StudyRow(experiment, method, seed, {s: mean.mean if mean else None for s, mean in whole.items()}))
    return means


def rank_correlations(rows: Sequence[CellRow], resamples: int = 2000, seed: int = 0) -> dict[str, Correlation]:
    """How well each of `RULES` ranks the runs of a cell by the SRT mean of novel actions, over all methods and seeds.

    Cells are never ranked together: an easy world would pass for a good rule. The interval resamples seeds, all cells
    and methods of a seed at once, since they share held-out people, words and draws. Rows without both scores do not
    count. Raises `RunError` when no cell has three.
    """
    cells: dict[str, list[CellRow]] = {}
    for row in rows:
        if all(row.scores.get(name) is not None for name in (TARGET, *SIGNALS)):
            cells.setdefault(row.cell, []).append(row)
    tables = [cell_table(cell) for cell in cells.values() if len(cell) > 2]
    if not tables:
        raise RunError("no cell has three runs with both the base signal and a test: there is nothing to rank")
    rng, found = np.random.default_rng(seed), np.empty((resamples, len(RULES)))
    seeds = np.unique(np.concatenate([table[:, 0] for table in tables]))
    for resample in range(resamples):
        drawn = rng.choice(seeds, len(seeds))
        known = [table for table in (of_seeds(table, drawn) for table in tables) if len(table) > 2]
        found[resample] = np.mean([correlate(table) for table in known], axis=0) if known else np.nan
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.nanpercentile(found, [tail, 100 - tail], axis=0)
    means = np.mean([correlate(table) for table in tables], axis=0)
    runs = sum(map(len, tables))
    return {
        rule: Correlation(float(means[i]), float(low[i]), float(high[i]), len(tables), runs)
        for i, rule in enumerate(RULES)
    }


def cell_table(rows: Sequence[CellRow]) -> FloatArray:
    """A row a run: its seed, its target, the value of each rule."""
    lines = []
    for row in rows:
        scores = {name: value for name, value in row.scores.items() if value is not None}
        lines.append([row.seed, scores[TARGET], *(rule(scores) for rule in RULES.values())])
    return np.array(lines)


def of_seeds(table: FloatArray, seeds: FloatArray) -> FloatArray:
    """The runs of these seeds, as often as each is named."""
    return np.concatenate([table[table[:, 0] == one] for one in seeds])


def correlate(table: FloatArray) -> FloatArray:
    """Spearman's correlation of the target with each rule; 0 for one that gives all runs the same value."""
    ranks = rankdata(table[:, 1:], axis=0)
    ranks = ranks - ranks.mean(0)
    lengths = np.sqrt((ranks**2).sum(0))
    products, lengths = ranks[:, 0] @ ranks[:, 1:], lengths[0] * lengths[1:]
    correlations: FloatArray = np.divide(products, lengths, out=np.zeros(len(products)), where=lengths > 0)
    return correlations
