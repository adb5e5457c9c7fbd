"""Which candidates of a recipe stay, by the signal of seen actions alone, and which parts their combination keeps.

The rule is the one of `benchmarks/results/method/README.md`, to the letter. An incomplete screening is shown, and said
to decide nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ace_dist.tools.study.report import markdown_table
from ace_dist.tools.study.rows import Difference, by_method, mean_over, paired_difference
from ace_dist.tools.study.selection import SIGNALS, CellRow, cell_rows, seed_means

ACCURACY, _, MEAN, SPREAD = SIGNALS
MOST_KEPT = 3
GUARD = 2.0  # points of base accuracy that a candidate may lose in a cell
DECIMALS = 6  # means of scores with four decimals: what differs behind them is the order of a sum
Candidates = Mapping[str, Mapping[str, Sequence[str]]]  # candidate -> name of a value -> its settings


@dataclass(frozen=True)
class Design:
    """What is screened: every name on every cell and seed, compared with `reference`."""

    reference: str
    candidates: Candidates
    cells: Sequence[str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Screened:
    """A value of a candidate, or a combination of several: its differences to the reference, paired by seed.

    `gain`: base SRT mean, of each seed's mean over all cells; `gains` and `accuracies`: base SRT mean and base accuracy
    by cell. A difference is None where no seed has both. `pairs`: cells and seeds with both, of all that are planned.
    """

    name: str
    settings: int
    gain: Difference | None
    gains: Mapping[str, Difference | None]
    accuracies: Mapping[str, Difference | None]
    spread: float
    pairs: int

    @property
    def rank(self) -> tuple[float, float, int]:
        """Larger gain first; of equal ones the smaller spread, then fewer settings."""
        gain = self.gain.mean if self.gain else float("-inf")
        return -round(gain, DECIMALS), round(self.spread, DECIMALS), self.settings

    def objection(self) -> str:
        """What the rule has against it; empty when it may stay."""
        if not self.gain or round(self.gain.mean, DECIMALS) <= 0:
            return "its mean difference is not above 0"
        for cell, difference in self.accuracies.items():
            if difference and round(difference.mean, DECIMALS) < -GUARD:
                return f"base accuracy {-difference.mean:.1f} points below in {cell}"
        return ""


@dataclass(frozen=True)
class Screening:
    """`verdicts`: name of a value -> whether it stays and why not. `kept`: those that stay, the largest gain first."""

    values: Mapping[str, Screened]
    verdicts: Mapping[str, str]
    kept: Sequence[str]
    missing: int
    planned: int


@dataclass(frozen=True)
class Combination:
    """`recipe`: the parts that stay. `steps`: what was found of each part. `wanted`: a combination to run next."""

    recipe: tuple[str, ...]
    steps: Sequence[tuple[str, str]]
    wanted: str = ""


def screen(rows: Sequence[CellRow], design: Design) -> Screening:
    """Apply the selection rule: the best value of each candidate, what the rule objects to, the three largest."""
    values = {
        name: compare(rows, design, name, len(settings))
        for options in design.candidates.values()
        for name, settings in options.items()
    }
    verdicts, passed = dict[str, str](), list[str]()
    for options in design.candidates.values():
        best, *others = sorted(options, key=lambda name: values[name].rank)
        verdicts |= {name: f"out: {best} is the better value" if values[name].gain else "-" for name in others}
        objection = values[best].objection()
        verdicts[best] = (f"out: {objection}" if objection else "stays") if values[best].gain else "-"
        passed += [best] if verdicts[best] == "stays" else []
    passed.sort(key=lambda name: values[name].rank)
    verdicts |= dict.fromkeys(passed[MOST_KEPT:], f"out: {MOST_KEPT} have a larger difference")
    planned = (1 + len(values)) * len(design.cells) * len(design.seeds)
    there = {(row.method, row.cell, row.seed) for row in screened_rows(rows, design, {design.reference, *values})}
    return Screening(values, verdicts, passed[:MOST_KEPT], planned - len(there), planned)


def screened_rows(rows: Sequence[CellRow], design: Design, names: set[str]) -> list[CellRow]:
    """The rows of `names` that the design plans and that have the whole signal."""
    return [
        row
        for row in rows
        if row.experiment == "screening" and row.cell in design.cells and row.seed in design.seeds
        and row.method in names and all(row.scores.get(score) is not None for score in SIGNALS)
    ]  # fmt: skip


def compare(rows: Sequence[CellRow], design: Design, name: str, settings: int) -> Screened:
    rows = screened_rows(rows, design, {design.reference, name})
    ours = [row for row in rows if row.method == name]
    theirs = [row for row in rows if row.method == design.reference]
    means = by_method(seed_means(rows, design.cells, SIGNALS))
    cells = {cell: (cell_rows(ours, cell), cell_rows(theirs, cell)) for cell in design.cells}
    spread = mean_over(row.scores[SPREAD] for row in ours)
    return Screened(
        name,
        settings,
        paired_difference(means.get(name, []), means.get(design.reference, []), MEAN),
        {cell: paired_difference(*pair, MEAN) for cell, pair in cells.items()},
        {cell: paired_difference(*pair, ACCURACY) for cell, pair in cells.items()},
        spread.mean if spread else float("inf"),
        len({(row.cell, row.seed) for row in ours} & {(row.cell, row.seed) for row in theirs}),
    )


def combine(
    rows: Sequence[CellRow], design: Design, screening: Screening, conflict: Callable[[Sequence[str]], str]
) -> Combination:
    """Add the kept candidates one by one in the order of their gain; one that does not raise the mean is left out.

    A combination is named by its parts, `distil_1+ema_0.99`. `conflict` says why parts cannot be combined, or nothing:
    then the later one is left out, as it cannot be added. Stops at the first combination whose rows are missing.
    """
    if not screening.kept:
        return Combination((), [])
    first, *others = screening.kept
    recipe, best = [first], screening.values[first]
    steps = [(first, "the largest difference")]
    for part in others:
        parts = [*recipe, part]
        if reason := conflict(parts):
            steps.append((part, f"left out: {reason}"))
            continue
        name = "+".join(parts)
        found = compare(rows, design, name, sum(screening.values[one].settings for one in parts))
        if found.pairs < len(design.cells) * len(design.seeds) or not found.gain or not best.gain:
            return Combination(tuple(recipe), steps, name)
        better = round(found.gain.mean, DECIMALS) > round(best.gain.mean, DECIMALS)
        steps.append((part, f"{'added' if better else 'left out'}: {name} has {found.gain}, without it {best.gain}"))
        if better:
            recipe, best = parts, found
    return Combination(tuple(recipe), steps)


def screening_lines(screening: Screening, design: Design) -> list[str]:
    """Markdown: what is missing, the differences of every value, who stays and why the others do not."""
    lines = []
    if screening.missing:
        lines += [
            f"**Nothing is decided: {screening.missing} of {screening.planned} rows are missing.** What stands below "
            "is of the rows that are there and may change with every further one.", "",
        ]  # fmt: skip
    body = []
    for value in sorted(screening.values.values(), key=lambda value: value.rank):
        lost = [difference.mean for difference in value.accuracies.values() if difference]
        spread = f"{value.spread:.1f}" if value.pairs else "-"
        body.append([
            value.name, f"{value.pairs}/{len(design.cells) * len(design.seeds)}", value.gain or "-",
            *(value.gains[cell] or "-" for cell in design.cells), f"{min(lost):+.1f}" if lost else "-", spread,
            screening.verdicts[value.name],
        ])  # fmt: skip
    header = ["value", "pairs", "base SRT mean", *design.cells, "base accuracy, worst cell", "spread", "verdict"]
    kept = ", ".join(screening.kept) or "none"
    return [*lines, *markdown_table(header, body), "", f"{'So far' if screening.missing else 'Stay'}: {kept}."]


def combination_lines(combination: Combination) -> list[str]:
    lines = [f"- {part}: {finding}" for part, finding in combination.steps]
    if combination.wanted:
        return [*lines, f"- next: {combination.wanted}, whose rows are missing (`stage=combine` runs them)"]
    return [*lines, f"- recipe: {' + '.join(combination.recipe) or 'none: plain ACE is not beaten by any candidate'}"]
