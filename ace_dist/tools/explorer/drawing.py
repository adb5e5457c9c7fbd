"""The explorer's pictures as HTML and SVG strings: every word of a user is escaped, nothing is loaded from outside."""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

from ace_dist.evaluate.run_files import ConceptSpace
from ace_dist.tools.explorer.session import LabelVotes

STYLE = """
.ace-bar{display:grid;grid-template-columns:1fr auto;gap:.1rem .6rem;margin:.6rem 0 .1rem}
.ace-bar i{display:block;height:.6rem;border-radius:3px;background:#2f5fd0;grid-column:1/-1;grid-row:2}
.ace-bar b,.ace-votes td:last-child,.ace-srt td{font-variant-numeric:tabular-nums}
.ace-bar b{text-align:right}
.ace-word{overflow-wrap:anywhere}
.ace-votes,.ace-srt{border-collapse:collapse;width:100%;font-size:.9rem}
.ace-votes td,.ace-srt td,.ace-srt th{padding:.2rem .5rem;border-top:1px solid #8884;text-align:left}
.ace-votes td:last-child{text-align:right}
.ace-srt td{white-space:nowrap}
.ace-scroll{overflow-x:auto}
.ace-best{font-weight:700}
.ace-map{width:100%;height:auto;max-width:640px}
.ace-map text{font:11px system-ui,sans-serif;fill:currentColor}
.ace-map circle:hover,.ace-map path:hover{stroke:currentColor;stroke-width:2}
.ace-hint{padding:.6rem .8rem;opacity:.8}
.ace-error{position:fixed;left:1rem;right:1rem;bottom:1rem;z-index:99;max-width:40rem;margin:auto;overflow-wrap:anywhere;
padding:.6rem .8rem;border-left:4px solid #c0392b;background:#fdecea;color:#611a15;box-shadow:0 2px 12px #0005}
.ace-sheet{width:100%;height:auto}
"""
SHEET_TILE = 112  # pixels a frame of the contact sheet is drawn at, at least
SHEET_COLUMNS = 5
MAP_WIDTH, MAP_HEIGHT, MAP_MARGIN = 640, 480, 24
PALETTE = ("#2f5fd0", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#b91c1c", "#a16207", "#be185d", "#4d7c0f", "#475569")


def hint_html(text: str) -> str:
    """What to do next, in the place of a result."""
    return f'<div class="ace-hint">{escape(text)}</div>'


def message_html(text: str) -> str:
    """A message for the user; it stands on the screen however far the page is scrolled."""
    return f'<div class="ace-error" role="alert">{escape(text)}</div>'


def look_html(labels: Sequence[LabelVotes]) -> str:
    """A bar for each label, most probable first, and below it how every phrase votes (cosine with the clip)."""
    parts = []
    for item in labels:
        votes = "".join(
            f'<tr><td class="ace-word">{escape(phrase)}</td><td>{cosine:+.3f}</td></tr>'
            for phrase, cosine in sorted(item.votes, key=lambda vote: -vote[1])
        )
        plural, mean = "s" * (len(item.votes) > 1), sum(cosine for _, cosine in item.votes) / len(item.votes)
        parts.append(
            f'<div class="ace-bar"><span class="ace-word">{escape(item.label)}</span><b>{item.probability:.1%}</b>'
            f'<i style="width:{100 * item.probability:.1f}%"></i></div>'
            f"<details><summary>{len(item.votes)} phrase{plural}, mean cosine {mean:+.3f}</summary>"
            f'<table class="ace-votes"><tbody>{votes}</tbody></table></details>'
        )
    return f'<div id="ace-look">{"".join(parts)}</div>'


def robustness_html(runs: Sequence[Sequence[tuple[str, float]]]) -> str:
    """The runs of the SRT side by side: a row a run, its labels with their probabilities, the best one bold."""
    rows = []
    for number, run in enumerate(runs, start=1):
        best = max(probability for _, probability in run)
        cells = "".join(
            f"<td{' class=ace-best' * (probability == best)}>{escape(label)} {probability:.0%}</td>"
            for label, probability in run
        )
        rows.append(f"<tr><th>{number}</th>{cells}</tr>")
    return f'<div class="ace-scroll"><table class="ace-srt" id="ace-srt"><tbody>{"".join(rows)}</tbody></table></div>'


def contact_sheet(frames_THWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Frames side by side in rows of five, small ones enlarged by whole pixels, uint8 [height, width, 3]."""
    factor = max(1, math.ceil(SHEET_TILE / frames_THWC.shape[2]))
    frames = frames_THWC.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = min(SHEET_COLUMNS, len(frames))
    missing = -len(frames) % columns
    frames = np.concatenate([frames, np.full((missing, *frames.shape[1:]), 255, np.uint8)])
    rows = frames.reshape(-1, columns, *frames.shape[1:])
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3, 4).reshape(-1, columns * frames.shape[2], 3))


def sheet_html(frames_THWC: npt.NDArray[np.uint8]) -> str:
    """The contact sheet as a picture within the page: it is in no file."""
    file = io.BytesIO()
    Image.fromarray(contact_sheet(frames_THWC)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        '<figure><figcaption>What the model saw</figcaption><img class="ace-sheet" '
        f'alt="the frames that the model saw" src="data:image/png;base64,{data}"></figure>'
    )


def map_svg(layout_S2: npt.NDArray[np.float64], space: ConceptSpace, title: str) -> str:
    """The plane of phrases: a point a phrase (round: base action, square: novel), its words shown on hover."""
    low, span = layout_S2.min(0), np.ptp(layout_S2, axis=0)
    inner = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MAP_MARGIN
    points = MAP_MARGIN + (layout_S2 - low) / np.where(span > 0, span, 1) * inner
    names = list(dict.fromkeys(space.actions))
    marks = []
    for (x, y), phrase, action, base in zip(points, space.phrases, space.actions, space.base, strict=True):
        shape = f'circle cx="{x:.1f}" cy="{y:.1f}" r="5"' if base else f'path d="M{x - 5:.1f} {y - 5:.1f}h10v10h-10z"'
        colour, words = PALETTE[names.index(action) % len(PALETTE)], f"{escape(phrase)} ({escape(action)})"
        end = shape.split()[0]
        marks.append(f'<{shape} fill="{colour}" fill-opacity=".75"><title>{words}</title></{end}>')
    chosen = np.array(space.actions)
    labels = "".join(
        f'<text x="{points[chosen == name, 0].mean():.1f}" y="{points[chosen == name, 1].mean():.1f}" '
        f'text-anchor="middle">{escape(name)}</text>'
        for name in names
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class="ace-map" viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}" '
        f'role="img" aria-label="{escape(title)}">{"".join(marks)}{labels}</svg></figure>'
    )
