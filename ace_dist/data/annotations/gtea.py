"""Reads GTEA's frame-wise verb labels in the layout of the MS-TCN release, beside the videos.

    dataset.root/
        groundTruth/S1_Cheese_C1.txt ...      one label a line, one line a frame; 28 files, 31,225 lines
        splits/test.split1.bundle ...         the names of the 7 videos of subject 1 (2, 3, 4), one a line
        videos/S1_Cheese_C1.mp4 ...           any container; `Videos/` or the root itself will do

Labels: github.com/yabufarha/ms-tcn names the archive (Zenodo 3625992, folder `gtea`). Videos: cbs.ic.gatech.edu/fpv.
No licence of the videos is known to us: ask there before you pass anything on.

Neighbouring frames with the same verb are one segment, and background is none, which makes 527 segments. ACE says 525,
without saying why; just two of the 527 are shorter than 10 frames. The split is that of fold k, which tests subject k;
the subject is the group.
"""

import re
from itertools import groupby
from pathlib import Path

from ace_dist.config import DatasetConfig
from ace_dist.data.annotations.base import VideoReader, data_root
from ace_dist.data.annotations.frames import LabelledFrames, Recording, build_frame_reader
from ace_dist.utils.errors import DataError, listing

SOURCE = (
    "expected groundTruth/NAME.txt, splits/test.split{1..4}.bundle and videos/NAME.mp4; labels: the GTEA part of the "
    "MS-TCN release (github.com/yabufarha/ms-tcn, Zenodo 3625992); videos: cbs.ic.gatech.edu/fpv; no licence of the "
    "videos is known, ask there"
)
SUBJECTS = 4
VIDEO_FOLDERS = ("videos", "Videos", "")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def build_reader(dataset: DatasetConfig) -> VideoReader:
    """Every annotated video of GTEA, by name; the stored split is fold 1.

    Raises `DataError` naming what is missing and where it is to be had.
    """
    root = data_root(dataset, SOURCE)
    labels = root / "groundTruth"
    if not labels.is_dir():
        inner = root / "gtea"
        hint = f"; did you mean dataset.root={inner}?" if (inner / "groundTruth").is_dir() else ""
        raise DataError(f"dataset.root={root} is not GTEA: {labels} does not exist{hint} ({SOURCE})")
    names = sorted(path.stem for path in labels.glob("*.txt"))
    if not names:
        raise DataError(f"dataset.root={root} is not GTEA: {labels} holds no .txt file ({SOURCE})")
    check_names(root, names)
    return build_frame_reader(dataset, [recording(root, name) for name in names])


def subject(name: str) -> str:
    """`S1` of `S1_Cheese_C1`; empty when the name is no name of GTEA."""
    match = re.match(r"(S[1-4])_\w+", name)
    return match[1] if match else ""


def check_names(root: Path, names: list[str]) -> None:
    """Raise `DataError` unless every file names its subject and the bundles list just the files that are there."""
    if strange := [name for name in names if not subject(name)]:
        raise DataError(f"{root / 'groundTruth'} holds files not named like S1_Cheese_C1.txt:{listing(strange)}")
    faults = []
    for number in range(1, SUBJECTS + 1):
        path = root / "splits" / f"test.split{number}.bundle"
        if not path.is_file():
            raise DataError(f"dataset.root={root} is not GTEA: {path} does not exist ({SOURCE})")
        listed = listed_names(path)
        faults += [f"{path} lists {name}, groundTruth/ has no such file" for name in sorted(listed - set(names))]
        own = {name for name in names if subject(name) == f"S{number}"}
        faults += [f"{path} does not list {name}, the video of subject {number}" for name in sorted(own - listed)]
        faults += [
            f"{path} lists {name}, which is not of subject {number}" for name in sorted(listed & set(names) - own)
        ]
    if faults:
        raise DataError(f"dataset.root={root}: labels and folds disagree:{listing(faults)}\n({SOURCE})")


def listed_names(bundle: Path) -> set[str]:
    """The videos of a bundle, one a line, with or without `.txt`."""
    lines = bundle.read_text(encoding="utf-8").splitlines()
    return {line.strip().removesuffix(".txt") for line in lines if line.strip()}


def recording(root: Path, name: str) -> Recording:
    """One video and its runs of equal labels."""
    runs, frames = label_runs(root / "groundTruth" / f"{name}.txt")
    group = subject(name)
    return Recording(name, find_video(root, name), group, "test" if group == "S1" else "train", runs, frames)


def label_runs(path: Path) -> tuple[tuple[LabelledFrames, ...], int]:
    """The runs of equal labels of a file with one label a frame, and its frames. Blank lines at its end are nothing."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    runs, first = [], 0
    for label, run in groupby(lines):
        end = first + sum(1 for _ in run)
        runs.append(LabelledFrames(first, end, label, f"{path} line {first + 1}"))
        first = end
    return tuple(runs), len(lines)


def find_video(root: Path, name: str) -> Path:
    """The video file of a name, or where it should be. Raises `DataError` when there are two."""
    videos = [
        path
        for folder in dict.fromkeys((root / folder).resolve() for folder in VIDEO_FOLDERS)
        for suffix in VIDEO_SUFFIXES
        if (path := folder / f"{name}{suffix}").is_file()
    ]
    if len({path.resolve() for path in videos}) > 1:
        raise DataError(f"two videos for {name}: {', '.join(map(str, videos))}; keep one")
    return videos[0] if videos else root / VIDEO_FOLDERS[0] / f"{name}{VIDEO_SUFFIXES[0]}"
