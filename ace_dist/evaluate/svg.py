"""The drawings of the report as SVG: one copy for light and dark pages, values on hover, no script, text escaped.

A drawing takes its colours from the page's CSS variables (`theme_css`); `standalone` adds them, so that it can be saved
and shown alone. Shape letters: K classes, R label sets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from ace_dist.evaluate.palette import DARK, LIGHT, Theme, method_colours
from ace_dist.utils.text import cut

FloatArray = npt.NDArray[np.float64]
Attributes = dict[str, Any]  # of an element
WIDTH = 430  # of a drawing, in its own pixels; the page stretches it
LETTER = 6.8  # mean width of a character at 12 pixels
MOST_CLASSES = 30  # rows of a confusion matrix that can be read


def theme_css(methods: Sequence[str]) -> str:
    """CSS variables of both themes: `--ink` and its like, `--base`, `--novel`, `--line0`.., and `--method0`.. ."""

    def variables(theme: Theme) -> str:
        values = {name: getattr(theme, name) for name in ("paper", "ink", "muted", "grid", "base", "novel")}
        values |= {f"line{index}": colour for index, colour in enumerate(theme.series)}
        values |= {f"method{index}": colour for index, colour in enumerate(method_colours(methods, theme))}
        return ":root{" + "".join(f"--{name}:{value};" for name, value in values.items()) + "}"

    return f"{variables(LIGHT)}\n@media (prefers-color-scheme: dark){{{variables(DARK)}}}"


def standalone(svg: str, css: str) -> str:
    """A drawing as a file of its own."""
    own = f"<style>{css} svg{{background:var(--paper);font-family:system-ui,sans-serif}}</style>"
    head, middle, tail = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"{middle}{own}{tail}'


def tag(name: str, content: str = "", hover: str = "", **attributes: object) -> str:
    """An element; `content` is markup, `hover` and the attributes are text. `_` in a name stands for `-`."""
    written = "".join(f' {key.replace("_", "-")}="{escape(shown(value))}"' for key, value in attributes.items())
    return f"<{name}{written}>{f'<title>{escape(hover)}</title>' if hover else ''}{content}</{name}>"


def shown(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def words(x: float, y: float, text: str, size: float = 12, ink: str = "muted", **attributes: Any) -> str:
    return tag("text", escape(text), x=float(x), y=float(y), font_size=size, fill=f"var(--{ink})", **attributes)


def drawing(height: float, name: str, parts: Sequence[str]) -> str:
    """`name` is what a screen reader says."""
    box = f"0 0 {WIDTH} {height:.0f}"
    return tag("svg", "".join(parts), viewBox=box, role="img", aria_label=name)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: Any) -> Any:
        low, high, value = (np.log(x) if self.log else np.asarray(x) for x in (self.low, self.high, value))
        return self.start + (value - low) / max(float(high - low), 1e-12) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.log and self.high / self.low >= 10:
            found: Locator = LogLocator(subs=(1.0,) if self.high / self.low > 50 else (1.0, 2.0, 5.0))
        else:
            found = MaxNLocator(5, steps=[1, 2, 5, 10])
        return [float(x) for x in found.tick_values(self.low, self.high) if self.low <= x <= self.high]


def across(scale: Scale, top: float, bottom: float, label: str) -> list[str]:
    """Vertical lines of a grid, their numbers, and the name of the axis below."""
    parts = []
    for value in scale.ticks():
        x = float(scale(value))
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, stroke="var(--grid)"))
        parts.append(words(x, bottom + 16, f"{value:g}", text_anchor="middle"))
    return [*parts, words((scale.start + scale.end) / 2, bottom + 34, label, ink="ink", text_anchor="middle")]


def upwards(scale: Scale, left: float, right: float, label: str) -> list[str]:
    """Horizontal lines of a grid, their numbers, and the name of the axis above."""
    parts = [words(0, scale.end - 10, label, ink="ink")]
    for value in scale.ticks():
        y = float(scale(value))
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, stroke="var(--grid)"))
        parts.append(words(left - 6, y + 4, f"{value:g}", text_anchor="end"))
    return parts


def srt_chart(
    scores: Mapping[str, Sequence[float]], sets: Sequence[str], chance: float, label: str, methods: Sequence[str]
) -> str:
    """A row a method, a dot a label set, a bar at their mean; guessing is the dashed line.

    `sets`: the words of each label set, shown on hover. The first one has the root labels: a ring. `methods`: those of
    `theme_css`, for the colours.
    """
    left = 12 + LETTER * max(len(cut(name, 24)) for name in scores)
    high = max(chance, *(max(values) for values in scores.values()))
    scale = Scale(0.0, min(100.0, 10 * np.ceil(high / 10 + 0.3)), left, WIDTH - 14)
    bottom = 26 + 54.0 * len(scores)
    parts = across(scale, 20, bottom, label)
    x = float(scale(chance))
    parts.append(tag("line", x1=x, x2=x, y1=20, y2=bottom, stroke="var(--ink)", stroke_dasharray="4 3"))
    parts.append(words(x, 13, f"chance {chance:.1f}", text_anchor="middle"))
    for row, (name, values) in enumerate(scores.items()):
        y, colour, mean = 50.0 + 54 * row, f"var(--method{methods.index(name)})", float(np.mean(values))
        parts.append(words(0, y + 4, cut(name, 24), ink="ink"))
        for index, value in enumerate(values):
            ring: Attributes = {"fill": "var(--paper)", "stroke": colour, "stroke_width": 2.5}
            look = ring if index == 0 else {"fill": colour, "fill_opacity": 0.75}
            place: Attributes = {"cx": float(scale(value)), "cy": y - 12 + 24 * index / max(len(values) - 1, 1), "r": 5}
            hover = f"{name}, set {index + 1}: {value:.1f} % ({sets[index]})"
            parts.append(tag("circle", hover=hover, **place, **look))
        at = float(scale(mean))
        line: Attributes = {"x1": at, "x2": at, "y1": y - 19, "y2": y + 19, "stroke": "var(--ink)", "stroke_width": 2.5}
        parts.append(tag("line", hover=f"{name}: mean {mean:.1f} %", **line))
    return drawing(bottom + 42, label, parts)


def confusion_chart(counts: npt.NDArray[np.int64], classes: Sequence[str], part: str) -> str:
    """Confusion matrix [K, K], row = true class, column = predicted: colour is the share of the row, the number clips.

    The classes stand by their share of right clips, best first; of more than `MOST_CLASSES` those with the lowest are
    drawn.
    """
    order = worst_first(counts)[:MOST_CLASSES][::-1]
    counts, names = counts[np.ix_(order, order)], [classes[index] for index in order]
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    longest = max(len(cut(name, 22)) for name in names)
    left = 14 + LETTER * longest
    right = 0.64 * LETTER * longest * 0.85  # what the last column's turned name needs
    side = (WIDTH - left - right) / len(names)
    row_height = min(max(side, 16.0), 34.0)
    top, font = 16 + LETTER * 0.78 * longest, min(12.0, 0.62 * side + 2)
    parts = [words(0, 12, "true ↓   named →", size=11)]
    for index, name in enumerate(names):
        y = top + row_height * (index + 0.5)
        x = left + side * (index + 0.5)
        parts.append(words(left - 6, y + 4, cut(name, 22), ink="ink", size=min(12.0, row_height), text_anchor="end"))
        turned = f"rotate(-50 {x:.1f} {top - 5:.1f})"
        parts.append(words(x, top - 5, cut(name, 22), ink="ink", size=min(12.0, side), transform=turned))
    for row, column in np.ndindex(counts.shape):
        count, share = int(counts[row, column]), counts[row, column] / totals[row, 0]
        colour = "base" if row == column else "novel"
        box: Attributes = {
            "x": left + side * column,
            "y": top + row_height * row,
            "width": side - 1,
            "height": row_height - 1,
        }
        if count:
            hover = f"{names[row]} named {names[column]}: {count} of {totals[row, 0]}"
            parts.append(
                tag("rect", hover=hover, **box, fill=f"var(--{colour})", fill_opacity=f"{0.12 + 0.6 * share:.2f}")
            )
            if side > 14:
                at = box["x"] + side / 2, box["y"] + row_height / 2 + 0.35 * font
                parts.append(words(*at, str(count), size=font, ink="ink", text_anchor="middle", pointer_events="none"))
        elif len(names) <= 20:
            parts.append(tag("rect", **box, fill="var(--grid)", fill_opacity="0.35"))
    return drawing(top + row_height * len(names) + 4, f"Confusion matrix of {part} actions", parts)


def worst_first(counts: npt.NDArray[np.int64]) -> list[int]:
    """Classes that occur or are named, by share of right clips, then by number of errors."""
    totals, hits = counts.sum(axis=1), np.diag(counts)
    keys = [(hits[k] / totals[k] if totals[k] else 1.0, -(totals[k] - hits[k]), k) for k in range(len(counts))]
    return [k for _, _, k in sorted(keys) if totals[k] or counts[:, k].any()] or list(range(len(counts)))


def line_chart(curves: Mapping[str, FloatArray], label: str, log: bool, zero: bool) -> str:
    """Lines over the training step: name -> [2, n] steps and values. A long one gets a running mean over it.

    `log`: a logarithmic axis, where all values are above 0; `zero`: the axis starts at 0.
    """
    values = np.concatenate([curve[1] for curve in curves.values()])
    log = log and bool((values > 0).all())
    low, high = float(values.min()), float(values.max())
    low, high = (low, high * 1.05 if high > low else high * 1.1 + 1e-9) if log else (0.0 if zero else low, high + 1e-9)
    steps = np.concatenate([curve[0] for curve in curves.values()])
    left, bottom = 56.0, 232.0
    x, y = Scale(float(steps.min()), float(steps.max()), left, WIDTH - 12), Scale(low, high, bottom, 52, log)
    parts = [
        *upwards(y, left, WIDTH - 12, f"{label}{', logarithmic axis' if log else ''}"),
        *across(x, bottom, bottom, "step"),
    ]
    at = 0.0
    for index, (name, (n, row)) in enumerate(curves.items()):
        colour = f"var(--line{index % 6})"
        dash = ("", "7 3", "2 3")[index % 3]  # so that equal lines do not hide each other
        style: Attributes = {"fill": "none", "stroke": colour, "stroke_dasharray": dash}
        hover = f"{name}: {row[0]:.4g} at step {n[0]:.0f}, {row[-1]:.4g} at step {n[-1]:.0f}"
        n, row = thinned(n, row)
        if len(n) >= 60:
            width = len(n) // 30
            means = np.convolve(row, np.full(width, 1.0 / width), mode="valid")  # of each window, [n - width + 1]
            parts.append(tag("polyline", points=points(x(n), y(row)), **style, stroke_opacity="0.3"))
            parts.append(
                tag("polyline", hover=hover, points=points(x(n[width - 1 :]), y(means)), **style, stroke_width=2.2)
            )
        else:
            parts.append(tag("polyline", hover=hover, points=points(x(n), y(row)), **style, stroke_width=2.2))
        parts += [
            tag(
                "circle",
                hover=f"{name}: {value:.4g} at step {step:.0f}",
                cx=float(x(step)),
                cy=float(y(value)),
                r=6,
                fill=colour,
                fill_opacity="0",
            )
            for step, value in zip(n, row, strict=True)
        ]
        if len(curves) > 1:
            parts.append(
                tag("line", x1=at, x2=at + 18, y1=18, y2=18, stroke=colour, stroke_dasharray=dash, stroke_width=2.5)
            )
            parts.append(words(at + 23, 22, name, ink="ink"))
        at += 38 + LETTER * len(name)
    return drawing(bottom + 42, label, parts)


def thinned(steps: FloatArray, values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """At most 300 points of a curve, which is what a drawing shows: the mean of each stretch."""
    if len(steps) <= 300:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), 300)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def points(x: FloatArray, y: FloatArray) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def bias_chart(curves: Mapping[str, Mapping[str, Any]], methods: Sequence[str]) -> str:
    """Novel over base accuracy among all classes, a line a method over all biases; a dot where no bias is taken.

    `curves`: method -> `gzsl` of results.json. `methods`: those of `theme_css`, for the colours.
    """
    left, bottom = 40.0, 300.0
    x, y = Scale(0, 100, left, WIDTH - 12), Scale(0, 100, bottom, 34)
    parts = [*upwards(y, left, WIDTH - 12, "novel accuracy (%)"), *across(x, 34, bottom, "base accuracy (%)")]
    for name, gzsl in curves.items():
        colour, curve = f"var(--method{methods.index(name)})", gzsl["curve"]
        line = points(x(np.array(curve["base"])), y(np.array(curve["novel"])))
        hover = f"{name}: area {curve['area']:.1f}, best harmonic mean {curve['best_hm']:.1f}"
        parts.append(tag("polyline", hover=hover, points=line, fill="none", stroke=colour, stroke_width=2.5))
        base, novel = (float(gzsl[part]["accuracy"]) for part in ("base", "novel"))
        hover = f"{name}, without a bias: base {base:.1f} %, novel {novel:.1f} %"
        place: Attributes = {"cx": float(x(base)), "cy": float(y(novel)), "r": 6}
        parts.append(tag("circle", hover=hover, **place, fill=colour, stroke="var(--paper)", stroke_width=1.5))
    return drawing(bottom + 42, "Novel over base accuracy at every bias", parts)


def concept_map(points: FloatArray, phrases: Sequence[str], actions: Sequence[str], base: npt.NDArray[np.bool_]) -> str:
    """Phrases as points [S, 2], each action as a Gaussian of two standard deviations with its name beside it.

    Base actions are round and in the colour of base, novel ones triangles in that of novel; hovering names the phrase.
    """
    edge, bottom = 16.0, 400.0
    low, span = points.min(axis=0), float(np.ptp(points, axis=0).max()) or 1.0
    scale = min((WIDTH - 8 * edge) / max(float(np.ptp(points[:, 0])), 0.01 * span), (bottom - 4 * edge) / span)
    pixels = (points - low - np.ptp(points, axis=0) / 2) * scale * np.array([1, -1]) + np.array([WIDTH, bottom]) / 2
    member, parts, places = np.array(actions), list[str](), list[tuple[float, float]]()
    names = list(dict.fromkeys(actions))
    for name in names:
        mine, is_base = pixels[member == name], bool(base[member == name][0])
        colour = f"var(--{'base' if is_base else 'novel'})"
        ellipse, top = action_ellipse(mine)
        kind = "base" if is_base else "novel"
        look: Attributes = {"fill": colour, "fill_opacity": "0.08", "stroke": colour, "stroke_width": 1.4}
        parts.append(tag("ellipse", hover=f"{name}: {kind}, {len(mine)} phrases", **ellipse, **look))
        places.append(top)
    for (x, y), phrase, action, is_base in zip(pixels, phrases, actions, base, strict=True):
        hover = f"{phrase} ({action})"
        if is_base:
            parts.append(
                tag("circle", hover=hover, cx=float(x), cy=float(y), r=3, fill="var(--base)", fill_opacity="0.7")
            )
        else:
            corners = f"M{x:.1f},{y - 4:.1f}l4,7h-8z"
            parts.append(tag("path", hover=hover, d=corners, fill="var(--novel)", fill_opacity="0.7"))
    halo: Attributes = {"paint_order": "stroke", "stroke": "var(--paper)", "stroke_width": 3, "text_anchor": "middle"}
    for name, (x, y) in zip(names, parted(places, names, bottom), strict=True):
        parts.append(words(x, y, cut(name, 26), size=11, ink="ink", **halo, pointer_events="none"))
    return drawing(bottom, "Map of the concepts", parts)


def action_ellipse(points: FloatArray) -> tuple[Attributes, tuple[float, float]]:
    """Attributes of the ellipse of two standard deviations of points [n, 2], at least 3 pixels wide; and its top."""
    centre = points.mean(axis=0)
    variances, axes = np.linalg.eigh((points - centre).T @ (points - centre) / len(points))
    variances = np.maximum(variances, 2.0)
    width, height = 2.0 * np.sqrt(variances)
    up = (axes * variances) @ axes[1]  # covariance times the unit vector along y
    x, y = centre - 2.0 * up / np.sqrt(up[1])
    turn = f"rotate({np.degrees(np.arctan2(axes[1, 0], axes[0, 0])):.1f} {centre[0]:.1f} {centre[1]:.1f})"
    ellipse: Attributes = {"cx": float(centre[0]), "cy": float(centre[1]), "rx": float(width), "ry": float(height)}
    return {**ellipse, "transform": turn}, (float(x), float(y))


def parted(places: Sequence[tuple[float, float]], names: Sequence[str], bottom: float) -> FloatArray:
    """Places [n, 2] of labels, pushed apart along y where they overlap, a little each round, and into the drawing."""
    centre = np.array(places, np.float64) - np.array([0, 4])
    half = np.array([[LETTER * 0.46 * min(len(name), 26), 6.5] for name in names])
    low, high = half + 1, np.array([WIDTH, bottom]) - half - 1
    for _ in range(300):
        gap = centre[:, None] - centre[None]
        overlap = half[:, None] + half[None] - np.abs(gap)
        hit = (overlap > 0).all(axis=2) & ~np.eye(len(names), dtype=bool)
        if not hit.any():
            break
        order = np.sign(np.arange(len(names))[:, None] - np.arange(len(names))[None])
        direction = np.where(gap[..., 1] != 0, np.sign(gap[..., 1]), order)
        centre[:, 1] += (hit * direction * np.minimum(overlap[..., 1], 3.0)).sum(axis=1) / 2
        centre = np.clip(centre, low, np.maximum(low, high))
    found: FloatArray = np.clip(centre, low, np.maximum(low, high)) + np.array([0, 4])
    return found
