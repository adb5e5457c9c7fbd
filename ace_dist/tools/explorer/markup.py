"""Pieces of HTML that all pages are made of: every word of a user or of a run is escaped, nothing is loaded."""

from html import escape
from importlib.resources import files
from typing import Any

from ace_dist.utils.errors import UserError

FILES = files(__package__)
STYLE = FILES.joinpath("page.css").read_text(encoding="utf-8")
SCRIPT = FILES.joinpath("page.js").read_text(encoding="utf-8")
LONGEST_VALUE = 1000  # characters of what a button asks for


def button(text: str, do: str, value: str, pressed: bool | None = None) -> str:
    """A button that asks the server for `do` with `value`. `text` is HTML; `pressed` is for one that switches."""
    given = {"type": "button", "data-do": do, "data-value": value}
    if pressed is not None:
        given["aria-pressed"] = str(pressed).lower()
    written = " ".join(f'{name}="{escape(text)}"' for name, text in given.items())
    return f"<button {written}>{text}</button>"


def message_html(text: str) -> str:
    """A message for the user; it stands on the screen however far the page is scrolled."""
    return f'<div class="ace-message" role="alert">{escape(text)}</div>' if text else ""


def asked(data: Any) -> tuple[str, str]:
    """What a button asks for: `do` and `value`. Raises `UserError` for what no button of ours sends."""
    if isinstance(data, dict):
        do, value = data.get("do"), data.get("value")
        if isinstance(do, str) and isinstance(value, str) and len(value) <= LONGEST_VALUE:
            return do, value
    raise UserError("the page sent something else than its buttons do: load it again")
