"""The full test of a recipe: comparisons with Holm's correction, the goal's parts, ablations, fresh cells.

The unit is a seed's mean over all cells, the test Student's on paired differences
(`benchmarks/results/method/README.md`).
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.figure import Figure
from scipy.stats import t as student_t

from ace_dist.evaluate.palette import method_name
from ace_dist.tools.study.drawing import SCORES, gain_counts, gains_figure
from ace_dist.tools.study.report import markdown_table
from ace_dist.tools.study.rows import (
    LEVEL,
    Difference,
    StudyRow,
    by_method,
    mean_over,
    paired_difference,
    paired_differences,
)
from ace_dist.tools.study.selection import CellRow, cell_rows, seed_means

SEEN, UNSEEN, MEAN, SPREAD = SCORES
ALPHA = 0.05  # of the whole family
CELL_LOSS, SEEN_LOSS = 2.0, 1.0  # points that the goal allows, in a cell to plain fine-tuning, and to the best row
DECIMALS = 6  # means of scores with four decimals: what differs behind them is the order of a sum


@dataclass(frozen=True)
class FullTest:
    """`recipe` against `rows`, of which `plain` is plain fine-tuning, on every cell and seed; names of `runs.csv`."""

    recipe: str
    rows: Sequence[str]
    plain: str
    ablations: Sequence[str]
    cells: Sequence[str]
    seeds: Sequence[int]

    @property
    def level(self) -> float:
        """Of the family's intervals: Bonferroni's, over unseen and SRT mean of every row, one spread, one seen."""
        return 1 - ALPHA / (2 * len(self.rows) + 2)


@dataclass(frozen=True)
class Comparison:
    """Recipe minus another row in one score. `p` is two-sided; `certain`: below Holm's bound in the whole family."""

    score: str
    other: str
    difference: Difference
    p: float
    certain: bool = False

    def __str__(self) -> str:
        return f"{method_name(self.other)} in {SCORES[self.score]} ({self.difference})"


@dataclass(frozen=True)
class Goal:
    """A part of the goal: `verdict` is reached, not reached or missing rows."""

    name: str
    verdict: str
    finding: str = ""


def tested_rows(rows: Sequence[CellRow], test: FullTest, methods: Sequence[str]) -> list[CellRow]:
    """The rows of `methods` that the test plans and that have all of its scores."""
    return [
        row
        for row in rows
        if row.experiment == "full" and row.cell in test.cells and row.seed in test.seeds and row.method in methods
        and all(row.scores.get(score) is not None for score in SCORES)
    ]  # fmt: skip


def missing_rows(rows: Sequence[CellRow], test: FullTest, methods: Sequence[str]) -> int:
    there = {(row.cell, row.method, row.seed) for row in tested_rows(rows, test, methods)}
    return len(methods) * len(test.cells) * len(test.seeds) - len(there)


def units(rows: Sequence[CellRow], test: FullTest) -> dict[str, list[StudyRow]]:
    """Each method's means over all cells, a row a seed that has all cells."""
    methods = [test.recipe, *test.rows, *test.ablations]
    means = seed_means(tested_rows(rows, test, methods), test.cells, [*SCORES])
    return by_method(row for row in means if None not in row.scores.values())


def family(means: Mapping[str, Sequence[StudyRow]], test: FullTest) -> list[Comparison]:
    """The comparisons that the goal speaks of, tested as one family; those without two pairs are left out.

    The evenest row is that of the smallest mean spread, the best on seen actions that of the largest mean.
    """

    def overall(row: str, score: str) -> float:
        return statistics.fmean(one.scores[score] or 0.0 for one in means[row])

    known = [row for row in test.rows if row in means]
    pairs = [(score, row) for score in (UNSEEN, MEAN) for row in known]
    if known:
        pairs += [(SPREAD, min(known, key=lambda row: overall(row, SPREAD)))]
        pairs += [(SEEN, max(known, key=lambda row: overall(row, SEEN)))]
    found = []
    for score, row in pairs:
        ours = means.get(test.recipe, [])
        difference = paired_difference(ours, means[row], score, test.level)
        if difference and difference.n > 1:
            found.append(Comparison(score, row, difference, paired_p(paired_differences(ours, means[row], score))))
    certain = holm([comparison.p for comparison in found], 2 * len(test.rows) + 2)
    return [replace(comparison, certain=sure) for comparison, sure in zip(found, certain, strict=True)]


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of Student's test that the mean of two or more paired differences is 0."""
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return float(mean == 0)
    return float(2 * student_t.sf(abs(mean) / deviation * math.sqrt(len(differences)), len(differences) - 1))


def holm(p_values: Sequence[float], size: int, alpha: float = ALPHA) -> list[bool]:
    """Which are below Holm's bound in a family of `size` tests (Holm, 1979); those not made count as not rejected."""
    rejected = [False] * len(p_values)
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] > alpha / (size - place):
            break
        rejected[index] = True
    return rejected


def goals(
    rows: Sequence[CellRow], comparisons: Sequence[Comparison], test: FullTest, others: Sequence[str] = ()
) -> list[Goal]:
    """Each part of the goal. Ahead is meant beyond chance; the bounds on losses are of the means, as measured.

    `others`: cells beside those of the family; it may lose in none of them either.
    """
    every = replace(test, cells=(*test.cells, *others))
    all_missing = missing_rows(rows, test, [test.recipe, *test.rows])
    plain_missing = missing_rows(rows, every, [test.recipe, test.plain])
    names = (
        "ahead of every row on unseen actions and in SRT mean",
        "SRT spread no larger than that of the evenest row",
        f"no cell where it loses more than {CELL_LOSS:g} points to {method_name(test.plain)}",
        f"seen actions within {SEEN_LOSS:g} point of the best row",
    )
    missing = (all_missing, all_missing, plain_missing, all_missing)
    parts: tuple[Callable[[], tuple[bool, str]], ...] = (
        lambda: ahead(comparisons), lambda: even(comparisons),
        lambda: cell_losses(rows, every), lambda: seen(comparisons),
    )  # fmt: skip
    found = []
    for name, absent, part in zip(names, missing, parts, strict=True):
        if absent:
            found.append(Goal(name, "missing rows", f"{absent} of them"))
        else:
            reached, finding = part()
            found.append(Goal(name, "reached" if reached else "not reached", finding))
    return found


def ahead(comparisons: Sequence[Comparison]) -> tuple[bool, str]:
    asked = [one for one in comparisons if one.score in (UNSEEN, MEAN)]
    others = [one for one in asked if not (one.certain and one.difference.mean > 0)]
    finding = f"ahead in {len(asked) - len(others)} of {len(asked)}"
    return not others, finding + (f"; not of {', '.join(map(str, others))}" if others else "")


def even(comparisons: Sequence[Comparison]) -> tuple[bool, str]:
    (one,) = (one for one in comparisons if one.score == SPREAD)
    return round(one.difference.mean, DECIMALS) <= 0, f"against {one}{doubt(one, 0.0, -1)}"


def seen(comparisons: Sequence[Comparison]) -> tuple[bool, str]:
    (one,) = (one for one in comparisons if one.score == SEEN)
    return round(one.difference.mean, DECIMALS) >= -SEEN_LOSS, f"against {one}{doubt(one, -SEEN_LOSS, 1)}"


def doubt(one: Comparison, bound: float, better: int) -> str:
    """Says where a mean keeps within a bound and its interval does not."""
    worst = one.difference.low if better > 0 else one.difference.high
    kept, sure = ((value - bound) * better >= 0 for value in (one.difference.mean, worst or 0.0))
    return ", by its mean; its interval leaves the bound" if kept and not sure else ""


def cell_losses(rows: Sequence[CellRow], test: FullTest) -> tuple[bool, str]:
    found = {
        (cell, score): pair
        for cell, gains in by_cell(rows, test, test.plain).items()
        for score, pair in gains.items()
        if score in (UNSEEN, MEAN)
    }
    lost = [place for place, pair in found.items() if round(pair.mean, DECIMALS) < -CELL_LOSS]
    least = min(found, key=lambda place: found[place].mean)
    said = "; ".join(f"{SCORES[score]} in {cell}: {found[cell, score]}" for cell, score in lost or [least])
    return not lost, said if lost else f"least {said}"


def by_cell(rows: Sequence[CellRow], test: FullTest, other: str) -> dict[str, dict[str, Difference]]:
    """Recipe minus another row in each cell, with plain intervals."""
    ours, theirs = (tested_rows(rows, test, [name]) for name in (test.recipe, other))
    return {cell: differences(cell_rows(ours, cell), cell_rows(theirs, cell)) for cell in test.cells}


def differences(ours: Sequence[StudyRow], theirs: Sequence[StudyRow], level: float = LEVEL) -> dict[str, Difference]:
    """Of every score that some seed of both has."""
    pairs = {score: paired_difference(ours, theirs, score, level) for score in SCORES}
    return {score: pair for score, pair in pairs.items() if pair}


def all_gains(
    means: Mapping[str, Sequence[StudyRow]], test: FullTest, names: Sequence[str], level: float
) -> dict[str, dict[str, Difference]]:
    """Recipe minus each of `names`, as readers know them."""
    ours = means.get(test.recipe, [])
    gains = {method_name(name): differences(ours, means.get(name, []), level) for name in names}
    return {name: pairs for name, pairs in gains.items() if pairs}


def forest(rows: Sequence[CellRow], test: FullTest) -> Figure | None:
    """Recipe minus each row, with the family's intervals; None before a seed has all cells of a pair."""
    gains = all_gains(units(rows, test), test, test.rows, test.level)
    if not gains:
        return None
    ahead_of, behind, known = gain_counts(gains)
    title = f"Under other words {method_name(test.recipe)} is ahead of {ahead_of} of {known} rows, behind {behind}"
    return gains_figure(gains, title, test.level)


# ------------------------------------------------------------------------------------------------------------- page
def full_test_lines(rows: Sequence[CellRow], test: FullTest, fresh: FullTest) -> Iterator[str]:
    """Markdown: means, the goal, the family, differences by cell, ablations, and the fresh cells apart."""
    means = units(rows, test)
    comparisons = family(means, test)
    yield from ["## Full test", "", *missing_lines(rows, test), *mean_table(means), ""]
    yield from ["### Goal", ""]
    parts = goals(rows, comparisons, test, fresh.cells)
    yield from markdown_table(["part", "", ""], [[one.name, one.verdict, one.finding] for one in parts])
    yield from [
        "", "### Family", "",
        f"{method_name(test.recipe)} minus the row, over seeds' means of {len(test.cells)} cells: Student's "
        f"{100 * test.level:.4g} % interval, p before correction, and what Holm's correction at 5 % says. Holm may "
        "decide where such an interval holds 0: only its smallest p must pass the bound of that width.", "",
    ]  # fmt: skip
    yield from markdown_table(["score", "row", "difference", "p", "Holm, 5 %"], map(family_cells, comparisons))
    for score in (UNSEEN, MEAN):
        yield from ["", f"### {SCORES[score]} by cell", "", "Plain intervals over seeds.", ""]
        yield from cell_table(rows, test, score)
    if test.ablations:
        yield from ["", "### Ablations", "", "The whole recipe minus it without one part; plain intervals.", ""]
        yield from gain_table(all_gains(means, test, test.ablations, LEVEL))
    yield from ["", "### Fresh cells", "", f"Outside the family; its {100 * test.level:.4g} % intervals.", ""]
    yield from [*missing_lines(rows, fresh), *mean_table(units(rows, fresh)), ""]
    yield from gain_table(all_gains(units(rows, fresh), fresh, fresh.rows, test.level))
    for score in (UNSEEN, MEAN):
        yield from ["", f"{SCORES[score]} by cell, plain intervals:", "", *cell_table(rows, fresh, score)]


def missing_lines(rows: Sequence[CellRow], test: FullTest) -> list[str]:
    methods = [test.recipe, *test.rows, *test.ablations]
    found = {name: number for name in methods if (number := missing_rows(rows, test, [name]))}
    said = ", ".join(f"{method_name(name)} {number}" for name, number in found.items())
    planned = len(test.cells) * len(test.seeds)
    return [f"**Rows are missing** ({planned} are planned of each): {said}.", ""] if found else []


def mean_table(means: Mapping[str, Sequence[StudyRow]]) -> list[str]:
    body = []
    for method, rows in means.items():
        scores = (mean_over(row.scores[score] for row in rows) for score in SCORES)
        body.append([method_name(method), len(rows), *(score or "-" for score in scores)])
    return markdown_table(["row", "n", *SCORES.values()], body)


def family_cells(one: Comparison) -> list[object]:
    side = ("ahead" if (one.difference.mean > 0) == (one.score != SPREAD) else "behind") if one.certain else "open"
    return [SCORES[one.score], method_name(one.other), one.difference, f"{one.p:.2g}", side]


def cell_table(rows: Sequence[CellRow], test: FullTest, score: str) -> list[str]:
    gains = {row: by_cell(rows, test, row) for row in test.rows}
    body = [[cell, *(gains[row][cell].get(score, "-") for row in test.rows)] for cell in test.cells]
    return markdown_table(["cell", *map(method_name, test.rows)], body)


def gain_table(gains: Mapping[str, Mapping[str, Difference]]) -> list[str]:
    body = [[name, *(pairs.get(score, "-") for score in SCORES)] for name, pairs in gains.items()]
    return markdown_table(["row", *SCORES.values()], body)
