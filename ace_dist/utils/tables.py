"""Tables as people save them: columns in any order, header in any case, commas, semicolons or tabs between values.

What we write is `guarded`: a spreadsheet program runs no cell of it. What we read is freed of the guard again.
"""

import csv
import difflib
import io
import re
from collections.abc import Iterable, Sequence

from ace_dist.utils.errors import DataError

Row = dict[str, str]
DELIMITERS = ",;\t"
LEFT_OVER = "\n"  # the column of values behind the last one of the header, whose names hold no line break
# What a spreadsheet runs when a cell begins with it (OWASP, "CSV injection"); the last four are full-width forms.
RUNS = re.compile(r"'*\s*[=+\-@\t\r\n＝＋－＠]")
DECIMAL_COMMA = re.compile(r"^([+-]?(?:\d+:){0,2}\d+),(\d+)$")  # of a number, or of H:MM:SS
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(inf|nan)", re.I)


def parse_table(text: str, columns: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, Row]]:
    """Non-empty rows with their line numbers: column -> value, both without spaces around them.

    Columns are called as in the header, in lower case with underscores; those of `optional` that it lacks are empty.
    Where semicolons separate values, `1,5` is the number 1.5.
    A row that is too short lacks columns, see `check_row`. Raises `DataError` for a header without one of the other
    `columns` or with one twice, and for quotes that are not closed, which would swallow rows.
    """
    first = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [header_name(name) for name in next(reader, [])]
        check_header(header, columns, optional)
        absent = dict.fromkeys((name for name in optional if name not in header), "")
        rows = []
        for values in reader:
            cells = [unguarded(value.strip()).strip() for value in values]
            if delimiter == ";":  # what spreadsheets write where a comma stands before decimals
                cells = [DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in cells]
            row = dict(zip(header, cells, strict=False))
            if extra := [value for value in values[len(header) :] if value.strip()]:
                row[LEFT_OVER] = " ".join(extra)
            if any(row.values()):
                rows.append((reader.line_num, row | absent))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}: {error}; is a double quote not closed?") from error
    return rows


def header_name(text: str) -> str:
    """A column as `parse_table` calls it."""
    return "_".join(text.lower().replace("-", " ").replace("_", " ").split())


def check_header(header: Sequence[str], columns: Sequence[str], optional: Sequence[str]) -> None:
    if twice := [name for name in columns if header.count(name) > 1]:
        raise DataError(f"line 1: the header has {twice[0]} twice")
    missing, hints = [], []
    for column in (column for column in columns if column not in header):
        near = difflib.get_close_matches(column, [name for name in header if name not in columns], n=1)
        if near or column not in optional:
            missing.append(column)
            hints += [f"; rename {near[0]!r} to {column}" if near else ""]
    if missing and any(NUMBER.fullmatch(name) for name in header):  # a row of values
        raise DataError(f"line 1: write {','.join(columns)} as the first line; it has {', '.join(header)}")
    if missing:
        present = ", ".join(filter(None, header)) or "nothing"
        raise DataError(f"line 1: column {', '.join(missing)} is missing; the header has {present}{''.join(hints)}")


def check_row(row: Row, columns: Sequence[str]) -> None:
    """Raise `DataError` for a row with too few or too many values, or with a line break in one of `columns`."""
    if short := [column for column in columns if column not in row]:
        raise DataError(f"has no value for {', '.join(short)}")
    if LEFT_OVER in row:
        raise DataError(
            f"has more values than the header has columns ({row[LEFT_OVER]!r} is left over); put a value that holds a "
            "comma into double quotes"
        )
    if broken := [column for column in columns if "\n" in row[column] or "\r" in row[column]]:
        raise DataError(f"has a line break in {broken[0]}; is a double quote not closed?")


def guarded(cell: object) -> str:
    """A CSV cell that no spreadsheet runs: text that begins like a formula gets `'` in front, numbers stay."""
    text = "" if cell is None else str(cell)
    return f"'{text}" if RUNS.match(text) and not NUMBER.fullmatch(text) else text


def unguarded(cell: str) -> str:
    """The text that `guarded` was given."""
    return cell[1:] if cell.startswith("'") and RUNS.match(cell) and not NUMBER.fullmatch(cell[1:]) else cell


def csv_text(rows: Iterable[Iterable[object]], line_end: str = "\n") -> str:
    """CSV of `guarded` cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator=line_end).writerows([guarded(cell) for cell in row] for row in rows)
    return text.getvalue()
