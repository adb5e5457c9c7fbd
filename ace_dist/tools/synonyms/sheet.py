"""Trees as a sheet that a person edits, and back, with the differences as provenance.

A CSV file with one row a node of the last order: its path (`verb`, `child`, ...) and one synonym a column. The parent
is not repeated among the synonyms; on import it is put first. Deleting a row deletes a child, a new row adds one.
"""

import csv
import datetime
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace_dist.concepts.actions import normalise
from ace_dist.concepts.trees import SynonymTrees, walk
from ace_dist.utils.errors import LabelError
from ace_dist.utils.files import write_text
from ace_dist.utils.reading import read_object, why_no_file
from ace_dist.utils.tables import csv_text, unguarded

Nodes = dict[tuple[str, ...], tuple[str, ...]]  # path of an inner node -> its children
PATH_COLUMNS = ("verb", "child", "grandchild")  # deeper ones are called "order 3", ...


def export_sheet(trees: Path, sheet: Path) -> int:
    """Write the trees of a file, those of an unfinished build included, as a sheet; returns the number of rows."""
    if sheet.exists():
        raise LabelError(f"sheet={sheet} exists already; an export would overwrite what was edited in it")
    nodes, _, _ = read_nodes(trees)
    orders = max(map(len, nodes))
    rows = [(path, [verb for verb in children if verb != path[-1]])
            for path, children in nodes.items() if len(path) == orders]  # fmt: skip
    width = max(len(synonyms) for _, synonyms in rows) or 1
    header = [*path_columns(orders), *(f"synonym {i + 1}" for i in range(width))]
    text = csv_text([header, *([*path, *synonyms] for path, synonyms in rows)], line_end="\r\n")
    write_text(sheet, "\ufeff" + text)  # with the mark, spreadsheet programs read UTF-8
    return len(rows)


def import_sheet(sheet: Path, trees: Path, out: Path, editor: str | None) -> list[str]:
    """Read an edited sheet into the tree file `out`; returns the differences from `trees`, one line a node.

    `_meta` is that of `trees` with one more entry in `hand_edits`: date, editor, sheet, counts, differences. `_words`,
    of which a sheet has no rows, stay but for those that the sheet gives a node in the tree.
    Raises `LabelError` for whatever is wrong; nothing is written then.
    """
    before, meta, words = read_nodes(trees)
    check_output(out, trees, sheet, meta)
    after = read_sheet(sheet)
    changes = differences(before, inner_nodes(after))
    gone = [(root, verb) for root, below in words.items() for verb in below if verb in after.get(root, below)]
    changes += [
        f"_words > {root} > {verb}: removed, {'it has a node in the tree' if root in after else 'as its tree is'}"
        for root, verb in gone
    ]
    kept = {root: {verb: below[verb] for verb in below if (root, verb) not in gone} for root, below in words.items()}
    edit = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "editor": editor or "not named",
        "from": trees.name,
        "sheet": sheet.name,
        "nodes_changed": len(changes),
        "differences": changes,
    }
    meta["hand_edits"] = meta.get("hand_edits", []) + ([edit] if changes else [])
    meta = {key: value for key, value in meta.items() if key not in ("missing", "unfinished")}
    edited = SynonymTrees(after, meta, str(sheet), words={root: below for root, below in kept.items() if below})
    if meta["hand_edits"]:  # else the digest of the build stays, by which an edited file is told
        edited.sign()
    edited.save(out)
    return changes


def check_output(out: Path, trees: Path, sheet: Path, meta: Mapping[str, Any]) -> None:
    """Raise `LabelError` where `out` holds a person's work that is neither in `trees` nor of an earlier import."""
    if not out.is_file() or out.samefile(trees):
        return
    found, known = SynonymTrees.load(out), meta.get("hand_edits", [])
    ours = {"from": trees.name, "sheet": sheet.name}
    others = [edit for edit in found.meta.get("hand_edits", []) if edit not in known and edit != {**edit, **ours}]
    if found.is_edited or others:
        raise LabelError(
            f"output={out} was edited by hand, and not by trees={trees} and sheet={sheet}; choose another name, or "
            "move it away"
        )


def read_nodes(path: Path) -> tuple[Nodes, dict[str, Any], Mapping[str, Mapping[str, Any]]]:
    """The nodes of a tree file, those of its unfinished trees included, its `_meta` and its `_words`."""
    nodes: Nodes = {}
    words: Mapping[str, Mapping[str, Any]] = {}
    try:
        trees = SynonymTrees.load(path)
        meta, words = trees.meta, trees.words
        nodes = {node: children for root in trees.roots for node, children in trees.nodes(root)}
    except LabelError:
        meta = raw_object(path).get("_meta", {})
        if not meta.get("unfinished"):
            raise
        # An unfinished build without a single whole tree is no valid tree file.
    return nodes | inner_nodes(meta.get("unfinished", {})), meta, words


def raw_object(path: Path) -> dict[str, Any]:
    """A tree file as it stands, whether its trees are whole or not; empty when it is missing or no object."""
    return read_object(path, LabelError) if path.is_file() else {}


def inner_nodes(nested: Mapping[str, Any]) -> Nodes:
    return {path: tuple(node) for root, tree in nested.items() for path, node in walk((root,), tree)}


def path_columns(orders: int) -> list[str]:
    return [PATH_COLUMNS[i] if i < len(PATH_COLUMNS) else f"order {i}" for i in range(orders)]


def read_sheet(sheet: Path) -> dict[str, Any]:
    """A sheet as nested nodes. Verbs are put into lower case with single spaces; every other fault is an error."""
    if not sheet.is_file():
        raise LabelError(f"sheet={sheet} {why_no_file(sheet)}")
    try:
        text = sheet.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(f"sheet={sheet} is not CSV in UTF-8; save it as 'CSV UTF-8': {error}") from error
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    header = [normalise(name) for name in next(reader, [])]
    orders = next((i for i, name in enumerate(header) if name.startswith("synonym")), 0)
    if orders < 2 or header[:orders] != path_columns(orders):
        raise LabelError(f"sheet={sheet}: its header must read verb, child, synonym 1, synonym 2, ...; found {header}")
    nodes: dict[str, Any] = {}
    for row in reader:
        cells = [normalise(unguarded(cell)) for cell in row]
        if not any(cells):
            continue
        path, where = cells[:orders], f"sheet={sheet} line {reader.line_num}"
        if len(path) < orders or not all(path):
            raise LabelError(f"{where}: a cell of {path} is empty; every row needs its whole path")
        node = nodes
        for verb in path[:-1]:
            node = node.setdefault(verb, {})
        if path[-1] in node:
            raise LabelError(f"{where}: {' > '.join(path)!r} occurs twice")
        node[path[-1]] = [path[-1], *(cell for cell in cells[orders:] if cell not in ("", path[-1]))]
    if not nodes:
        raise LabelError(f"sheet={sheet} holds no row")
    return nodes


def differences(old: Nodes, new: Nodes) -> list[str]:
    """What changed, a line a node: `spin > rotate: + swivel - roll`. An order that changed counts: M cuts by it."""
    lines = []
    for path in dict.fromkeys([*old, *new]):
        name = " > ".join(path)
        if path not in new:
            lines.append(f"{name}: node removed")
        elif path not in old:
            lines.append(f"{name}: node added: {', '.join(new[path])}")
        elif old[path] != new[path]:
            added = [f"+ {verb}" for verb in new[path] if verb not in old[path]]
            removed = [f"- {verb}" for verb in old[path] if verb not in new[path]]
            lines.append(f"{name}: {' '.join([*added, *removed]) or 'order changed'}")
    return lines
