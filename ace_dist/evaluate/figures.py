"""The drawings of the report: one function a figure, each a pure function of arrays and a theme.

Nothing here reads files or touches matplotlib's global state; figures are drawn with the Agg canvas, without a display.
Panels are small (about 4.4 x 3 inches), so that they stay readable when a phone shows them 360 pixels wide.
Shape letters: K classes, R runs of the SRT, S phrases.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Ellipse
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

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


def confusion_figure(counts: npt.NDArray[np.int64], classes: Sequence[str], theme: Theme = LIGHT) -> Figure:
    """Confusion matrix [K, K], row = true class: colour is the share of the row, the number the count of samples."""
    size = len(classes)
    figure, axes = panel(theme, min(7.5, 1.6 + max(0.26 * size, 1.6)))
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ramp = LinearSegmentedColormap.from_list("share", [theme.paper, theme.series[0]])
    axes.imshow(share, cmap=ramp, vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(size), [f"{short(name, 24)}  {i + 1}" for i, name in enumerate(classes)], color=theme.ink)
    axes.set_xticks(range(size), [str(i + 1) for i in range(size)])
    axes.tick_params(axis="both", labelsize=9 if size <= 14 else 7, length=0)
    axes.set_xlabel("predicted class")
    axes.grid(visible=False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=theme.grid, linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    font = 9 if size <= 10 else 7 if size <= 18 else 5
    for row, column in np.argwhere(counts > 0):
        ink = theme.paper if share[row, column] > 0.5 else theme.ink
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=font, color=ink)
    return figure


def class_f1_figure(
    scores: FloatArray, support: npt.NDArray[np.int64], classes: Sequence[str], base: bool, theme: Theme = LIGHT
) -> Figure:
    """F1 of each class in percent as bars [K], with the number of test samples; a class without one has no bar."""
    figure, axes = panel(theme, min(8.0, 1.0 + max(0.3 * len(classes), 1.4)))
    rows = np.arange(len(classes))
    axes.barh(rows, np.nan_to_num(scores), height=0.66, color=theme.base if base else theme.novel)
    for row, (score, samples) in enumerate(zip(scores, support, strict=True)):
        text = "no test sample" if np.isnan(score) else f"{score:.0f}  (n={samples})"
        beside_bar(axes, text, float(np.nan_to_num(score)), row, 4, fontsize=8.5, color=theme.muted)
    axes.set_yticks(rows, [short(name, 24) for name in classes], color=theme.ink)
    axes.set(ylim=(len(classes) - 0.4, -0.6), xlim=(0, 122), xticks=range(0, 101, 25), xlabel="F1 (%)")
    axes.grid(axis="y", visible=False)
    return figure


def curve_figure(curves: Mapping[str, FloatArray], label: str, zero: bool, theme: Theme = LIGHT) -> Figure:
    """Lines over the training step: name -> [2, n] steps and values. A long one gets a running mean over it.

    `zero`: the axis starts at 0.
    """
    figure, axes = panel(theme, 2.75)
    for index, (name, (steps, values)) in enumerate(curves.items()):
        colour = theme.series[index % len(theme.series)]
        style = ("-", (0, (4, 2)), (0, (1, 1.4)))[index % 3]  # so that equal lines do not hide each other
        line: Style = {"color": colour, "linestyle": style}
        if len(steps) >= 60:
            width = len(steps) // 30
            means = np.convolve(values, np.full(width, 1.0 / width), mode="valid")  # of each window, [n - width + 1]
            axes.plot(steps, values, **line, alpha=0.25, linewidth=1.0)
            axes.plot(steps[width - 1 :], means, **line, linewidth=1.9, label=name)
        else:
            axes.plot(steps, values, **line, linewidth=1.7, marker="o" if len(steps) < 3 else None, label=name)
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if zero:
        axes.set_ylim(bottom=0)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink)
    return figure


def bias_figure(curves: Mapping[str, Mapping[str, Any]], theme: Theme = LIGHT) -> Figure:
    """Novel over base accuracy among all classes, a line a method over all biases; a dot where no bias is taken.

    `curves`: method -> `gzsl` of results.json.
    """
    figure, axes = panel(theme, 3.4)
    for (name, gzsl), colour in zip(curves.items(), method_colours([*curves], theme), strict=True):
        curve = gzsl["curve"]
        axes.plot(curve["base"], curve["novel"], color=colour, linewidth=1.9, label=f"{name}, area {curve['area']:.1f}")
        plain = [gzsl[part]["accuracy"] for part in ("base", "novel")]
        axes.scatter(plain[0], plain[1], color=colour, edgecolor=theme.paper, s=42, zorder=4)
    axes.set(xlabel="base accuracy (%)", ylabel="novel accuracy (%)", xlim=(-2, 102), ylim=(-2, 102))
    axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink)
    return figure


def concept_figure(
    points: FloatArray, actions: Sequence[str], base: npt.NDArray[np.bool_], theme: Theme = LIGHT
) -> Figure:
    """Phrases as points [S, 2], each action as a Gaussian: outlined in the colour of base or of novel actions."""
    figure, axes = panel(theme, 4.1)
    draw_concepts(axes, points, actions, base, theme, fontsize=8)
    return figure


def draw_concepts(
    axes: Axes, points: FloatArray, actions: Sequence[str], base: npt.NDArray[np.bool_], theme: Theme, fontsize: float
) -> None:
    """Draw a concept space into `axes`; up to `NAMED_ACTIONS` actions carry their name, more carry a number."""
    names = list(dict.fromkeys(actions))
    member = np.array([names.index(action) for action in actions])
    labels: list[Text] = []
    floor = 1e-4 * float(np.ptp(points, axis=0).max()) ** 2  # so that an action of one or two phrases is still visible
    for index, name in enumerate(names):
        mine = points[member == index]
        marker, colour = ("o", theme.base) if base[member == index][0] else ("^", theme.novel)
        ellipse, (x, y) = action_ellipse(mine, floor, colour)
        axes.add_patch(ellipse)
        axes.scatter(mine[:, 0], mine[:, 1], s=15, marker=marker, color=colour, alpha=0.75, linewidth=0, zorder=3)
        text = short(name, len(name)) if len(names) <= NAMED_ACTIONS else str(index + 1)
        halo = [withStroke(linewidth=2.6, foreground=theme.paper)]
        style: Style = {"fontsize": fontsize, "color": theme.ink, "path_effects": halo}
        labels.append(axes.text(x, y, text, ha="center", va="bottom", **style))
    axes.set(xticks=[], yticks=[])
    axes.margins(0.09)
    axes.autoscale_view()
    for side in axes.spines.values():
        side.set_visible(True)
    part_labels(axes, labels)


def action_ellipse(points: FloatArray, floor: float, colour: str) -> tuple[Ellipse, tuple[float, float]]:
    """The ellipse of two standard deviations of points [n, 2], no variance below `floor`; and its top point."""
    centre = points.mean(axis=0)
    variances, axes = np.linalg.eigh((points - centre).T @ (points - centre) / len(points))
    variances = np.maximum(variances, floor)
    width, height = 2 * GAUSSIAN_RADIUS * np.sqrt(variances)
    up = (axes * variances) @ axes[1]  # covariance times the unit vector upwards
    x, y = centre + GAUSSIAN_RADIUS * up / np.sqrt(up[1])
    angle = float(np.degrees(np.arctan2(axes[1, 0], axes[0, 0])))
    colours: Style = {"facecolor": to_rgba(colour, 0.10), "edgecolor": colour}
    ellipse = Ellipse((float(centre[0]), float(centre[1])), width, height, angle=angle, **colours)
    ellipse.set(linewidth=1.4, zorder=2)
    return ellipse, (float(x), float(y))


def part_labels(axes: Axes, labels: Sequence[Text]) -> None:
    """Push overlapping labels apart and back into the frame, in pixels, a little each round."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()
    frame = axes.get_window_extent()
    boxes = [label.get_window_extent().padded(1.0) for label in labels]
    half = np.array([[box.width / 2, box.height / 2] for box in boxes])
    centre = np.array([[(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2] for box in boxes])
    low, high = np.array([frame.x0, frame.y0]) + half, np.array([frame.x1, frame.y1]) - half
    for _ in range(200):
        gap = centre[:, None] - centre[None]
        overlap = half[:, None] + half[None] - np.abs(gap)
        hit = (overlap > 0).all(axis=2) & ~np.eye(len(labels), dtype=bool)
        if not hit.any():
            break
        order = np.sign(np.arange(len(labels))[:, None] - np.arange(len(labels))[None])
        direction = np.where(gap[..., 1] != 0, np.sign(gap[..., 1]), order)
        centre[:, 1] += (hit * direction * np.minimum(overlap[..., 1], 3.0)).sum(axis=1) / 2  # apart vertically
        centre = np.clip(centre, low, np.maximum(low, high))
    for label, position in zip(labels, np.clip(centre, low, np.maximum(low, high)), strict=True):
        label.set_verticalalignment("center")
        label.set_position(tuple(axes.transData.inverted().transform(position)))


def result_figure(
    title: str,
    spaces: Mapping[str, tuple[FloatArray, str]],
    actions: Sequence[str],
    base: npt.NDArray[np.bool_],
    scores: Mapping[str, Mapping[str, tuple[float, float]]],
    random: Mapping[str, float],
) -> Figure:
    """One picture of 12 x 5 inches: the concept space "before" and "after" (points [S, 2] and a caption), the scores.

    `scores`: method -> measure (base, novel, HM, SRT) -> (mean, std) in percent; `random`: measure -> guessing score.
    """
    figure = Figure(figsize=(12, 5), dpi=DPI, facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    frame: Style = {"left": 0.012, "right": 0.985, "top": 0.81, "bottom": 0.125}
    grid = figure.add_gridspec(1, 3, width_ratios=[1, 1, 0.92], wspace=0.06, **frame)
    figure.text(0.012, 0.955, title, fontsize=15.5, fontweight="bold", color=LIGHT.ink, va="center")
    words = {"● base action": LIGHT.base, "▲ novel action": LIGHT.novel, "an ellipse: one action's words": LIGHT.muted}
    for x, (text, colour) in zip((0.525, 0.63, 0.745), words.items(), strict=True):
        figure.text(x, 0.955, text, fontsize=11, color=colour, va="center")
    for column, (when, (points, caption)) in enumerate(spaces.items()):
        axes = styled_axes(figure, LIGHT, grid[column])
        draw_concepts(axes, points, actions, base, LIGHT, fontsize=9.5)
        axes.set_title(f"Concept space {when} fine-tuning", fontsize=12.5, color=LIGHT.ink, loc="left", pad=7)
        axes.set_xlabel(caption, fontsize=11, color=LIGHT.muted, labelpad=7)
    axes = styled_axes(figure, LIGHT, grid[2])
    draw_scores(axes, scores, random)
    box = axes.get_position()
    axes.set_position((box.x0 + 0.052, box.y0 + 0.02, box.width - 0.052, box.height - 0.02))
    axes.set_title("Test accuracy (%)", fontsize=12.5, color=LIGHT.ink, loc="left", pad=7, x=-0.2)
    return figure


def draw_scores(
    axes: Axes, scores: Mapping[str, Mapping[str, tuple[float, float]]], random: Mapping[str, float]
) -> None:
    """Horizontal bars, a group a measure and a bar a method, with deviation, value and the mark of guessing."""
    measures = list(next(iter(scores.values())))
    height = 0.74 / len(scores)
    for index, ((method, row), colour) in enumerate(zip(scores.items(), method_colours([*scores]), strict=True)):
        at = np.arange(len(measures)) - 0.37 + height * (index + 0.5)
        means, deviations = np.array([row[name] for name in measures]).T
        axes.barh(at, means, height * 0.9, color=colour, label=method, zorder=2)
        for y, mean, deviation in zip(at, means, deviations, strict=True):
            if deviation > 0:
                axes.errorbar(mean, y, xerr=deviation, color=LIGHT.ink, linewidth=1.2, capsize=2.5, zorder=4)
            text = f"{mean:.1f} ± {deviation:.1f}" if deviation > 0 else f"{mean:.1f}"
            beside_bar(axes, text, mean + deviation, y, 5, fontsize=10, color=LIGHT.ink)
    rows = np.arange(len(measures))
    dashes: Style = {"linewidth": 1.4, "linestyle": (0, (3, 2)), "zorder": 5, "label": "random"}
    axes.vlines([random[name] for name in measures], rows - 0.42, rows + 0.42, color=LIGHT.ink, **dashes)
    axes.set_yticks(range(len(measures)), measures, fontsize=11, color=LIGHT.ink)
    axes.set(ylim=(len(measures) - 0.5, -0.5), xlim=(0, 128), xticks=range(0, 101, 25))
    axes.grid(axis="y", visible=False)
    below: Style = {"loc": "upper center", "bbox_to_anchor": (0.4, -0.07), "ncols": 3}
    axes.legend(**below, frameon=False, fontsize=10, labelcolor=LIGHT.ink, handlelength=1.3, columnspacing=1.2)


def beside_bar(axes: Axes, text: str, end: float, y: float, gap: float, **style: Any) -> None:
    """Text to the right of a horizontal bar that ends at `end`; `gap` in points."""
    axes.annotate(text, (end, y), (gap, 0), textcoords="offset points", va="center", **style)


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
