"""The gain of one method over another on a grid of settings: heat maps with paired intervals, drawn from `runs.csv`.

The settings of a row are the words with `=` in its experiment and its method: `grid verb_noise=0.4 tower=clip` and
`ace`, or `grid` and `ace dataset.world.domain_shift=0.5`, whichever way the sweeps were made.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ace_dist.evaluate import figures
from ace_dist.evaluate.figures import DPI
from ace_dist.evaluate.palette import LIGHT
from ace_dist.tools.study.report import PAIRED_NOTE, markdown_table
from ace_dist.tools.study.rows import Difference, StudyRow, paired_difference, read_rows
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text

GAINS = {"novel_accuracy": "novel", "srt_accuracy_mean": "SRT mean", "srt_accuracy_std": "SRT spread"}
SMALLER_IS_BETTER = "srt_accuracy_std"
CELL_WIDTH, CELL_HEIGHT = 1.25, 0.62  # inches

Cell = tuple[str, ...]  # a value for each key of the grid


def write_gains(output: Path, experiment: str, method: str, reference: str) -> list[Path]:
    """Write `EXPERIMENT_gain.md` and a heat map for each of novel, SRT mean and SRT spread; returns the paths.

    Takes the rows of `runs.csv` in `output` whose experiment begins with the word `experiment`. Cells without a pair
    are on the page too. Raises `RunError` when no cell has one.
    """
    rows = [row for row in read_rows(output / "runs.csv") if row.experiment.split()[0] == experiment]
    keys, cells = gains(rows, method, reference)
    if not any(cells.values()):
        raise RunError(f"{output / 'runs.csv'}: no seed of {experiment} has both {method} and {reference}")
    paths = []
    for score, title in GAINS.items():
        figure = gain_figure(keys, {cell: pairs.get(score) for cell, pairs in cells.items()}, title, score)
        paths.append(figures.save(figure, output / f"{experiment}_gain_{title.replace(' ', '_')}.png"))
    body = []
    for cell, pairs in cells.items():
        n = max((difference.n for difference in pairs.values()), default=0)
        body.append([*cell, n, *(pairs.get(score, "-") for score in GAINS)])
    lines = [f"# {experiment}: {method} minus {reference}", "", PAIRED_NOTE, ""]
    lines += [*markdown_table([*keys, "n", *GAINS.values()], body), ""]
    page = output / f"{experiment}_gain.md"
    write_text(page, "\n".join([*lines, *(f"![{path.stem}]({path.name})\n" for path in paths)]).rstrip() + "\n")
    return [page, *paths]


def gains(
    rows: Sequence[StudyRow], method: str, reference: str
) -> tuple[tuple[str, ...], dict[Cell, dict[str, Difference]]]:
    """The grid's keys, and for every cell the paired differences of `GAINS`; an empty one where nothing is paired.

    Raises `RunError` when rows have no settings, or not all the same keys.
    """
    groups: dict[Cell, dict[str, list[StudyRow]]] = {}
    keys: tuple[str, ...] = ()
    for row in rows:
        words = [word.partition("=") for word in f"{row.experiment} {row.method}".split()]
        settings = {key.split(".")[-1]: value for key, equals, value in words if equals}
        keys = keys or tuple(settings)
        if set(settings) != set(keys) or not keys:
            raise RunError(
                f"{row.experiment}, {row.method}: the settings {', '.join(settings) or '(none)'} are not those of the "
                f"other rows ({', '.join(keys) or '(none)'}); a grid's experiments are named like 'grid verb_noise=0.4'"
            )
        name = " ".join(word for word in row.method.split() if "=" not in word)
        groups.setdefault(tuple(settings[key] for key in keys), {}).setdefault(name, []).append(row)
    cells: dict[Cell, dict[str, Difference]] = {}
    for cell, methods in groups.items():
        ours, theirs = methods.get(method, []), methods.get(reference, [])
        pairs = {score: paired_difference(ours, theirs, score) for score in GAINS}
        cells[cell] = {score: difference for score, difference in pairs.items() if difference is not None}
    return keys, cells


def gain_figure(keys: Sequence[str], cells: Mapping[Cell, Difference | None], title: str, score: str) -> Figure:
    """Heat map of a gain: the first key down, the second across, a panel for each combination of the others.

    Green is better, red worse, bold where the interval leaves out 0. A cell without a pair is empty and says so;
    a panel without any is left out.
    """
    values = [ordered({cell[place] for cell in cells}) for place in range(len(keys))]
    down, across = values[0], values[1] if len(keys) > 1 else [""]
    paired = {cell[2:] for cell, difference in cells.items() if difference}
    panels = [panel for panel in itertools.product(*values[2:]) if panel in paired or not paired]
    limit = max([abs(difference.mean) for difference in cells.values() if difference] or [1.0])
    size = (1.2 + CELL_WIDTH * len(across) * len(panels), 1.1 + CELL_HEIGHT * len(down))
    figure = Figure(figsize=size, dpi=DPI, facecolor=LIGHT.paper, layout="constrained")
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        grid = [[cells.get((y, *([x] if len(keys) > 1 else []), *panel)) for x in across] for y in down]
        draw_gains(axes, grid, limit, score == SMALLER_IS_BETTER)
        axes.set_xticks(range(len(across)), across)
        axes.set_yticks(range(len(down)), down if place == 0 else [""] * len(down))
        axes.set_xlabel(keys[1] if len(keys) > 1 else "", color=LIGHT.ink)
        axes.set_ylabel(keys[0] if place == 0 else "", color=LIGHT.ink)
        axes.set_title(", ".join(f"{k} {v}" for k, v in zip(keys[2:], panel, strict=True)), fontsize=9, color=LIGHT.ink)
    figure.suptitle(f"gain in {title}, percentage points", fontsize=10.5, color=LIGHT.ink)
    return figure


def draw_gains(axes: Axes, grid: Sequence[Sequence[Difference | None]], limit: float, smaller_is_better: bool) -> None:
    colours = [LIGHT.novel, LIGHT.paper, LIGHT.base]
    ramp = LinearSegmentedColormap.from_list("gain", colours[::-1] if smaller_is_better else colours)
    means = np.array([[cell.mean if cell else np.nan for cell in row] for row in grid])
    axes.imshow(means, cmap=ramp, vmin=-1.6 * limit, vmax=1.6 * limit, aspect="auto")  # pale enough for the words
    for (y, row), x in itertools.product(enumerate(grid), range(len(grid[0]))):
        text, weight = "no pair", "normal"
        if cell := row[x]:
            leaves_out_0 = cell.low is not None and cell.high is not None and cell.low * cell.high > 0
            text, weight = str(cell).replace(" ", "\n", 1), "bold" if leaves_out_0 else "normal"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color=LIGHT.ink, fontweight=weight)
    axes.tick_params(labelsize=9, length=0, colors=LIGHT.muted)
    for spine in axes.spines.values():
        spine.set_color(LIGHT.grid)


def ordered(values: set[str]) -> list[str]:
    """Numbers by size, anything else by name."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)
