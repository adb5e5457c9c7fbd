"""One HTML page of a timeline that works offline: segments with thumbnails, a curve a label, the job's checklist."""

import html
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ace_dist.data.loader.long_video import stream_thumbnails
from ace_dist.evaluate.palette import BLUE, GREEN, OLIVE, ORANGE, PLUM, PURPLE, SKY, VERMILLION
from ace_dist.segment.timeline import NONE, Timeline, clock
from ace_dist.utils.pictures import data_uri, jpeg

# Of labels; from the ninth that is seen on they repeat.
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, OLIVE, PLUM)
THUMBNAILS = 80  # the most that a page holds; longer timelines show those of their longest segments
CURVE_POINTS = 600  # of a curve: the largest probability of each stretch
WIDTH, ROW = 1000, 40  # of a drawing, in its own units, stretched to the page


Stills = Callable[[Sequence[float]], Sequence[bytes]]  # JPEG of what is shown at each of some times


def to_html(timeline: Timeline, stills: Stills | None = None) -> str:
    """The page. Without `stills` it reads the video once more, for the thumbnails."""
    title = html.escape(Path(timeline.video).name)
    actions = sum(part.label is not None for part in timeline)
    length = timeline.end_s - timeline.start_s
    summary = f"{actions} segments of {len(timeline.labels)} labels in {clock(length)}"
    parts = [bar(timeline), checklist(timeline), curves(timeline), segment_list(timeline, stills)]
    return PAGE.format(title=title, summary=summary, body="\n".join(part for part in parts if part))


def colour(timeline: Timeline, label: str | None) -> str:
    return "#dddddd" if label is None else palette(timeline.labels, timeline.seen)[label]


@lru_cache(16)
def palette(labels: tuple[str, ...], seen: tuple[bool, ...]) -> dict[str, str]:
    """Label -> colour. Labels that are `seen` have no colour twice while there are enough of them."""
    chosen: dict[str, str] = {}
    for k in sorted(range(len(labels)), key=lambda k: not seen[k]):
        own, free = COLOURS[k % len(COLOURS)], [fill for fill in COLOURS if fill not in chosen.values()]
        chosen[labels[k]] = own if own in free or not free else free[0]
    return chosen


def place(timeline: Timeline, time_s: float) -> float:
    return WIDTH * (time_s - timeline.start_s) / max(timeline.end_s - timeline.start_s, 1e-9)


def bar(timeline: Timeline) -> str:
    """All of the video as one bar; uncertain stretches are hatched, each part links to its entry below."""
    cells = []
    for number, part in enumerate(timeline):
        x = place(timeline, part.start_s)
        box = f'x="{x:.1f}" y="0" width="{max(place(timeline, part.end_s) - x, 0.5):.1f}" height="40"'
        name = html.escape(part.label or NONE)
        hatch = f'<rect {box} fill="url(#hatch)"/>' if part.uncertain and part.label else ""
        fill = colour(timeline, part.label)
        tip = f"<title>{clock(part.start_s)} to {clock(part.end_s)}: {name}, {part.score:.0%}</title>"
        cells.append(f'<a href="#s{number}"><rect {box} fill="{fill}"/>{hatch}{tip}</a>')
    ticks = "".join(f"<span>{clock(time)[:-2]}</span>" for time in np.linspace(timeline.start_s, timeline.end_s, 5))
    legend = "".join(
        f'<span><i style="background:{colour(timeline, label)}"></i>{html.escape(label)}</span>'
        for label in timeline.labels
    )
    return (
        f'<h2>Timeline</h2><svg class="bar" viewBox="0 0 {WIDTH} 40" preserveAspectRatio="none" role="group" '
        f'aria-label="Timeline of the video">{HATCH}{"".join(cells)}</svg><p class="ticks">{ticks}</p>'
        f'<p class="legend">{legend}<span><i style="background:#ddd"></i>none of these</span>'
        '<span><i class="hatched"></i>uncertain: below one half</span></p>'
    )


HATCH = (
    '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="2" height="6" fill="#fff" fill-opacity=".75"/></pattern></defs>'
)


def curves(timeline: Timeline) -> str:
    """Probability over time, a row for each label that is the best one somewhere; the others follow as a sentence."""
    shown = [label for label in timeline.labels if any(part.label == label for part in timeline)]
    rows = [f'<p class="curve">{html.escape(label)}</p>{curve(timeline, label)}' for label in shown]
    absent = [html.escape(label) for label in timeline.labels if label not in shown]
    note = f"<p>Never the best label: {', '.join(absent)}.</p>" if absent else ""
    head = "<h2>Probability of each label <small>from 0 to 100 %</small></h2>"
    return head + "".join(rows) + note


def curve(timeline: Timeline, label: str) -> str:
    """The probability of one label over time."""
    values = timeline.probabilities[:, timeline.labels.index(label)]
    stretches = np.array_split(values, min(len(values), CURVE_POINTS))
    line = " ".join(
        f"{WIDTH * (i + 0.5) / len(stretches):.1f},{ROW * (1 - float(stretch.max())):.1f}"
        for i, stretch in enumerate(stretches)
    )
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {ROW}" preserveAspectRatio="none" role="img" '
        f'aria-label="Probability of {html.escape(label)} over time"><polyline points="{line}" fill="none" '
        f'stroke="{colour(timeline, label)}" stroke-width="2" vector-effect="non-scaling-stroke"/></svg>'
    )


def checklist(timeline: Timeline) -> str:
    """What was done otherwise than the procedure says; nothing where there is no procedure."""
    if timeline.deviations is None:
        return ""
    if not timeline.deviations:
        return '<h2>Procedure</h2><p class="good">Every step was seen, in order.</p>'
    items = "".join(
        f"<li><b>{html.escape(each.kind)}</b> {html.escape(each.label)}: {html.escape(each.note)}"
        + (f" ({clock(each.start_s)})" if each.start_s is not None else "")
        + "</li>"
        for each in timeline.deviations
    )
    return f'<h2>Procedure</h2><ul class="deviations">{items}</ul>'


def segment_list(timeline: Timeline, stills: Stills | None) -> str:
    by_length = sorted(range(len(timeline)), key=lambda i: timeline[i].start_s - timeline[i].end_s)
    chosen = sorted(by_length[:THUMBNAILS])
    times = [(timeline[i].start_s + timeline[i].end_s) / 2 for i in chosen]
    shown = stills(times) if stills else thumbnails(Path(timeline.video), times)
    pictures = {i: data_uri("image/jpeg", still) for i, still in zip(chosen, shown, strict=True)}
    entries = []
    for number, part in enumerate(timeline):
        name = html.escape(part.label or NONE)
        picture = f'<img src="{pictures[number]}" alt="" loading="lazy">' if number in pictures else ""
        other = f" or {html.escape(part.runner_up)}?" if part.uncertain and part.runner_up and part.label else ""
        mark = ' class="uncertain"' if other else ""
        entries.append(
            f'<li id="s{number}"{mark}>{picture}<div><b style="border-color:{colour(timeline, part.label)}">{name}</b>'
            f"<span>{clock(part.start_s)} to {clock(part.end_s)}</span><span>{part.score:.0%}{other}</span></div></li>"
        )
    return f'<h2>Segments</h2><ol class="segments">{"".join(entries)}</ol>'


def thumbnails(video: Path, times_s: Sequence[float]) -> list[bytes]:
    """For each time the frame shown then, as JPEG."""
    return [jpeg(picture, quality=70) for picture in stream_thumbnails(video, times_s)]


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; }}
body {{ font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.4rem; overflow-wrap: anywhere; margin-bottom: 0; }} h2 {{ font-size: 1.1rem; margin-top: 1.6rem; }}
svg {{ width: 100%; display: block; }} .bar, svg.curve {{ height: 40px; }}
svg.curve {{ border-bottom: 1px solid var(--line); }} p.curve {{ margin: .7rem 0 0; font-size: .9rem; }}
.ticks {{ display: flex; justify-content: space-between; margin: .2rem 0; font-size: .85rem; opacity: .85; }}
small {{ font-weight: normal; opacity: .75; }}
.legend span {{ display: inline-block; margin-right: 1rem; }}
.legend i {{ display: inline-block; width: .9em; height: .9em; margin-right: .35em; vertical-align: -.1em; }}
.hatched {{ background: repeating-linear-gradient(45deg, #888 0 3px, #fff 3px 6px); }}
.segments {{ list-style: none; padding: 0; display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }}
.segments li {{ display: flex; gap: .7rem; border: 1px solid var(--line); border-radius: .4rem; padding: .5rem; }}
.segments li:target {{ outline: 3px solid #0072b2; }} .segments li.uncertain {{ border-style: dashed; }}
.segments img {{ width: 6rem; height: 4.5rem; object-fit: cover; border-radius: .25rem; }}
.segments b {{ border-left: .35rem solid; padding-left: .4rem; overflow-wrap: anywhere; }}
.segments span {{ display: block; font-size: .9rem; opacity: .85; }}
.deviations li {{ margin: .3rem 0; }} .good::before {{ content: "\\2713  "; }}
</style></head>
<body><h1>{title}</h1><p>{summary}</p>
{body}
</body></html>
"""
