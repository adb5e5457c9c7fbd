"""The drawings of the report: one function a figure, each a pure function of arrays and a theme.

Nothing here reads files or touches matplotlib's global state; figures are drawn with the Agg canvas, without a display.
Panels are small (about 4.4 x 3 inches), so that they stay readable when a phone shows them 360 pixels wide.
Shape letters: K classes, R runs of the SRT, S phrases.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from ace_dist.evaluate.palette import LIGHT, Theme, method_colours
from ace_dist.utils.files import write_bytes

FloatArray = npt.NDArray[np.float64]
Style = dict[str, Any]  # keyword arguments of matplotlib

DPI = 170
PANEL_WIDTH = 4.4  # inches
NAMED_ACTIONS = 16  # more names than that hide the points
GAUSSIAN_RADIUS = 2.0  # standard deviations: an ellipse holds 86 % of a 2-D Gaussian


def srt_figure(runs: Mapping[str, FloatArray], label: str, random: float | None = None, theme: Theme = LIGHT) -> Figure:
    """Box and dots of one metric over the SRT's label sets, a row a method, the score of guessing as a dashed line.

    `runs`: method -> [seeds, R] percent, a line of dots a seed. The first label set holds the root labels; its mean
    over the seeds is the diamond.
    """
    figure, axes = panel(theme, 1.25 + 0.62 * len(runs))
    if random is not None:
        axes.axvline(random, color=theme.muted, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
        at: Style = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axes.annotate("random", (random, 1.0), (3, -2), **at, fontsize=8, color=theme.muted, va="top")
    one_seed = all(len(values) == 1 for values in runs.values())
    for row, (values, colour) in enumerate(zip(runs.values(), method_colours([*runs], theme), strict=True)):
        line: Style = {"color": colour, "linewidth": 1.3}
        box: Style = {"patch_artist": True, "boxprops": {"facecolor": to_rgba(colour, 0.14), "edgecolor": colour}}
        lines: Style = {"medianprops": {**line, "linewidth": 2.2}, "whiskerprops": line, "capprops": line}
        place: Style = {"positions": [row], "orientation": "horizontal", "widths": 0.5, "manage_ticks": False}
        axes.boxplot(values.ravel(), **place, **box, **lines, showfliers=False)
        seeds, sets = values.shape
        dots: Style = {"color": colour, "edgecolor": theme.paper, "linewidth": 0.6, "zorder": 4}
        if one_seed:  # a line across the row, without the root labels, which have the diamond
            axes.scatter(values[0, 1:], row + np.linspace(-0.17, 0.17, sets)[1:], s=20, **dots)
        else:
            axes.scatter(values.ravel(), np.repeat(row + np.linspace(-0.2, 0.2, seeds), sets), s=12, **dots)
        root = values[:, 0].mean()
        axes.scatter([root], [row], s=46, marker="D", color=theme.paper, edgecolor=colour, linewidth=1.6, zorder=5)
    axes.set_yticks(range(len(runs)), [short(name, 28) for name in runs], color=theme.ink)
    largest = max(random or 0.0, *(values.max() for values in runs.values()))
    end = min(100.0, 10 * np.ceil(largest / 10 + 0.5))
    axes.set(ylim=(len(runs) - 0.45, -0.55), xlim=(0, end), xlabel=label)
    axes.grid(axis="y", visible=False)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, cut to its content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.06, facecolor=figure.get_facecolor())
    write_bytes(path, content.getvalue())
    return path


def panel(theme: Theme, height: float) -> tuple[Figure, Axes]:
    """A figure of one styled panel, `PANEL_WIDTH` times `height` inches."""
    figure = Figure(figsize=(PANEL_WIDTH, height), dpi=DPI, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, styled_axes(figure, theme)


def styled_axes(figure: Figure, theme: Theme, *place: SubplotSpec) -> Axes:
    """Axes with a light grid, no upper and right frame, and the colours of the theme."""
    axes = figure.add_subplot(*place)
    axes.set_facecolor(theme.paper)
    axes.set_axisbelow(True)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.tick_params(colors=theme.muted, labelsize=9.5, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=theme.ink, fontsize=10)
    for name, spine in axes.spines.items():
        spine.set_color(theme.grid)
        spine.set_visible(name in ("left", "bottom"))
    return axes


def short(name: str, width: int) -> str:
    """A label cut to `width` characters, with `$` escaped, so that matplotlib does not read a formula into it."""
    return (name if len(name) <= width else name[: width - 1] + "…").replace("$", r"\$")
