"""A timeline on the page: its bar, the segments, one of them with its frames and words, and files to keep."""

import base64
from collections.abc import Mapping, Sequence
from html import escape

from ace_dist.evaluate.palette import BLUE, PLUM
from ace_dist.segment.page import WIDTH, colour, curve, place
from ace_dist.segment.timeline import NONE, TimedSegment, Timeline, clock
from ace_dist.segment.windows import windows_between
from ace_dist.tools.explorer.answer import chips_html
from ace_dist.tools.explorer.markup import button
from ace_dist.tools.explorer.words import Words
from ace_dist.utils.pictures import data_uri

FRAMES = 6  # of a segment
DARK = (BLUE, PLUM)  # colours of labels on which white is read better than black: above 4.5 to 1
LISTED = 400  # segments; the bar shows them all
KEEP = {".json": "JSON", ".csv": "CSV", ".eaf": "ELAN", ".vtt": "WebVTT", ".html": "Page"}


def bar_html(timeline: Timeline, chosen: int, before: Timeline | None) -> str:
    """The whole video, and below it, thinner, how it was before the last change of words."""
    seen = {part.label for part in (*timeline, *(before or ()))}
    legend = "".join(
        f'<li><i style="background:{colour(timeline, label)}"></i>{escape(label)}</li>'
        for label in timeline.labels
        if label in seen
    )
    ticks = "".join(
        f"<span>{clock(timeline.start_s + share * (timeline.end_s - timeline.start_s))[:-2]}</span>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    was = ""
    if before is not None:
        was = f'<p class="quiet ace-was">before the last change</p>{cells_html(before, None, timeline)}'
    return (
        f'{cells_html(timeline, chosen, timeline)}<p class="ace-ticks quiet" aria-hidden="true">{ticks}</p>{was}'
        f'<ul class="ace-legend">{legend}<li><i class="none"></i>none of these</li>'
        '<li><i class="unsure"></i>uncertain</li></ul>'
    )


def cells_html(timeline: Timeline, chosen: int | None, coloured: Timeline) -> str:
    """A cell a segment, hatched where it is uncertain; it can be pressed when one is `chosen`. Colours of `coloured`.

    The list of segments says the same to a screen reader and to the keyboard.
    """
    cells = []
    for number, part in enumerate(timeline):
        left, right = (place(timeline, time_s) / WIDTH * 100 for time_s in (part.start_s, part.end_s))
        style = f"left:{left:.2f}%;width:{max(right - left, 0.05):.2f}%"
        kinds = ["none"] * (part.label is None) + ["chosen"] * (number == chosen)
        if part.label is not None:
            fill = colour(coloured, part.label)
            style += f";background-color:{fill};" + ("color:#fff;--hatch:#0007" if fill in DARK else "color:#000")
            kinds += ["unsure"] * part.uncertain
        asks = f' data-do="segment" data-value="{number}"' if chosen is not None else ""
        tip = f"{clock(part.start_s)} to {clock(part.end_s)}: {part.label or NONE}"
        name = escape(part.label or "") if chosen is not None else ""
        cells.append(f'<span{asks} class="{" ".join(kinds)}" style="{style}" title="{escape(tip)}">{name}</span>')
    return f'<div class="ace-cells{"" if chosen is not None else " thin"}" aria-hidden="true">{"".join(cells)}</div>'


def list_html(timeline: Timeline, chosen: int) -> str:
    rows = "".join(
        "<li>"
        + button(
            f"{swatch(timeline, part)}<span>{clock(part.start_s)}</span>"
            f'<b class="ace-word">{escape(part.label or NONE)}</b><span>{score_text(part)}</span>',
            "segment",
            str(number),
            number == chosen,
        )
        + "</li>"
        for number, part in enumerate(timeline[:LISTED])
    )
    more = f'<p class="quiet">and {len(timeline) - LISTED} more: press the bar</p>' if len(timeline) > LISTED else ""
    return f'<div><h3>Segments</h3><ol class="ace-segments" tabindex="0" aria-label="Segments">{rows}</ol>{more}</div>'


def swatch(timeline: Timeline, part: TimedSegment) -> str:
    return (
        '<i class="none"></i>' if part.label is None else f'<i style="background:{colour(timeline, part.label)}"></i>'
    )


def score_text(part: TimedSegment) -> str:
    doubt = f" or {escape(part.runner_up)}?" if part.uncertain and part.label and part.runner_up else ""
    return f"{part.score:.0%}{doubt}"


def segment_html(
    timeline: Timeline, number: int, stills: Sequence[bytes], label: str, words: Words, votes: Mapping[str, float]
) -> str:
    """A segment: what it shows, and how each word of a label votes for it."""
    part = timeline[number]
    windows = windows_between(part.start_s, part.end_s, timeline.start_s, timeline.stride_s)
    means = timeline.probabilities[windows].mean(0)
    pictures = "".join(
        f'<img src="{data_uri("image/jpeg", still)}" alt="frame {k + 1} of {len(stills)}">'
        for k, still in enumerate(stills)
    )
    ranked = sorted(zip([*timeline.labels, NONE], means.tolist(), strict=True), key=lambda pair: -pair[1])[:6]
    bars = "".join(f"<li>{bar_button(name, share, label)}</li>" for name, share in ranked)
    return (
        f'<div><div role="status"><h3>{clock(part.start_s)} to {clock(part.end_s)}: {escape(part.label or NONE)} '
        f'<small>{score_text(part)}</small></h3></div><div class="ace-frames">{pictures}</div>'
        f'<ol class="ace-bars">{bars}</ol>{curve(timeline, label)}'
        f"{chips_html(label, words, [votes], 'segment')}</div>"
    )


def bar_button(name: str, share: float, chosen: str) -> str:
    inside = f'<span class="ace-word">{escape(name)}</span><b>{share:.0%}</b><i style="--share:{100 * share:.1f}%"></i>'
    return button(inside, "label", name, name == chosen) if name != NONE else f'<div class="ace-row">{inside}</div>'


def keep_html() -> str:
    return (
        '<p class="ace-tools">Keep it as ' + "".join(button(name, "keep", end) for end, name in KEEP.items()) + "</p>"
    )


def file_html(name: str, text: str, number: int) -> str:
    """A file that the page's script saves; `number` tells it from the one before."""
    data = base64.b64encode(text.encode()).decode()
    return f'<div hidden data-number="{number}" data-file="{escape(name)}" data-content="{data}"></div>'
