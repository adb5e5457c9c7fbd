"""The actions that need trees: from a list, a CSV file, a class table of `assets/classes`, or labels line by line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.concepts.actions import Action
from ace_dist.utils.errors import LabelError


@dataclass(frozen=True)
class ActionList:
    """Distinct actions in their order, and, where the file says so (column `split`), which splits show each."""

    actions: tuple[Action, ...]
    splits: dict[Action, frozenset[str]]

    def base_verbs(self) -> set[str]:
        """Verbs of the actions with a row of the train split; of all actions where no row says `train`."""
        trained = [action for action in self.actions if "train" in self.splits[action]]
        return {action.verb for action in trained or self.actions}

    def by_verb(self) -> dict[str, Action]:
        """Each verb with its first action, whose object its synonyms are asked for."""
        first: dict[str, Action] = {}
        for action in self.actions:
            first.setdefault(action.verb, action)
        return first


def read_actions(source: str | Sequence[str]) -> ActionList:
    """Read `actions`: a list of labels, or a file.

    A `.csv` file has the columns `verb` and `object` (annotations will do), a `.json` file is a class table as in
    `ace_dist/assets/classes`, any other file has a label a line. Raises `LabelError` naming the file and its lines.
    """
    if not isinstance(source, str):
        rows = [(Action.parse(str(label)), "") for label in source]
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise LabelError(f"actions={source} does not exist; give a CSV or text file, or a list '[spin block, ...]'")
        read = {".csv": csv_rows, ".json": table_rows}.get(path.suffix.lower(), text_rows)
        rows = read(path)
    if not rows:
        raise LabelError(f"actions={source} holds no action")
    splits: dict[Action, set[str]] = {}
    for action, split in rows:
        splits.setdefault(action, set()).add(split)
    return ActionList(tuple(splits), {action: frozenset(names) for action, names in splits.items()})


def text_rows(path: Path) -> list[tuple[Action, str]]:
    """A label a line; empty lines and lines that begin with # are left out."""
    lines = read_text(path).splitlines()
    labels = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    return parse_rows(path, [(number, "", text, "") for number, text in labels if text and not text.startswith("#")])


def table_rows(path: Path) -> list[tuple[Action, str]]:
    """The actions of a class table, `{"actions": {label: [verb, object]}}`."""
    try:
        table = json.loads(read_text(path))["actions"]
        rows = [(Action(verb, object_), "") for verb, object_ in table.values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, LabelError):
            raise
        raise LabelError(f"actions={path} is not a class table as in ace_dist/assets/classes: {error!r}") from error
    return rows


def csv_rows(path: Path) -> list[tuple[Action, str]]:
    """The rows of a CSV file with the columns `verb` and `object`, and perhaps `split`."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    names = [name.strip() for name in reader.fieldnames or []]
    if missing := [name for name in ("verb", "object") if name not in names]:
        raise LabelError(
            f"actions={path}: column {', '.join(missing)} is missing; the header has {', '.join(names) or 'nothing'}"
        )
    reader.fieldnames = names
    rows = []
    for row in reader:
        verb, object_, split = ((row.get(name) or "").strip() for name in ("verb", "object", "split"))
        if verb or object_:
            rows.append((reader.line_num, verb, object_, split))
    return parse_rows(path, rows)


def parse_rows(path: Path, rows: list[tuple[int, str, str, str]]) -> list[tuple[Action, str]]:
    """Rows (line, verb, object, split) as actions; without a verb the object is a whole label. Lists every fault."""
    actions, faults = [], []
    for line, verb, object_, split in rows:
        try:
            actions.append((Action(verb, object_) if verb else Action.parse(object_), split))
        except LabelError as error:
            faults.append(f"line {line}: {error}")
    if faults:
        raise LabelError(f"actions={path}: " + "; ".join(faults[:20]))
    return actions


def read_text(path: Path) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"actions={path} is not text in UTF-8: {error}") from error
