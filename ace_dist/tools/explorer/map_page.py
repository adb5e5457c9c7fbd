"""Concepts: the phrases of the run's actions in the plane, before and after training; one colour an action."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from ace_dist.evaluate.metrics import concept_distances
from ace_dist.evaluate.run_files import ConceptSpace, read_space
from ace_dist.evaluate.sections import TSNE_LEAST, FloatArray, concept_layout
from ace_dist.segment.page import COLOURS
from ace_dist.tools.explorer.answer import kind_html
from ace_dist.tools.explorer.desk import Desk, part
from ace_dist.tools.explorer.markup import asked, button, message_html
from ace_dist.tools.explorer.session import Explorer
from ace_dist.utils.errors import UserError

TSNE_MOST = 500  # phrases: 4 s on a CPU; of more the two main directions are drawn, at once
WIDTH, HEIGHT, MARGIN = 640, 480, 28
LETTER = 14.0, 24.0  # what a letter of a name takes of the map, on a phone
OFFERED = 60  # actions that can be coloured
ROUND, DIAMOND = "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0", "M0-6.5L6.5 0L0 6.5L-6.5 0Z"


@dataclass(frozen=True)
class MapView:
    """`chosen`: an action for each colour, "" where a colour is free."""

    chosen: tuple[str, ...]


class MapPage:
    """Reads and lays out the space when it is first looked at."""

    def __init__(self, explorer: Explorer, desk: Desk) -> None:
        self.explorer, self.desk = explorer, desk
        self.space = lru_cache(1)(lambda: read_space(explorer.run))
        self.layouts = lru_cache(1)(self.lay_out)

    def opening(self) -> MapView:
        names = [*self.explorer.splits()[False], *self.explorer.splits()[True]]
        return MapView(tuple([*dict.fromkeys(names), *[""] * len(COLOURS)][: len(COLOURS)]))

    def press(self, view: MapView, do: str, value: str) -> MapView:
        """An action gets the first free colour, or gives its own back."""
        if do != "action" or value not in self.space().actions:
            raise UserError("the page has no such button: load it again")
        chosen = list(view.chosen)
        if value in chosen:
            chosen[chosen.index(value)] = ""
        elif "" in chosen:
            chosen[chosen.index("")] = value
        else:
            raise UserError(f"{len(chosen)} actions have a colour, more cannot be told apart: switch one off first")
        return replace(view, chosen=tuple(chosen))

    def lay_out(self) -> tuple[FloatArray, FloatArray, str]:
        """The planes [S, 2] before and after training, and how they were made."""
        space = self.space()
        if TSNE_LEAST <= len(space.phrases) <= TSNE_MOST:
            before, after = (concept_layout(rows, space.actions) for rows in (space.before, space.after))
            return before, after, "t-SNE: who are neighbours counts, lengths do not"
        return main_plane(space.before), main_plane(space.after), "the two directions in which phrases differ most"

    def html(self, view: MapView) -> str:
        space = self.space()
        before, after, how = self.layouts()
        figures = "".join(
            map_html(layout, space, view.chosen, title, concept_distances(rows, space.actions))
            for layout, rows, title in (
                (before, space.before, "Before training"),
                (after, space.after, "After training"),
            )
        )
        names = list(dict.fromkeys(space.actions))
        base = dict(zip(space.actions, space.base.tolist(), strict=True))
        chips = "".join(f"<li>{chip(name, base[name], view.chosen)}</li>" for name in names[:OFFERED])
        return (
            '<div class="ace" id="ace-maps"><p>A mark is a phrase, its colour the action that it stands for: round '
            f"where the action was {kind_html(True)}, a diamond where it was {kind_html(False)}. Point at a mark to "
            "read it. "
            f'<span class="quiet">{len(space.phrases)} phrases; {how}.</span></p>'
            f'<ul class="ace-chips ace-actions">{chips}</ul><div class="ace-maps">{figures}</div></div>'
        )


def main_plane(rows_SD: FloatArray) -> FloatArray:
    centred = rows_SD - rows_SD.mean(0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane: FloatArray = centred @ directions[:2].T
    return plane if plane.shape[1] == 2 else np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def chip(name: str, base: bool, chosen: Sequence[str]) -> str:
    on = name in chosen
    fill = COLOURS[chosen.index(name)] if on else "transparent"
    mark = f'<i class="mark{"" if base else " new"}" style="background:{fill}"></i>'
    return button(f"{mark}<span>{escape(name)}</span>", "action", name, on)


def map_html(
    layout_S2: FloatArray, space: ConceptSpace, chosen: Sequence[str], title: str, distances: dict[str, float]
) -> str:
    """Our own SVG; its marks say their phrase to the page's script, which also zooms."""
    low, span = layout_S2.min(0), np.ptp(layout_S2, axis=0)
    inner = np.array([WIDTH, HEIGHT]) - 2 * MARGIN
    points = MARGIN + (layout_S2 - low) / np.where(span > 0, span, 1) * inner
    order = sorted(range(len(points)), key=lambda s: space.actions[s] in chosen)  # coloured ones lie above
    marks = []
    for s in order:
        action = space.actions[s]
        fill = COLOURS[chosen.index(action)] if action in chosen else "#8886"
        shape, tip = ROUND if space.base[s] else DIAMOND, escape(f"{space.phrases[s]} ({action})")
        where = f"--x:{points[s, 0]:.1f}px;--y:{points[s, 1]:.1f}px"
        marks.append(f'<path d="{shape}" style="{where}" fill="{fill}" data-tip="{tip}"/>')
    names = "".join(
        f'<text style="--x:{x:.1f}px;--y:{y:.1f}px">{escape(name)}</text>'
        for name, x, y in apart(points, space.actions, chosen)
    )
    said = (
        f"cosine distance of two phrases of one action {distances['within']:.2f}, of two actions "
        f"{distances['between']:.2f}"
    )
    zoom = "".join(
        f'<button type="button" data-zoom="{factor}" aria-label="{words}: {title}">{sign}</button>'
        for factor, sign, words in (("0.7", "+", "Closer"), ("1.4", "−", "Further"), ("0", "All", "Show all"))
    )
    return (
        f'<figure class="ace-figure"><div class="ace-head"><figcaption><b>{title}</b> <small>{said}</small>'
        f'</figcaption><div class="ace-zoom">{zoom}</div></div>'
        f'<svg class="ace-map" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}: {said}">{"".join(marks)}{names}</svg><p class="ace-tip" hidden></p></figure>'
    )


def apart(points_S2: FloatArray, actions: Sequence[str], chosen: Sequence[str]) -> list[tuple[str, float, float]]:
    """Where the names of the chosen actions stand: amid their phrases, the lower of two that would overlap below."""
    member, places = np.array(actions), []
    for name in filter(None, chosen):
        if (member == name).any():
            places.append((name, *np.median(points_S2[member == name], axis=0).tolist()))
    placed: list[tuple[str, float, float]] = []
    for name, x, y in sorted(places, key=lambda place: place[2]):
        half = min(len(name) * LETTER[0], WIDTH) / 2
        x = min(max(x, half), WIDTH - half)  # whole within the map
        while any(
            abs(x - other_x) < half + len(other) * LETTER[0] / 2 and abs(y - other_y) < LETTER[1]
            for other, other_x, other_y in placed
        ):
            y += LETTER[1] / 2
        placed.append((name, x, y))
    return placed


def build_map_page(page: MapPage, tab: Any) -> None:
    """The components, within a tab; it is filled when it is first opened."""
    state, maps = gr.State(page.opening()), part('<div class="ace"><p>The map is being drawn.</p></div>')
    message = gr.HTML("", apply_default_css=False)

    def show(view: MapView, change: Callable[[], MapView]) -> tuple[Any, ...]:
        """The page after a change; after a refusal as it was, with a message."""
        try:
            with page.desk:
                changed = change()
                return changed, page.html(changed), ""
        except UserError as error:
            return view, gr.skip(), message_html(page.desk.refusal(error))

    def press(view: MapView, event: gr.EventData) -> tuple[Any, ...]:
        return show(view, lambda: page.press(view, *asked(event._data)))

    shown = [state, maps, message]
    tab.select(lambda view: show(view, lambda: view), [state], shown)
    maps.select(press, [state], shown, show_progress="hidden")
