"""Reads IKEA-ASM: three synchronised views of people assembling furniture, labelled in frames.

    dataset.root/
        Lack_TV_Bench/SCAN/dev1/images/scan_video.avi ...     also dev2, and dev3 from the top; four pieces of furniture
        annotations/action_annotations/ikea_annotation_db_full
        annotations/action_annotations/gt_segments.json

The top view is an archive of its own; the archives may lie unpacked side by side (`dataset.root/*/Lack_TV_Bench/...`).
A view of which no video is there is left out with a note, so the top view alone needs no setting.
The two annotation files may also lie in the root, in `action_annotations/`, `indexing_files/` or `utility_files/`.
Get all of it from github.com/IkeaASM/IKEA_ASM_Dataset (code: MIT); for the terms of the data see ikeaasm.github.io.

**Database** (SQLite), the default. `videos`: id, video_name (the scan), video_path ('Lack_TV_Bench/SCAN/dev1/images'),
camera, annotated, nframes. `annotations`: video_id, starting_frame, ending_frame (not included), action_description
('pick up ...' is completed by object_name; without dots it stands alone), object_name. Labels outside the release's
list have 20 examples or fewer and are left out, as in the authors' code.

**gt_segments.json**, with `dataset.annotations=FILE`: {"database": {"Lack_TV_Bench/SCAN": {"annotation": [{"label",
"segment": [first, last]}]}}}. Made from the top view of the database, one label a frame, so overlaps are gone; it holds
for all three views. The last frame is included: the authors' exporter writes runs that way, and a user of the release
found 3248 to be the last of a scan with 3249 frames. (The authors' loader slices first:last and so loses that frame.)

The cameras did not stop together: labels were made on as many frames as the shortest of the three has. So every view is
clamped to the smallest `nframes` of its scan, and to its own file.

A scan's name is PERSON_COLOUR_SURFACE_CALIBRATION_ROOM_DATE; the calibration tells the environment, which is the group.
Fold k tests environment k: ACE says "5 splits based on the environment" and no more. The stored split is the data set's
own, which tests environments 2 and 4 (`dataset.test_groups=[env2,env4]`).
"""

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ace_dist.config import DatasetConfig, resolve_path
from ace_dist.data.annotations.base import VideoReader, data_root
from ace_dist.data.annotations.frames import LabelledFrames, Recording, build_frame_reader, video_clock
from ace_dist.data.build.isolation import run_alone
from ace_dist.utils.errors import DataError
from ace_dist.utils.reading import read_json

FURNITURE = ("Kallax_Shelf_Drawer", "Lack_Coffee_Table", "Lack_Side_Table", "Lack_TV_Bench")
VIEWS = ("dev1", "dev2", "dev3")
DATABASE, SEGMENTS = "ikea_annotation_db_full", "gt_segments.json"
ANNOTATION_FOLDERS = (
    "annotations/action_annotations",
    "action_annotations",
    "",
    "annotations",
    "indexing_files",
    "utility_files",
)
COLUMNS = {
    "videos": ("id", "video_path", "camera", "annotated", "nframes"),
    "annotations": ("video_id", "starting_frame", "ending_frame", "action_description", "object_name"),
}
# Of the authors' split by environment, split_data_train_test_v2.py: calibrations of one room belong together.
ENVIRONMENTS = {"env1": (1, 2), "env2": (4, 5), "env3": (6, 7), "env4": (8,), "env5": (9, 10, 11)}
OFFICIAL_TEST = ("env2", "env4")
SOURCE = (
    f"expected FURNITURE/SCAN/DEVICE/images/scan_video.avi with FURNITURE one of {', '.join(FURNITURE)}, and "
    f"annotations/action_annotations/{DATABASE}; both are to be had from github.com/IkeaASM/IKEA_ASM_Dataset, for the "
    "data's terms see ikeaasm.github.io"
)


@dataclass(frozen=True)
class View:
    """One annotated view of a scan; `frames` is what the database says, `labels` what it shows."""

    scan: str  # 'Lack_TV_Bench/0025_black_table_04_02_2019_08_20_13_48'
    device: str
    frames: int | None
    labels: tuple[LabelledFrames, ...]


def build_reader(dataset: DatasetConfig) -> VideoReader:
    """The annotated videos of `dataset.views` (None: every device that any video is there of), by scan and device.

    Raises `DataError` naming what is missing and where it is to be had.
    """
    root, views = data_root(dataset, SOURCE), dataset.views
    devices = tuple(VIEWS if views is None else views)
    if strange := [view for view in devices if view not in VIEWS]:
        raise DataError(f"dataset.views lists {', '.join(map(repr, strange))}; IKEA-ASM has {', '.join(VIEWS)}")
    folders = [
        folder
        for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("data/*/")))
        if any((folder / furniture).is_dir() for furniture in FURNITURE)
    ]
    if not folders:
        raise DataError(f"dataset.root={root} is not IKEA-ASM: no furniture's folder in it ({SOURCE})")
    path = resolve_path(dataset.annotations) if dataset.annotations else annotation_file(root)
    annotated = (
        segment_views(path, folders, devices, dataset.timeout_s) if path.suffix == ".json" else database_views(path)
    )
    if views is None:
        unpacked = {view.device for view in annotated if find_video(folders, view).is_file()}
        devices = tuple(device for device in VIEWS if device in unpacked) or VIEWS
    shortest: dict[str, int] = {}
    for view in annotated:
        if view.frames is not None:
            shortest[view.scan] = min(view.frames, shortest.get(view.scan, view.frames))
    recordings = []
    for view in sorted(annotated, key=lambda view: (view.scan, view.device)):
        if view.device in devices:
            group = environment(view.scan)
            split = "test" if group in OFFICIAL_TEST else "train"
            name = f"{view.scan.rsplit('/', 1)[-1]}-{view.device}"
            video = find_video(folders, view)
            recordings.append(Recording(name, video, group, split, view.labels, shortest.get(view.scan)))
    reader = build_frame_reader(dataset, recordings, as_released=True)
    if absent := [device for device in VIEWS if device not in devices and views is None]:
        reader.notes = (*reader.notes, f"no video of {', '.join(absent)} is there: {', '.join(devices)} alone")
    return reader


def annotation_file(root: Path) -> Path:
    """The database, or gt_segments.json where there is no database. Raises `DataError` when there is neither."""
    for name in (DATABASE, SEGMENTS):
        for folder in ANNOTATION_FOLDERS:
            if (root / folder / name).is_file():
                return root / folder / name
    looked = ", ".join(folder or "the root itself" for folder in ANNOTATION_FOLDERS)
    raise DataError(
        f"dataset.root={root} holds neither {DATABASE} nor {SEGMENTS} (looked in {looked}); set "
        f"dataset.annotations=FILE ({SOURCE})"
    )


def find_video(folders: Sequence[Path], view: View) -> Path:
    tail = Path(view.scan) / view.device / "images" / "scan_video.avi"
    return next((folder / tail for folder in folders if (folder / tail).is_file()), folders[0] / tail)


def environment(scan: str) -> str:
    """`env3` of 'Lack_TV_Bench/0025_black_table_06_02_2019_08_20_13_48', by its calibration 06.

    A calibration of no environment is a group of its own, `calibration03`, which every fold trains on.
    """
    match = re.match(r"\d+_[^_]+_[^_]+_(\d+)_\d+_", scan.rsplit("/", 1)[-1])
    if not match:
        raise DataError(f"the scan {scan} is not named PERSON_COLOUR_SURFACE_CALIBRATION_ROOM_DATE")
    own = (name for name, calibrations in ENVIRONMENTS.items() if int(match[1]) in calibrations)
    return next(own, f"calibration{match[1]}")


def database_views(path: Path) -> list[View]:
    """Every annotated video of the database with its labels. Scans named 'special' are trials of the authors."""
    if not path.is_file():
        raise DataError(f"dataset.annotations={path} does not exist ({SOURCE})")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            for table, columns in COLUMNS.items():
                present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                if missing := [column for column in columns if column not in present]:
                    has = f"it has {', '.join(sorted(present))}" if present else "there is no such table"
                    raise DataError(f"{path}: table {table} lacks {', '.join(missing)}; {has}")
            return list(read_views(path, connection))
    except sqlite3.Error as error:
        raise DataError(f"{path} cannot be read as the SQLite database of IKEA-ASM: {error} ({SOURCE})") from error


def read_views(path: Path, connection: sqlite3.Connection) -> Iterator[View]:
    videos = connection.execute("SELECT id, video_path, camera, nframes FROM videos WHERE annotated = 1 ORDER BY id")
    for video, video_path, camera, frames in videos.fetchall():
        parts = Path(video_path).parts
        if len(parts) < 3 or parts[2] != camera:
            raise DataError(
                f"{path}: video {video} has the path {video_path!r}, expected FURNITURE/SCAN/{camera}/images"
            )
        if "special" in parts[1]:
            continue
        rows = connection.execute(
            "SELECT starting_frame, ending_frame, action_description, object_name FROM annotations "
            "WHERE video_id = ? ORDER BY starting_frame, ending_frame, action_description, object_name",
            (video,),
        )
        labels = []
        for first, end, action, target in rows:
            verb, dots, _ = action.partition("...")  # 'pick up ...' goes on with the object
            label = " ".join(f"{verb} {(target or '') if dots else ''}".split())
            labels.append(LabelledFrames(first or 0, end or 0, label, f"{path} video {video} frame {first}"))
        yield View(f"{parts[0]}/{parts[1]}", camera, frames, tuple(labels))


def segment_views(path: Path, folders: Sequence[Path], devices: Sequence[str], timeout_s: float) -> list[View]:
    """The scans of gt_segments.json, once for each device; the frames are those of the files, as none are stated."""
    try:
        scans = read_json(path, DataError)["database"]
        labels = {
            scan: tuple(
                LabelledFrames(entry["segment"][0], entry["segment"][1] + 1, entry["label"], f"{path} {scan}")
                for entry in content["annotation"]
            )
            for scan, content in scans.items()
        }
    except FileNotFoundError:
        raise DataError(f"dataset.annotations={path} does not exist ({SOURCE})") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f'{path} is no gt_segments.json ({error!r}): expected {{"database": {{"FURNITURE/SCAN": {{"annotation": '
            f'[{{"label": ..., "segment": [first, last]}}]}}}}}} ({SOURCE})'
        ) from error
    views = [View(scan, device, None, parts) for scan, parts in labels.items() for device in devices]
    frames = [held_frames(find_video(folders, view), timeout_s) for view in views]
    return [replace(view, frames=count) for view, count in zip(views, frames, strict=True)]


def held_frames(video: Path, timeout_s: float) -> int | None:
    """The frames of a file; None where it is missing or damaged, which is reported later, with all others."""
    try:
        return run_alone(timeout_s, video_clock, video)[1] if video.is_file() else None
    except DataError:
        return None
