"""The figures of a study, drawn from `runs.csv` alone: scores by method, curves over a number, gains over settings.

One meaning of every bar and band: Student's 95 % interval of a mean over seeds. A dashed line is what guessing scores.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ace_dist.evaluate import figures
from ace_dist.evaluate.figures import Style
from ace_dist.evaluate.palette import BLUE, LIGHT, METHODS, SKY, VERMILLION, method_colours, method_name, stem
from ace_dist.tools.study.rows import LEVEL, Difference, StudyRow, by_method, mean_interval, mean_over, scored

SCORES = {
    "base_accuracy": "base",
    "novel_accuracy": "novel",
    "srt_accuracy_mean": "SRT mean",
    "srt_accuracy_std": "SRT spread",
}
GAINS = {score: name for score, name in SCORES.items() if score != "base_accuracy"}  # of a forest plot
SMALLER_IS_BETTER = "srt_accuracy_std"
LINES = {  # score of a curve -> its name and colour
    "base_accuracy": ("base", LIGHT.base),
    "novel_accuracy": ("novel", LIGHT.novel),
    "srt_accuracy_mean": ("SRT mean", BLUE),
    "srt_base_accuracy_mean": ("SRT mean of base actions", SKY),
}
NOTE = f"Dot: one seed. Bar: Student's {LEVEL:.0%} interval of the mean over seeds. Dashed: chance."
BAND_NOTE = f"Point: mean over seeds. Band: its Student's {LEVEL:.0%} interval. Dashed: chance of novel actions."


def row_name(key: str) -> str:
    """What readers know a row of `runs.csv` as."""
    return method_name(key) if stem(key, METHODS) else key.replace("_", " ")


def chances(rows: Sequence[StudyRow]) -> dict[str, float]:
    """What guessing scores, where the rows of `random`, of one data set, say one value."""
    found: dict[str, set[float]] = {}
    for row in rows:
        for score, value in row.scores.items():
            if row.method == "random" and value is not None:
                found.setdefault(score, set()).add(round(value, 3))
    return {score: values.pop() for score, values in found.items() if len(values) == 1}


def draw_study(
    rows: Sequence[StudyRow], curves: Mapping[str, Mapping[float, str]], path: Path, chance: Mapping[str, float]
) -> list[Path]:
    """Write the figures of one experiment beside `path`, a file's name without its ending; returns their paths.

    `curves`: axis label -> number -> method; one of fewer than two points is not drawn.
    """
    methods = by_method(rows)
    drawings = {"scores": scores_figure(methods, chance)}
    for number, (axis, names) in enumerate(curves.items(), start=1):
        points = {x: methods[method] for x, method in sorted(names.items()) if method in methods}
        if len(points) > 1:
            drawings[f"curve{number}"] = curve_figure(points, axis, chance)
    path.parent.mkdir(parents=True, exist_ok=True)
    return [figures.save(figure, path.with_name(f"{path.name}_{name}.png")) for name, figure in drawings.items()]


def scores_figure(methods: Mapping[str, Sequence[StudyRow]], chance: Mapping[str, float]) -> Figure:
    """A panel a score, a row a method: a dot a seed, the mean and its interval."""
    scores = scored(SCORES, methods)
    shown = {method: rows for method, rows in methods.items() if method != "random"} or dict(methods)
    title, note = (
        finding_title(shown),
        NOTE + (" Of the spread, smaller is better." if SMALLER_IS_BETTER in scores else ""),
    )
    figure, axes = figures.panels(9.6, 1.5 + 0.36 * len(shown), max(len(scores), 1), title, note)
    known = any(stem(method, METHODS) for method in shown)
    colours = method_colours([*shown]) if known else [BLUE] * len(shown)
    for one, score in zip(axes, scores, strict=False):
        for y, (rows, colour) in enumerate(zip(shown.values(), colours, strict=True)):
            draw_interval(one, [v for row in rows if (v := row.scores[score]) is not None], y, colour)
        if score in chance and score != SMALLER_IS_BETTER:
            figures.chance_line(one, chance[score], upright=True)
        one.set_xlim(left=0)
        one.set_title(f"{SCORES[score]} (%)", fontsize=10, color=LIGHT.ink, loc="left")
        one.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(shown)), [figures.short(row_name(method), 34) for method in shown], color=LIGHT.ink)
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    return figure


def finding_title(methods: Mapping[str, Sequence[StudyRow]]) -> str:
    """The finding of a comparison: which method is best under other words, or on what else was tested."""
    for score, words in (
        ("srt_accuracy_mean", "under other words"),
        ("novel_accuracy", "on novel actions"),
        ("base_accuracy", "on base actions"),
    ):
        means = {method: mean_over(row.scores[score] for row in rows) for method, rows in methods.items()}
        found = {method: mean for method, mean in means.items() if mean is not None}
        if found:
            best = max(found, key=lambda method: found[method].mean)
            others = [mean.mean for method, mean in found.items() if method != best]
            return f"Best {words}: {row_name(best)}, {found[best]} %{beside_the_best(others)}"
    return "Nothing was tested"


def beside_the_best(others: Sequence[float]) -> str:
    if not others:
        return ""
    if len(others) == 1:
        return f", the other {others[0]:.1f}"
    return f"; the others {min(others):.1f} to {max(others):.1f}"


def draw_interval(axes: Axes, values: Sequence[float], y: float, colour: str) -> None:
    if not values:
        return
    low, high = mean_interval(values)
    spread: Style = {"color": colour, "s": 13, "alpha": 0.55, "linewidth": 0, "zorder": 3}
    axes.scatter(values, y + np.linspace(-0.16, 0.16, len(values)), **spread)
    axes.plot([low, high], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt", zorder=4)
    axes.scatter([np.mean(values)], [y], s=42, color=colour, edgecolor=LIGHT.paper, linewidth=1.2, zorder=5)


def curve_figure(points: Mapping[float, Sequence[StudyRow]], axis: str, chance: Mapping[str, float]) -> Figure:
    """Scores over a number, with the interval of each mean."""
    figure, (axes,) = figures.panels(6.4, 3.9, 1, trend(points, axis), BAND_NOTE)
    for score, (name, colour) in LINES.items():
        found = {x: [v for row in rows if (v := row.scores[score]) is not None] for x, rows in points.items()}
        found = {x: values for x, values in found.items() if values}
        if found:
            bounds = [mean_interval(values) for values in found.values()]
            means = [float(np.mean(values)) for values in found.values()]
            low, high = zip(*bounds, strict=True)
            axes.fill_between([*found], low, high, color=colour, alpha=0.14, linewidth=0)
            axes.plot([*found], means, color=colour, linewidth=1.9, marker="o", markersize=4.5, label=name)
    if "novel_accuracy" in chance:
        figures.chance_line(axes, chance["novel_accuracy"], upright=False)
    axes.set_xticks([*points], [f"{x:g}" for x in points])
    axes.set(xlabel=axis, ylabel="accuracy (%)", ylim=(0, 100))
    axes.legend(frameon=False, fontsize=9, labelcolor=LIGHT.ink, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def trend(points: Mapping[float, Sequence[StudyRow]], axis: str) -> str:
    """The finding of a curve: where the score under other words is best."""
    means = {x: mean_over(row.scores["srt_accuracy_mean"] for row in rows) for x, rows in points.items()}
    found = {x: mean for x, mean in means.items() if mean is not None}
    if not found:
        return f"Accuracy over {axis}"
    best = max(found, key=lambda x: found[x].mean)
    worst = min(found, key=lambda x: found[x].mean)
    return f"SRT mean between {found[worst]} % (at {worst:g}) and {found[best]} % (at {best:g})"


def gains_figure(gains: Mapping[str, Mapping[str, Difference]], title: str, level: float = LEVEL) -> Figure:
    """A forest plot: a row a setting, a panel a score, the paired difference with its interval.

    The colour says whether the interval leaves out 0, and to which side. Rows stand by their gain in the SRT's mean.
    """
    first = "srt_accuracy_mean"
    order = sorted(gains, key=lambda name: gains[name][first].mean if first in gains[name] else -np.inf)[::-1]
    scores = [score for score in SCORES if any(score in pairs for pairs in gains.values())]
    note = (
        f"Dot: mean of the differences paired by seed. Bar: their Student's {100 * level:.4g}% interval. Blue: better, "
        "orange-red: worse, grey: the interval holds 0. Of the spread, smaller is better."
    )
    figure, axes = figures.panels(10.4, 1.6 + 0.34 * len(order), len(scores), title, note)
    for one, score in zip(axes, scores, strict=True):
        pairs = {y: gains[name][score] for y, name in enumerate(order) if score in gains[name]}
        for y, pair in pairs.items():
            draw_gain(one, pair, y, better=-1 if score == SMALLER_IS_BETTER else 1)
        one.axvline(0, color=LIGHT.ink, linewidth=1)
        one.set_title(f"gain in {SCORES[score]} (points)", fontsize=10, color=LIGHT.ink, loc="left")
        one.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(order)), [figures.short(name, 60) for name in order], color=LIGHT.ink)
    axes[0].set_ylim(len(order) - 0.4, -0.6)
    return figure


def gain_counts(gains: Mapping[str, Mapping[str, Difference]]) -> tuple[int, int, int]:
    """Of how many settings the gain in the SRT's mean is above 0 beyond its interval, below it, and known."""
    pairs = [pair["srt_accuracy_mean"] for pair in gains.values() if "srt_accuracy_mean" in pair]
    ahead = sum(pair.low is not None and pair.low > 0 for pair in pairs)
    behind = sum(pair.high is not None and pair.high < 0 for pair in pairs)
    return ahead, behind, len(pairs)


def draw_gain(axes: Axes, pair: Difference, y: float, better: int) -> None:
    colour = LIGHT.muted
    if pair.low is not None and pair.high is not None:
        if pair.low * pair.high > 0:
            colour = BLUE if pair.mean * better > 0 else VERMILLION
        axes.plot([pair.low, pair.high], [y, y], color=colour, linewidth=2.6, solid_capstyle="butt", zorder=3)
    axes.scatter([pair.mean], [y], s=42, color=colour, edgecolor=LIGHT.paper, linewidth=1.2, zorder=4)
