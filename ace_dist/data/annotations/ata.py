"""Reads ATA (Anomalous Toy Assembly) through a manifest of our own: the release's layout is not public.

`ace shards ata` makes it (`ata_release.py` says from what).

    dataset.root/manifest.csv      or dataset.annotations=FILE; relative videos count from the manifest
        video,view,person,toy,start_frame,end_frame,label
        front/P01_airplane_1.mp4,front,P01,airplane,0,95,take_part

    video                   a file; 1,152 of them: 32 people x 3 toys x 3 takes x 4 cameras, 30 frames per second
    view                    front, side, overhead or global; `dataset.views` chooses
    person                  the group: 27 people train, 1 validates, 4 test
    toy                     airplane, table or record_player; kept for the names of clips
    start_frame, end_frame  from 0; the end is not included
    label                   one of assets/classes/ata.json, as the ATA paper writes them (fasten_screw, SIL, drop, ...)

Get it from usa.honda-ri.com/ata, on request; the licence comes with it and could not be read here. Which people test is
not printed in the paper: name them in `dataset.test_groups`, and the one who validates in `dataset.left_out_groups`.
"""

import hashlib
from pathlib import Path

from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.annotations.base import VideoReader
from ace_dist.data.annotations.csv import faults_error, numbered_rows
from ace_dist.data.annotations.frames import LabelledFrames, Recording, build_frame_reader
from ace_dist.utils.errors import DataError, listing
from ace_dist.utils.tables import Row, check_row

COLUMNS = ("video", "view", "person", "toy", "start_frame", "end_frame", "label")
MANIFEST = "manifest.csv"
SOURCE = (
    f"expected a CSV file with the columns {','.join(COLUMNS)}; videos and annotations are to be had on request from "
    "usa.honda-ri.com/ata, under the licence that comes with them"
)


def build_reader(dataset: DatasetConfig) -> VideoReader:
    """The videos of `dataset.views` (None: all) with their rows, in the manifest's order.

    Nothing is tested until `dataset.test_groups` says so: the stored split of every video is `train`.
    Raises `DataError` when there is no manifest or no row of these views, and with all faulty lines.
    """
    manifest, views = find_manifest(dataset), dataset.views
    rows: dict[str, list[tuple[Row, LabelledFrames]]] = {}
    faults, present = [], set()
    for line, row in numbered_rows(manifest, COLUMNS):
        origin = f"{manifest} line {line}"
        try:
            part = labelled_frames(row, origin)
            earlier = rows.get(row["video"], [(row, part)])[0][0]
            if changed := [column for column in ("view", "person", "toy") if row[column] != earlier[column]]:
                raise DataError(f"{changed[0]}={row[changed[0]]!r}, but {earlier[changed[0]]!r} in an earlier line")
        except DataError as fault:
            faults.append(f"line {line}: {fault}")
            continue
        present.add(row["view"])
        if views is None or row["view"] in views:
            rows.setdefault(row["video"], []).append((row, part))
    if faults:
        raise faults_error(manifest, faults)
    if absent := sorted(set(views or ()) - present):
        raise DataError(
            f"dataset.views: {manifest} has no view {', '.join(absent)}; it has {', '.join(sorted(present))}"
        )
    recordings = [recording(manifest, video, parts) for video, parts in rows.items()]
    return build_frame_reader(dataset, recordings)


def find_manifest(dataset: DatasetConfig) -> Path:
    """The manifest. Raises `DataError` with all that a first start lacks, in one message."""
    named = dataset.annotations or (f"{dataset.root}/{MANIFEST}" if dataset.root else None)
    missing = []
    if named is None:
        missing.append("dataset.root=FOLDER, with manifest.csv in it, or dataset.annotations=FILE")
    elif not resolve_path(named).is_file():
        missing.append(f"the manifest {resolve_path(named)}, which does not exist")
    if not dataset.test_groups:
        missing.append(
            "dataset.test_groups=[PERSON, ...]: four of its people test, its paper does not print which, and another "
            "choice is another split than the paper's; dataset.left_out_groups=[PERSON] for the one who validates"
        )
    if missing or named is None:
        raise DataError(
            f"dataset=ata needs{listing(missing)}\n{SOURCE}; ace shards ata root=FOLDER output=manifest.csv "
            f"makes the manifest out of videos and label files"
        )
    return resolve_path(named)


def labelled_frames(row: Row, origin: str) -> LabelledFrames:
    """The frames of one row. Raises `DataError` with what is wrong."""
    check_row(row, COLUMNS)
    for column in COLUMNS:
        if not row[column]:
            raise DataError(f"{column} is empty")
    frames = []
    for column in ("start_frame", "end_frame"):
        if not row[column].isdecimal():
            raise DataError(f"{column}={row[column]!r} is not a frame number, counted from 0")
        frames.append(int(row[column]))
    if frames[0] >= frames[1]:
        raise DataError(f"start_frame={frames[0]} is not before end_frame={frames[1]}")
    return LabelledFrames(frames[0], frames[1], row["label"], origin)


def recording(manifest: Path, video: str, parts: list[tuple[Row, LabelledFrames]]) -> Recording:
    """One video. Files of different cameras may have one name, so the path is part of the recording's."""
    row = parts[0][0]
    digest = hashlib.sha256(video.encode()).hexdigest()[:6]
    name = f"{row['person']}-{row['toy']}-{row['view']}-{digest}"
    labels = sorted((part for _, part in parts), key=lambda part: (part.first, part.end, part.label))
    return Recording(name, manifest.parent / video, row["person"], "train", tuple(labels))
