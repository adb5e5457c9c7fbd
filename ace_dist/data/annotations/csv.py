"""Reads CSV annotation files, one labelled segment a row, and says every way in which such a file can be wrong.

Exports of annotation tools, and a folder per label, become such rows first: see `exports`, `label_folders`.

Columns `video,start_s,end_s,verb,object,split,group`; times are those that players show, an empty one is the beginning
or end of the video; relative paths count from the CSV's folder; other columns are ignored. Times are seconds or
H:MM:SS.s. Commas, semicolons or tabs separate values, and the header's case does not matter. Without any split all rows
train, and `dataset.test_groups` says which groups are tested. `columns` reads files with other columns.
"""

import functools
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath

from ace_dist.concepts import Action
from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.annotations.base import VideoReader
from ace_dist.data.annotations.columns import check_columns, label_hint, map_row, source_columns
from ace_dist.data.annotations.exports import export_notes, export_rows, is_export
from ace_dist.data.annotations.label_folders import folder_rows
from ace_dist.data.segments import Failure, Segment, parse_split
from ace_dist.utils.errors import ConfigError, DataError, UserError, listing
from ace_dist.utils.reading import why_no_file
from ace_dist.utils.tables import Row, check_row, parse_table

COLUMNS = ("video", "start_s", "end_s", "verb", "object", "split", "group")
OPTIONAL = ("split", "group")


def build_reader(dataset: DatasetConfig) -> VideoReader:
    if not dataset.annotations:
        raise DataError(f"dataset={dataset.name} needs dataset.annotations=FILE, a CSV file of segments")
    return read_csv(
        resolve_path(dataset.annotations),
        fps=dataset.encoding.fps,
        short_side=dataset.encoding.short_side,
        keep_faults=dataset.allow_quarantine,
        columns=dataset.columns,
        timeout_s=dataset.timeout_s,
    )


def read_csv(
    path: Path,
    *,
    fps: float | None = None,
    short_side: int = 0,
    keep_faults: bool = False,
    columns: Mapping[str, str] | None = None,
    timeout_s: float = 0.0,
) -> VideoReader:
    """The rows in file order. `columns`, `timeout_s`: those of `dataset`; an export in frames opens its videos.

    Raises `DataError` with every fault of the file, unless `keep_faults` collects them as `rejected` instead.
    """
    segments: list[Segment] = []
    faults: list[str] = []
    rejected: list[Failure] = []
    first_place: dict[tuple[object, ...], str] = {}
    named: dict[tuple[object, ...], dict[str, str]] = {}  # the labels of each stretch of video, and where they stand
    whole = functools.cache(os.path.realpath)  # one file under two names is one video
    for place, row in annotated_rows(path, columns or {}, timeout_s):
        try:
            if columns:
                row = map_row(row, columns, COLUMNS) | ({} if "split" in columns else {"split": "train"})
            segment = parse_row(path, row, place)
            stretch = whole(segment.video), segment.start_s, segment.end_s
            identity = (*stretch, segment.verb, segment.object)
            if identity in first_place:
                raise DataError(f"repeats {first_place[identity]}: same video, times and action")
        except UserError as fault:
            faults.append(f"{place}: {fault}")
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", place)
            rejected.append(Failure(name, row.get("video", ""), f"{path.name} {place}", str(fault)))
            continue
        first_place[identity] = place
        named.setdefault(stretch, {})[f"{segment.verb} {segment.object}"] = place
        segments.append(segment)
    if faults and not keep_faults:
        raise faults_error(path, faults)
    if not segments and not faults:
        raise faults_error(path, ["has a header and no row"])
    notes = two_labels(path, list(named.values())) + (export_notes(path) if is_export(path) else [])
    return VideoReader(segments, fps, short_side, notes, rejected)


def two_labels(path: Path, named: Sequence[Mapping[str, str]]) -> list[str]:
    """A note when one stretch of video has several labels."""
    found = [labels for labels in named if len(labels) > 1]
    if not found:
        return []
    texts = [" and ".join(f"{label!r} ({place})" for label, place in labels.items()) for labels in found[:3]]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return [
        f"note: {path} gives one stretch of video several labels: {'; '.join(texts)}{more}. A clip has one right "
        f"answer, so that each of them counts as wrong for the others"
    ]


def annotated_rows(path: Path, columns: Mapping[str, str], timeout_s: float) -> Iterable[tuple[str, Row]]:
    """Where each annotation stands, and its row. Of a CSV file all are of the training split when no row has one."""
    if columns:
        check_columns(columns, COLUMNS)
        if is_export(path) or path.is_dir():
            raise ConfigError(f"dataset.columns is of CSV files, and dataset.annotations={path} is none; leave it out")
        rows = numbered_rows(path, source_columns(columns))
        return [(f"line {line}", row) for line, row in rows]
    if is_export(path):
        return export_rows(path, timeout_s)
    if path.is_dir() and not any(path.glob("*.csv")):
        return folder_rows(path)
    rows = numbered_rows(path, COLUMNS, OPTIONAL)
    unsplit = {"split": "train"} if not any(row.get("split") for _, row in rows) else {}
    return [(f"line {line}", row | unsplit if "split" in row else row) for line, row in rows]


def parse_row(path: Path, row: Row, place: str) -> Segment:
    """One row as a segment; raises `UserError` with what is wrong and what to write instead."""
    check_row(row, COLUMNS)
    for column in ("video", "verb"):
        if not row[column]:
            raise DataError(f"{column} is empty")
    if not row["object"]:
        raise DataError('object is empty; write a placeholder such as "item" or "ingredient" if there is none')
    start_s, end_s = seconds(row, "start_s", 0.0), seconds(row, "end_s", math.inf)
    if start_s >= end_s:
        raise DataError(f"start_s={row['start_s']} is not before end_s={row['end_s']}")
    video = find_video(path.parent, row["video"])
    return Segment(
        id=segment_id(path.parent, video, start_s, end_s, Action(row["verb"], row["object"])),
        video=str(video),
        start_s=start_s,
        end_s=end_s,
        verb=row["verb"],
        object=row["object"],
        split=parse_split(row["split"]),
        group=unicodedata.normalize("NFC", row["group"]),  # a person typed here and named by a file there is one
        origin=f"{path} {place}",
    )


def segment_id(folder: Path, video: Path, start_s: float, end_s: float, action: Action) -> str:
    """Says where a segment comes from, and depends on its own row alone, not on the form in which the row says it.

    The video counts from the nearest folder that holds both it and the annotations: so the ids stay when a project
    moves, and are the same in `annotations.csv` and in the `own/annotations.csv` that `ace own` writes.
    """
    path = os.path.relpath(folder / path_from(folder, video), folder)
    within = [part for part in Path(path).parts if part != os.pardir]
    content = "\n".join(["/".join(within), *written_times(start_s, end_s), action.verb, action.object])
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", video.stem).strip("-")[:40] or "video"
    return f"{stem}-{round(1000 * start_s):07d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def path_from(folder: Path, video: Path) -> str:
    """The path of a video from a folder; an absolute one where `..` follows a symbolic link, and so leads elsewhere."""
    path = os.path.relpath(video, folder)
    if os.pardir not in (*video.parts, *Path(path).parts):
        return path
    file = os.path.realpath(video)
    return path if os.path.realpath(folder / path) == file else file


def written_times(start_s: float, end_s: float) -> list[str]:
    """As a row has them: nothing for the beginning and the end of the video."""
    return ["" if time in (0.0, math.inf) else repr(time) for time in (start_s, end_s)]


def find_video(folder: Path, name: str) -> Path:
    """The video that a row names, also with the backslashes of Windows. Raises `DataError` when there is none."""
    windows = PureWindowsPath(name)
    for path in (folder / name, *([folder / windows.as_posix()] if "\\" in name else [])):
        try:
            if path.is_file():
                return path
        except OSError:  # a name that is too long
            continue
    hint = "; write it relative to the folder of the CSV file" if windows.drive else ""
    raise DataError(f"video {folder / name} {why_no_file(folder / name)}{hint}")


def faults_error(path: Path, faults: list[str]) -> DataError:
    text = f" {faults[0]}" if len(faults) == 1 else f"{listing(faults)}\n"
    return DataError(f"{path}:{text} (dataset.annotations)")


def numbered_rows(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> list[tuple[int, Row]]:
    """`parse_table` of a file. Raises `DataError` naming it."""
    if path.is_dir():
        files = sorted(map(str, path.glob("*.csv")))
        hint = f", such as {files[0]}" if files else "; it holds none that ends in .csv"
        raise DataError(f"dataset.annotations={path} is a folder; name the CSV file in it{hint}")
    if not path.is_file():
        raise DataError(f"dataset.annotations={path} {why_no_file(path)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise faults_error(path, [f"is not a CSV file in UTF-8; save it as such: {error}"]) from error
    except OSError as error:
        raise faults_error(path, [f"cannot be read: {error.strerror}"]) from error
    try:
        return parse_table(text, columns, optional)
    except DataError as error:
        hint = label_hint(text.partition("\n")[0]) if columns == COLUMNS else ""
        raise faults_error(path, [f"{error}{hint}"]) from error


def seconds(row: Mapping[str, str], column: str, empty: float) -> float:
    """A time of a row, or `empty`. Raises `DataError` when it is not a finite number from 0 on."""
    if not row[column]:
        return empty
    try:
        value = float(row[column])
    except ValueError:
        value = clock_seconds(row[column])
    if not math.isfinite(value):
        hint = "; write minutes as seconds, or as H:MM:SS" if ":" in row[column] else ""
        hint = "; write decimals with a point" if "," in row[column] else hint
        raise DataError(f"{column}={row[column]!r} is not a number of seconds{hint}")
    if value < 0:
        raise DataError(f"{column}={row[column]} is negative")
    return value


def clock_seconds(text: str) -> float:
    """Of H:MM:SS.s; nan for another form, also MM:SS, which some read as hours and minutes."""
    if found := re.fullmatch(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)", text):
        hours, minutes, rest = map(float, found.groups())
        return 3600 * hours + 60 * minutes + rest
    return math.nan
