"""Text from elsewhere, made harmless for the place where it is shown; durations in words."""

import math
import re

# A name such as `take_1.0 (left)` stays as it is.
MARKDOWN = re.compile(r"(?<!\w)_|_(?!\w)|(?<=www)\.|:(?=//)|(?<=mailto):|(?<=xmpp):|[\\`*\[\]<>#|~&$@]", re.I)


def markdown(text: str) -> str:
    """`text` as one line of Markdown that shows it letter by letter: no link, picture, HTML or formula comes of it."""
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.split()))


def printable(text: str) -> str:
    """`text` with control characters written out, so that a terminal shows them and does not obey; new lines stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda c: repr(c[0])[1:-1], text)


def cut(text: str, width: int) -> str:
    """At most `width` characters of `text`, the last one an ellipsis where some are left out."""
    return text if len(text) <= width else text[: width - 1] + "…"


def in_words(seconds: float) -> str:
    """A duration in the unit that one would say it in."""
    units = {"seconds": (1, 90), "minutes": (60, 90 * 60), "hours": (3600, 48 * 3600), "days": (86400, math.inf)}
    unit = next(name for name, (_, most) in units.items() if seconds < most)
    count = seconds / units[unit][0]
    return f"{count:.1f} {unit}" if count < 10 else f"{count:.0f} {unit}"
