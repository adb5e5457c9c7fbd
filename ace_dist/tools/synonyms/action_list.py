"""The actions that need trees: from a list, a CSV file, a class table of `assets/classes`, or labels line by line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.concepts.actions import Action
from ace_dist.concepts.classes import load_class_table
from ace_dist.concepts.makers import split_label
from ace_dist.utils.errors import DataError, LabelError
from ace_dist.utils.reading import why_no_file
from ace_dist.utils.tables import parse_table

Row = tuple[str, str | None, str, str]  # where it stands, verb, object, split


@dataclass(frozen=True)
class ActionList:
    """Distinct actions in their order, and, where the file says so (column `split`), which splits show each."""

    actions: tuple[Action, ...]
    splits: dict[Action, frozenset[str]]

    def base_verbs(self) -> set[str]:
        """Verbs of the actions with a row of the train split; of all actions where no row says `train`."""
        training = [action for action in self.actions if "train" in self.splits[action]]
        return {action.verb for action in training or self.actions}

    def by_verb(self) -> dict[str, Action]:
        """Each verb with its first action, whose object its synonyms are asked for."""
        first: dict[str, Action] = {}
        for action in self.actions:
            first.setdefault(action.verb, action)
        return first


def read_actions(source: str | Sequence[str]) -> ActionList:
    """Read `actions`: a list of labels, or a file.

    A `.csv` file has the columns `verb` and `object` (annotations will do; without a verb the object is a whole label),
    a `.json` file is a class table as in `ace_dist/assets/classes`, any other file has a label a line. Raises
    `LabelError` naming the file and its lines.
    """
    if isinstance(source, str):
        rows, where = read_rows(Path(source).expanduser()), f"actions={source}: "
    else:
        rows, where = [("", None, str(label), "") for label in source], ""
    if not rows:
        raise LabelError(f"actions={source} holds no action")
    splits: dict[Action, set[str]] = {}
    faults = []
    for line, verb, object_, split in rows:
        try:
            action = split_label(object_) if verb is None else Action(verb, object_)
            splits.setdefault(action, set()).add(split)
        except LabelError as error:
            faults.append(f"{line}{error}")
    if faults:
        raise LabelError(where + "; ".join(faults[:20]))
    return ActionList(tuple(splits), {action: frozenset(names) for action, names in splits.items()})


def read_rows(path: Path) -> list[Row]:
    """The rows of a file; empty lines, and in a text file those that begin with #, are left out."""
    if not path.is_file():
        raise LabelError(f"actions={path} {why_no_file(path)}; give a CSV or text file, or a list '[spin block, ...]'")
    if path.suffix.lower() == ".json":
        return [("", a.verb, a.object, "") for a in load_class_table(path, "actions").actions.values()]
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"actions={path} is not text in UTF-8: {error}") from error
    if path.suffix.lower() == ".csv":
        try:
            table = parse_table(text, ("verb", "object"))
        except DataError as error:
            raise LabelError(f"actions={path}: {error}") from error
        return [
            (f"line {line}: ", row.get("verb") or None, row.get("object", ""), row.get("split", "").lower())
            for line, row in table
            if row.get("verb") or row.get("object")
        ]
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(f"line {number}: ", None, line, "") for number, line in lines if line and not line.startswith("#")]
