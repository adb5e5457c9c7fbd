"""Text from elsewhere, made harmless for the place where it is shown or kept."""

import re

# What a spreadsheet runs when a cell begins with it (OWASP, "CSV injection"); the last four are full-width forms.
RUNS = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.I)
MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#.!|~:&$@^])")


def markdown(text: str) -> str:
    """`text` as one line of Markdown that shows it letter by letter: no link, picture, HTML or formula comes of it."""
    return MARKDOWN.sub(r"\\\1", " ".join(text.split()))


def printable(text: str) -> str:
    """`text` with control characters written out, so that a terminal shows them and does not obey; new lines stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", lambda c: repr(c[0])[1:-1], text)


def guarded(cell: object) -> str:
    """A CSV cell that no spreadsheet runs: text that begins like a formula gets `'` in front, numbers stay."""
    text = "" if cell is None else str(cell)
    return f"'{text}" if RUNS.match(text) and not NUMBER.fullmatch(text) else text


def unguarded(cell: str) -> str:
    """The text that `guarded` was given."""
    return cell[1:] if cell.startswith("'") and RUNS.match(cell) and not NUMBER.fullmatch(cell[1:]) else cell
