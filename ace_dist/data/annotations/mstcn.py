"""Reads any data set in the layout of the MS-TCN release: GTEA, 50Salads, Breakfast, HA-ViD and others.

    dataset.root/
        groundTruth/NAME.txt                       one label a line, one line a frame
        splits/test.split1.bundle ...              the names of the tested videos, one a line
        mapping.txt                                a number and a label a line
        videos/NAME.mp4 ...                        any container; `Videos/` or the root itself will do

`dataset.fold` k takes the split of test.splitk.bundle; without a fold it is that of split 1. The group of a video is
its name, so that `dataset.test_groups` can name others. Labels become verb and object as
`concepts.makers.split_label` splits them, a verb alone ("pick_up") with the object "item"; labels in `BACKGROUND`
are no actions. `dataset.classes` says otherwise.
"""

from pathlib import Path

from ace_dist.concepts import Action, ClassTable
from ace_dist.concepts.actions import normalise
from ace_dist.concepts.makers import split_label
from ace_dist.config import DatasetConfig
from ace_dist.data.annotations.base import VideoReader, class_table, data_root
from ace_dist.data.annotations.frames import Recording, build_frame_reader
from ace_dist.data.annotations.gtea import find_video, label_runs, listed_names
from ace_dist.utils.errors import DataError, LabelError, listing

SOURCE = "expected groundTruth/NAME.txt, splits/test.split1.bundle, mapping.txt and videos/NAME.mp4"
BACKGROUND = frozenset({"background", "sil", "action start", "action end", "null", "none", "idle", "other"})


def build_reader(dataset: DatasetConfig) -> VideoReader:
    """Every annotated video, by name. Raises `DataError` naming what is missing."""
    root = data_root(dataset, SOURCE)
    names = sorted(path.stem for path in (root / "groundTruth").glob("*.txt"))
    if not names:
        raise DataError(f"dataset.root={root} has no groundTruth/*.txt ({SOURCE})")
    tested = bundle(root, dataset.fold or 1, names)
    recordings = []
    for name in names:
        runs, frames = label_runs(root / "groundTruth" / f"{name}.txt")
        split = "test" if name in tested else "train"
        recordings.append(Recording(name, find_video(root, name), name, split, runs, frames))
    return build_frame_reader(dataset, recordings, table=class_table(dataset) or mapped_classes(root))


def bundle(root: Path, fold: int, names: list[str]) -> set[str]:
    """The tested videos of a fold."""
    path = root / "splits" / f"test.split{fold}.bundle"
    if not path.is_file():
        folds = sorted(file.name for file in (root / "splits").glob("test.split*.bundle"))
        raise DataError(f"{path} does not exist (dataset.fold={fold}); there are {', '.join(folds) or 'no bundles'}")
    listed = listed_names(path)
    if missing := sorted(listed - set(names)):
        raise DataError(f"{path} lists videos without a file in groundTruth:{listing(missing)}")
    return listed


def mapped_classes(root: Path) -> ClassTable:
    """The classes of mapping.txt. Raises `DataError` for a line that is no number and label."""
    path = root / "mapping.txt"
    if not path.is_file():
        raise DataError(f"{path} does not exist ({SOURCE})")
    actions: dict[str, Action] = {}
    others: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        index, _, label = line.strip().partition(" ")
        if not index.isdigit() or not label.strip():
            raise DataError(f"{path} line {number}: {line!r} is not a number and a label")
        words = normalise(label)
        if words in BACKGROUND:
            others.add(label)
        else:
            try:
                actions[label] = split_label(words)
            except LabelError:  # a verb alone
                actions[label] = split_label(f"{words} item")
    return ClassTable(actions, frozenset(others), str(path))
