"""The clips of the test split as pictures to choose from, each with its true label and whether it was trained on."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest

from ace_dist.tools.explorer.answer import kind_html
from ace_dist.tools.explorer.markup import button
from ace_dist.tools.explorer.session import TestClip
from ace_dist.utils.pictures import data_uri

SHOWN = 16  # at once


@dataclass(frozen=True)
class Shelf:
    """Which clips are shown: those of one action, or of all ("") one an action before the second ones."""

    action: str = ""
    first: int = 0


def sorted_clips(tests: Sequence[TestClip], action: str) -> list[TestClip]:
    """Clips of `action`; for "" of all, novel actions first, one of each before the second of any."""
    groups: dict[str, list[TestClip]] = defaultdict(list)
    for test in sorted(tests, key=lambda test: test.base):
        if action in ("", test.action):
            groups[test.action].append(test)
    return [test for row in zip_longest(*groups.values()) for test in row if test is not None]


def gallery_html(tests: Sequence[TestClip], still: Callable[[str], bytes], shelf: Shelf, chosen: str | None) -> str:
    clips = sorted_clips(tests, shelf.action)
    items = "".join(
        "<li>"
        + button(
            f'<img src="{data_uri("image/jpeg", still(test.id))}" alt=""><b>{escape(test.action)}</b>'
            + kind_html(test.base),
            "clip",
            test.id,
            test.id == chosen,
        )
        + "</li>"
        for test in clips[shelf.first : shelf.first + SHOWN]
    )
    options = "".join(
        f'<option value="{escape(name)}"{" selected" * (name == shelf.action)}>{escape(name) or "all actions"}</option>'
        for name in ["", *sorted({test.action for test in tests})]
    )
    last = min(shelf.first + SHOWN, len(clips))
    back = button("Earlier", "shelf", str(max(0, shelf.first - SHOWN))) if shelf.first else ""
    onward = button("More", "shelf", str(last)) if last < len(clips) else ""
    return (
        f'<div class="ace"><h2>Clips of the test people</h2><div class="ace-tools"><label>Action '
        f'<select data-do="action">{options}</select></label><span class="quiet">{shelf.first + 1} to {last} of '
        f"{len(clips)}</span>{back}{onward}</div>"
        f'<ul class="ace-gallery" tabindex="0" aria-label="Clips to choose from">{items}</ul></div>'
    )
