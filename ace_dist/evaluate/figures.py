"""What the drawings of studies have in common: a figure of styled panels, in the colours of a theme, saved as PNG.

Nothing here touches matplotlib's global state; figures are drawn with the Agg canvas, without a display.
"""

import io
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ace_dist.evaluate.palette import LIGHT
from ace_dist.utils.files import write_bytes
from ace_dist.utils.text import cut

Style = dict[str, Any]  # keyword arguments of matplotlib

DPI = 170


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG, cut to its content."""
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.08, facecolor=figure.get_facecolor())
    write_bytes(path, content.getvalue())
    return path


def panels(width: float, height: float, columns: int, title: str, note: str) -> tuple[Figure, list[Axes]]:
    """A figure of `columns` panels beside each other, in inches; `title` says the finding, `note` how to read."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=LIGHT.paper, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(short(title, 110), fontsize=11.5, fontweight="bold", color=LIGHT.ink, x=0.01, ha="left")
    figure.supxlabel(note, fontsize=8.5, color=LIGHT.muted, x=0.01, ha="left")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for one in axes:
        style(one)
    return figure, list(axes)


def style(axes: Axes) -> None:
    """A light grid, no frame but at the left and the bottom."""
    axes.set_axisbelow(True)
    axes.grid(color=LIGHT.grid, linewidth=0.8)
    axes.tick_params(colors=LIGHT.muted, labelsize=9, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=LIGHT.ink, fontsize=9.5)
    for name, spine in axes.spines.items():
        spine.set_color(LIGHT.grid)
        spine.set_visible(name in ("left", "bottom"))


def chance_line(axes: Axes, value: float, upright: bool) -> None:
    """What guessing scores, dashed, in the colour of the text."""
    dashes: Style = {"color": LIGHT.ink, "linestyle": (0, (4, 3)), "linewidth": 1.1, "zorder": 1}
    if upright:
        axes.axvline(value, **dashes)
    else:
        axes.axhline(value, **dashes)


def short(name: str, width: int) -> str:
    """A label cut to `width` characters, with `$` escaped, so that matplotlib does not read a formula into it."""
    return cut(name, width).replace("$", r"\$")
