"""The report of a study: `runs.csv`, a page an experiment, box plots of the SRT by method, curves over a number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from ace_dist.evaluate import figures
from ace_dist.evaluate.figures import LIGHT, PANEL_WIDTH, Theme
from ace_dist.tools.study.study import (
    PlannedRun,
    StudyRow,
    concept_table,
    gather,
    mean_and_deviation,
    merge_rows,
    read_rows,
    study_page,
    write_rows,
)
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import write_text

FloatArray = npt.NDArray[np.float64]
LINES = (("base", "base_{}", None), ("novel", "novel_{}", None), ("SRT", "srt_{}_mean", "srt_{}_std"))
METRICS = {"accuracy": "accuracy", "f1": "macro F1"}


def write_study(
    planned: Iterable[PlannedRun],
    output: Path,
    experiment: str,
    reference: str,
    curves: Mapping[str, Mapping[float, str]],
    commands: Sequence[str] = (),
) -> list[Path]:
    """Add a sweep's finished runs to `runs.csv` of `output`, write `EXPERIMENT.md` and its figures; returns the paths.

    The page is of all rows of the experiment in `runs.csv`, its box plots of this sweep's runs. `reference`: the method
    that the others are compared with. `commands`: what started the runs. Nothing is written when something is wrong.
    An experiment with `=` in its name is one cell of a grid (`study_grid`) and gets rows alone.
    """
    study = gather(planned, experiment)
    rows = merge_rows(read_rows(output / "runs.csv"), study.rows)
    if "=" in experiment:
        if study.missing:
            raise RunError(f"{experiment}: a cell of a grid must be whole, but {'; '.join(study.missing[:4])}")
        write_rows(rows, output / "runs.csv")
        return [output / "runs.csv"]
    mine = [row for row in rows if row.experiment == experiment]
    stem = output / re.sub(r"[^\w.]+", "_", experiment)
    history = [*(f"`{command}`" for command in dict.fromkeys(commands)), *study.history]
    concepts = concept_table(study.folders)
    study_page(mine, reference, study.missing, history, [])  # refuses a wrong reference before anything is written
    figures_made = draw_study(mine, study.results, curves, stem)
    page = stem.with_name(f"{stem.name}.md")
    write_text(page, study_page(mine, reference, study.missing, history, figures_made, concepts))
    write_rows(rows, output / "runs.csv")
    return [output / "runs.csv", page, *figures_made]


def draw_study(
    rows: Sequence[StudyRow],
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    curves: Mapping[str, Mapping[float, str]],
    stem: Path,
) -> list[Path]:
    """Write the figures of one experiment beside `stem`: a box plot a metric, and a plot a curve and metric.

    `results`: method -> results of its runs. `curves`: axis label -> number -> method; one of fewer than two finished
    points is not drawn.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for metric, title in METRICS.items():
        runs = {
            method: np.array([[run[metric] for run in one["srt"]["runs"]] for one in ours if one["srt"] is not None])
            for method, ours in results.items()
        }
        tested = {method: values for method, values in runs.items() if values.size}
        if tested:
            path = stem.with_name(f"{stem.name}_srt_{metric}.png")
            paths.append(figures.save(srt_box_figure(tested, title), path))
    for number, (axis, points) in enumerate(curves.items(), start=1):
        there = {x: [row for row in rows if row.method == method] for x, method in points.items()}
        finished = {x: found for x, found in sorted(there.items()) if found}
        if len(finished) > 1:
            for metric, title in METRICS.items():
                path = stem.with_name(f"{stem.name}_curve{number}_{metric}.png")
                paths.append(figures.save(curve_figure(finished, axis, metric, title), path))
    return paths


def srt_box_figure(runs: Mapping[str, FloatArray], metric: str, theme: Theme = LIGHT) -> Figure:
    """Box and dots of the SRT runs of all seeds, a row a method. `runs`: method -> [seeds, label sets] in percent.

    A diamond is the mean over seeds under the root labels, the first label set.
    """
    figure, axes = figures.panel(theme, PANEL_WIDTH, 1.1 + 0.42 * len(runs))
    for row, (_, values) in enumerate(runs.items()):
        colour = theme.series[row % len(theme.series)]
        line = {"color": colour, "linewidth": 1.2}
        axes.boxplot(
            values.ravel(),
            positions=[row],
            orientation="horizontal",
            widths=0.55,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": to_rgba(colour, 0.14), "edgecolor": colour},
            manage_ticks=False,
            medianprops={**line, "linewidth": 2.0},
            whiskerprops=line,
            capprops=line,
        )
        height = np.repeat(row + np.linspace(-0.2, 0.2, len(values)), values.shape[1])
        axes.scatter(values.ravel(), height, s=7, color=colour, alpha=0.6, linewidth=0, zorder=4)
        root = values[:, 0].mean()
        axes.scatter([root], [row], s=40, marker="D", color=theme.paper, edgecolor=colour, linewidth=1.5, zorder=5)
    axes.set_yticks(range(len(runs)), [figures.short(name, 28) for name in runs], color=theme.ink)
    axes.set_ylim(len(runs) - 0.45, -0.55)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{metric} of each label set and seed (%); ◇ root labels")
    axes.grid(axis="y", visible=False)
    return figure


def curve_figure(
    points: Mapping[float, Sequence[StudyRow]], axis: str, metric: str, title: str, theme: Theme = LIGHT
) -> Figure:
    """Base, novel and SRT scores over a number. Shaded: deviation over seeds; of SRT: mean spread over label sets."""
    figure, axes = figures.panel(theme, PANEL_WIDTH, 3.0)
    for (name, score, spread), colour in zip(LINES, (theme.base, theme.novel, theme.series[0]), strict=True):
        found = {x: mean_and_deviation(rows, score.format(metric)) for x, rows in points.items()}
        drawn = {x: value for x, value in found.items() if value is not None}
        if not drawn:
            continue
        means = np.array([value[0] for value in drawn.values()])
        widths = np.array([value[1] or 0.0 for value in drawn.values()])
        if spread:
            means_of_spread = [mean_and_deviation(points[x], spread.format(metric)) for x in drawn]
            widths = np.array([value[0] if value else 0.0 for value in means_of_spread])
        axes.plot(list(drawn), means, color=colour, linewidth=1.8, marker="o", markersize=4, label=name)
        axes.fill_between(list(drawn), means - widths, means + widths, color=colour, alpha=0.13, linewidth=0)
    axes.set_xticks(list(points), [f"{x:g}" for x in points])
    axes.set_xlabel(axis)
    axes.set_ylabel(f"{title} (%)")
    axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink)
    return figure
