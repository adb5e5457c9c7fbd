"""Makes the manifest that `ata.py` reads out of a copy of ATA, as far as its release is publicly described.

Public (Ghoddoosian et al., ICCV 2023, section 3): 32 people build three toys three times each before four cameras
(front, side, overhead, global): 1,152 videos at 30 frames a second; start and end frames of 15 actions, of which `SIL`
is the background; in test videos labels of 11 error classes, which are of whole videos and no actions; 27 people train,
1 validates, 4 test. *Not* public: how files are named, and who tests. So this takes the two forms in which such labels
are written, one text file a video or a synchronised recording,

- one label a line, one line a frame (MS-TCN's form, which the first author's earlier code reads), or
- a row a segment: a label, the start and the end in frames, in any order, separated by commas, tabs or spaces,

and finds person, toy, view and take in the paths by regular expressions that are settings. Whatever it cannot place is
said in one message.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from ace_dist.concepts import load_class_table
from ace_dist.config import assets_dir
from ace_dist.data.annotations.ata import COLUMNS
from ace_dist.utils.errors import ConfigError, DataError, listing
from ace_dist.utils.files import write_text
from ace_dist.utils.reading import files_below
from ace_dist.utils.tables import csv_text

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
LABEL_SUFFIXES = (".txt", ".csv", ".tsv")
Row = tuple[int, int, str]  # first frame, end (not included), label
COLUMN_OF = {"videos": 0, "people": 2, "toys": 3, "views": 1, "labels": 6}  # of the manifest
EXPECTED = {"videos": 1152, "people": 32, "toys": 3, "views": 4, "labels": 15}  # of the paper


@dataclass
class ConvertConfig:
    """Settings of `ace shards ata`. `person` to `take`: regular expressions over a path, with a group."""

    root: str = ""  # folder of videos and label files
    output: str = ""  # the manifest; videos in it are named relative to its folder
    person: str = r"(?i)(?:^|[/_-])((?:p|s|person|participant|subject|user)[_-]?\d+)"
    toy: str = r"(?i)(airplane|record[_-]?player|table)"
    view: str = r"(?i)(front|side|overhead|global)"
    take: str = r"(?i)(?:take|trial|rep|seq)[_-]?(\d+)|[_-](\d)(?=[_./-])"
    end_included: bool | None = None  # rows name the last frame; null: as neighbouring rows show


class Place(NamedTuple):
    """What a path says of a recording; empty where it says nothing."""

    person: str
    toy: str
    take: str
    view: str


def convert(config: ConvertConfig) -> list[str]:
    """Write the manifest; returns what a user should know, a line each. Raises `DataError` with all that is missing."""
    root, output = Path(config.root).expanduser(), Path(config.output).expanduser()
    if not config.root or output.suffix != ".csv":
        raise ConfigError("give root=FOLDER (videos and label files of ATA) and output=FILE.csv, the manifest to write")
    files = [path for path in files_below(root) if path != output] if root.is_dir() else []
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    places = {path: place(config, path.relative_to(root)) for path in files}
    texts = [path for path in files if path.suffix.lower() in LABEL_SUFFIXES]
    labels = [path for path in texts if places[path].person]
    if not (videos and labels):
        raise DataError(
            f"root={root} holds {len(videos)} videos ({', '.join(VIDEO_SUFFIXES)}) and {len(labels)} label files "
            f"({', '.join(LABEL_SUFFIXES)}) whose path names a person; ATA is to be had on request from "
            f"usa.honda-ri.com/ata, and person=REGEX says how its people are named"
        )
    annotated, problems = read_all(root, labels, places, config.end_included)
    lines, used = [], set()
    for path in videos:
        where, name = places[path], path.relative_to(root)
        if absent := [field for field in ("person", "toy", "view") if not getattr(where, field)]:
            problems.append(
                f"{name} says no {', '.join(absent)}: set {', '.join(f'{field}=REGEX' for field in absent)}"
            )
            continue
        key = where if where in annotated else where._replace(view="")  # a file for each camera, or one for all four
        if key not in annotated:
            problems.append(f"{name} has no label file ({where})")
            continue
        used.add(key)
        video = Path(os.path.relpath(path.resolve(), output.resolve().parent)).as_posix()
        lines += [[video, where.view, where.person, where.toy, *row] for row in annotated[key]]
    problems += [f"the label file of {key} is of no video" for key in annotated if key not in used]
    if problems:
        raise DataError(
            f"{root} does not fit together:{listing(problems)}\nthe release's own names are not public: say what a "
            f"path means with person=, toy=, view= and take=, regular expressions with a group"
        )
    write_text(output, csv_text([COLUMNS, *lines]))
    notes = [f"not read: {path.relative_to(root)} names no person" for path in texts if path not in labels]
    return [*report(output, lines), *notes]


def place(config: ConvertConfig, path: Path) -> Place:
    """What a path relative to the root says, the last match of each expression."""
    text, found = path.as_posix(), {}
    for field in Place._fields:
        matches = list(re.finditer(getattr(config, field), text))
        found[field] = next((group.lower() for group in matches[-1].groups() if group), "") if matches else ""
    return Place(**found)._replace(toy=re.sub(r"[_-]", "_", found["toy"]).replace("recordplayer", "record_player"))


def read_all(
    root: Path, labels: Sequence[Path], places: Mapping[Path, Place], end_included: bool | None
) -> tuple[dict[Place, list[Row]], list[str]]:
    """The rows of every label file by its place, and what is wrong with the files."""
    annotated: dict[Place, list[Row]] = {}
    problems, unknown = [], Counter[str]()
    table = load_class_table(assets_dir() / "classes" / "ata.json")
    known = {label.lower(): label for label in (*table.actions, *table.not_actions)}
    for path in labels:
        name, where = path.relative_to(root), places[path]
        if where in annotated:
            problems.append(f"{name} is a second label file of {where}; the take= expression tells takes apart")
        try:
            rows = read_labels(path, end_included)
        except DataError as error:
            problems.append(f"{name}: {error}")
            continue
        unknown.update(label for _, _, label in rows if label.lower() not in known)
        annotated[where] = [(first, end, known.get(label.lower(), label)) for first, end, label in rows]
    for label, count in unknown.items():
        near = difflib.get_close_matches(label, list(known), n=1)
        problems.append(
            f"{count} segments are labelled {label!r}, no label of ATA" + (f"; nearest: {near[0]}" if near else "")
        )
    return annotated, problems


def read_labels(path: Path, end_included: bool | None) -> list[Row]:
    """First frame, end (not included) and label of every segment. Raises `DataError` for a line of neither form."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    words = [re.split(r"[,;\s]+", line) for line in lines]
    if all(len(row) == 1 for row in words):  # a label a frame
        rows, first = [], 0
        for (label,), run in groupby(words):
            end = first + sum(1 for _ in run)
            rows.append((first, end, label))
            first = end
        return rows
    rows = []
    for number, row in enumerate(words, start=1):
        frames = [int(word) for word in row if word.isdecimal()]
        label = "_".join(word for word in row if not word.isdecimal())
        if len(frames) == 2 and label and frames[0] <= frames[1]:
            rows.append((frames[0], frames[1], label))
        elif number > 1 or frames:  # the first line may be a header
            raise DataError(f"line {number}, {lines[number - 1]!r}, is not a label with its first and its last frame")
    rows.sort()
    if end_included is None:  # neighbours that meet at k and k + 1 name their last frames
        meets = Counter(after[0] - before[1] for before, after in pairwise(rows))
        end_included = meets[1] > meets[0]
    return [(first, end + end_included, label) for first, end, label in rows]


def report(output: Path, lines: Sequence[Sequence[object]]) -> list[str]:
    """What was found beside what the paper says, and what is left to say."""
    counted = {name: len({line[column] for line in lines}) for name, column in COLUMN_OF.items()}
    people = sorted({str(line[2]) for line in lines})
    notes = [f"{output}: {len(lines)} segments; " + ", ".join(f"{found} {name}" for name, found in counted.items())]
    notes += [
        f"{name}: {found} here, {EXPECTED[name]} in the paper"
        for name, found in counted.items()
        if found != EXPECTED[name]
    ]
    return [
        *notes,
        f"people: {', '.join(people)}",
        "which four test and which one validates is not published: set dataset.test_groups='[A, B, C, D]' and "
        "dataset.left_out_groups='[E]' for ace shards dataset=ata dataset.annotations=" + str(output),
    ]
