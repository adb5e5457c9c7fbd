"""Reads CSV annotation files: one labelled segment a row. Says every way in which such a file can be wrong.

Columns `video,start_s,end_s,verb,object,split,group`; relative paths count from the CSV's folder; other columns are
ignored.
"""

import csv
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.annotations.base import VideoReader
from ace_dist.data.segments import SPLITS, Failure, Segment
from ace_dist.utils.errors import DataError, listing

COLUMNS = ("video", "start_s", "end_s", "verb", "object", "split", "group")


def build_reader(dataset: DatasetConfig) -> VideoReader:
    if not dataset.annotations:
        raise DataError(f"dataset={dataset.name} needs dataset.annotations=FILE, a CSV file of segments")
    return read_csv(
        resolve_path(dataset.annotations),
        fps=dataset.encoding.fps,
        short_side=dataset.encoding.short_side,
        keep_faults=dataset.allow_quarantine,
    )


def read_csv(path: Path, *, fps: float | None = None, short_side: int = 0, keep_faults: bool = False) -> VideoReader:
    """The rows in file order.

    Raises `DataError` with every fault of the file, unless `keep_faults` collects them as `rejected` instead.
    """
    segments: list[Segment] = []
    faults: list[str] = []
    rejected: list[Failure] = []
    first_line: dict[tuple[object, ...], int] = {}
    for line, row in numbered_rows(path, COLUMNS):
        try:
            segment = parse_row(path, row, line)
            identity = (segment.video, segment.start_s, segment.end_s, segment.verb, segment.object)
            if identity in first_line:
                raise DataError(f"repeats line {first_line[identity]}: same video, times and action")
        except DataError as fault:
            faults.append(f"line {line}: {fault}")
            rejected.append(Failure(f"line-{line}", row.get("video", ""), f"{path.name} line {line}", str(fault)))
            continue
        first_line[identity] = line
        segments.append(segment)
    if faults and not keep_faults:
        raise faults_error(path, faults)
    if not segments and not faults:
        raise faults_error(path, ["has a header and no row"])
    return VideoReader(segments, fps, short_side, rejected=rejected)


def parse_row(path: Path, row: Mapping[str, str], line: int) -> Segment:
    """One row as a segment; raises `DataError` with what is wrong and what to write instead."""
    if short := [column for column in COLUMNS if column not in row]:
        raise DataError(f"has no value for {', '.join(short)}")
    for column in ("video", "verb"):
        if not row[column]:
            raise DataError(f"{column} is empty")
    if not row["object"]:
        raise DataError('object is empty; write a placeholder such as "item" or "ingredient" if there is none')
    if row["split"] not in SPLITS:
        raise DataError(f"split={row['split']!r} is not one of {', '.join(SPLITS)}")
    start_s, end_s = seconds(row, "start_s"), seconds(row, "end_s")
    if start_s >= end_s:
        raise DataError(f"start_s={row['start_s']} is not before end_s={row['end_s']}")
    video = path.parent / row["video"]
    if not video.is_file():
        raise DataError(f"video {video} does not exist")
    # The id says where a segment comes from, and depends on its own row alone.
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(row["video"]).stem).strip("-")[:40] or "video"
    content = "\n".join(row[column] for column in ("video", "start_s", "end_s", "verb", "object"))
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return Segment(
        id=f"{stem}-{round(1000 * start_s):07d}-{digest}",
        video=str(video),
        start_s=start_s,
        end_s=end_s,
        verb=" ".join(row["verb"].split()),
        object=" ".join(row["object"].split()),
        split=row["split"],
        group=row["group"],
        origin=f"{path} line {line}",
    )


def faults_error(path: Path, faults: list[str]) -> DataError:
    text = f" {faults[0]}" if len(faults) == 1 else f"{listing(faults)}\n"
    return DataError(f"{path}:{text} (dataset.annotations)")


def numbered_rows(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """Non-empty rows of a CSV file with their line numbers, values stripped. Checks that the header has `columns`."""
    if path.is_dir():
        files = sorted(map(str, path.glob("*.csv")))
        hint = f", such as {files[0]}" if files else "; it holds none that ends in .csv"
        raise DataError(f"dataset.annotations={path} is a folder; name the CSV file in it{hint}")
    if not path.is_file():
        raise DataError(f"dataset.annotations={path} does not exist")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            if missing := [column for column in columns if column not in header]:
                present = ", ".join(header) or "nothing"
                hint = "; columns are separated by commas, decimals written with a point" if ";" in present else ""
                raise faults_error(
                    path, [f"line 1: column {', '.join(missing)} is missing; the header has {present}{hint}"]
                )
            return [
                (reader.line_num, dict(zip(header, (value.strip() for value in row), strict=False)))
                for row in reader
                if any(value.strip() for value in row)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise faults_error(path, [f"is not a CSV file in UTF-8; save it as such: {error}"]) from error


def seconds(row: Mapping[str, str], column: str) -> float:
    """A time of a row. Raises `DataError` when it is not a finite number from 0 on."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{column}={row[column]!r} is not a number of seconds")
    if value < 0:
        raise DataError(f"{column}={row[column]} is negative")
    return value
