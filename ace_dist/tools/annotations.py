"""Any annotations as one checked CSV file with a split: proposed by group where the annotations have none."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.concepts import Action, split_classes
from ace_dist.config import DatasetConfig
from ace_dist.data.annotations.base import VideoReader
from ace_dist.data.annotations.csv import COLUMNS, path_from, written_times
from ace_dist.data.datasets import build_reader, check_groups
from ace_dist.data.segments import Failure, Reader, Segment, shared_groups
from ace_dist.utils.errors import DataError
from ace_dist.utils.files import write_text
from ace_dist.utils.tables import csv_text

TEST_SHARE = 0.25  # of the clips, which a proposed split tests; groups are taken whole
SHOWN = 8  # names of groups and actions in a line


@dataclass(frozen=True)
class Annotations:
    """Segments with the split and group that they get, and what to say of them."""

    segments: list[Segment]
    rejected: Sequence[Failure]
    notes: list[str]


def write_annotations(dataset: DatasetConfig, output: Path) -> list[str]:
    """Check the annotations of `dataset`, split them, write them as a CSV file; returns what to say.

    What was rejected (`dataset.allow_quarantine`) is listed in `OUTPUT.quarantine.jsonl`. Raises `DataError` for what
    no training could use, and when the file is there with other rows.
    """
    found = read_annotations(dataset)
    text = csv_text([COLUMNS, *(row(segment, output.parent) for segment in found.segments)])
    if output.is_file() and output.read_text(encoding="utf-8") != text:
        raise DataError(
            f"output={output} holds other rows than {dataset.annotations or dataset.root} gives now (a split, a time, "
            f"a clip); choose another output, or delete what was made of the old rows"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    if found.rejected:
        ledger = output.with_suffix(".quarantine.jsonl")
        write_text(ledger, "".join(json.dumps(dataclasses.asdict(entry)) + "\n" for entry in found.rejected))
        found.notes.append(f"{len(found.rejected)} segments left out, listed in {ledger}")
    return [
        f"{output}: {len(found.segments)} segments of {len({s.video for s in found.segments})} videos",
        *found.notes,
    ]


def read_annotations(dataset: DatasetConfig) -> Annotations:
    """The segments of `dataset` with the split that is asked for, written down, or proposed, in that order."""
    reader = build_reader(dataset)
    segments = reader.segments()
    if unlisted := [segment.id for segment in segments if not has_video_file(reader, segment)]:
        raise DataError(f"dataset.kind={dataset.kind} has no video file for {unlisted[0]}: build its shards directly")
    if not any(segment.group for segment in segments):
        names = video_names({segment.video for segment in segments})
        segments = [dataclasses.replace(segment, group=names[segment.video]) for segment in segments]
    check_groups(dataset, {segment.group for segment in segments})
    used = [segment for segment in segments if segment.group not in dataset.left_out_groups]
    tested, why = choose_test_groups(used, dataset)
    if tested is not None:
        segments = [dataclasses.replace(s, split="test" if s.group in tested else "train") for s in segments]
        used = [segment for segment in segments if segment.group not in dataset.left_out_groups]
    train, test = ([s.action for s in used if s.split == split] for split in ("train", "test"))
    classes = split_classes(train, test, dataset.novel, novel_share=dataset.novel_share)
    hint = "; hold some out with dataset.novel='[LABEL, ...]' or dataset.novel_share=0.3333, which the SRT needs"
    notes = [
        *reader.notes,
        *(describe(name, [segment for segment in used if segment.split == name]) for name in ("train", "test")),
        why,
        *(f"note: {note}" for note in shared_groups(used)),
        f"novel actions: {shown(map(str, classes.novel))}{'' if classes.novel else hint}",
    ]
    return Annotations(segments, reader.rejected, notes)


def has_video_file(reader: Reader, segment: Segment) -> bool:
    """Whether the segment's video is a file of its own, and not a part of one such as a tar file."""
    is_own = isinstance(reader, VideoReader) and reader.video(segment) == segment.video
    return is_own and os.path.isfile(segment.video)


def video_names(videos: Collection[str]) -> dict[str, str]:
    """A name for each video: that of its file, with its folders where several files have that name."""
    stems = Counter(Path(video).stem for video in videos)
    common = os.path.commonpath([os.path.dirname(os.path.abspath(video)) for video in videos])
    return {
        video: Path(video).stem if stems[Path(video).stem] == 1 else os.path.relpath(video, common) for video in videos
    }


def choose_test_groups(segments: Sequence[Segment], dataset: DatasetConfig) -> tuple[frozenset[str] | None, str]:
    """The groups to test (None: the split as written), and why. Raises `DataError` where no split can be."""
    how = "choose others with dataset.test_groups='[NAME, ...]'"
    actions = {str(segment.action) for segment in segments}
    if len(actions) < 2:
        raise DataError(
            f"all {len(segments)} segments show {shown(actions)!r}, and a classifier needs two actions or more"
        )
    if dataset.test_groups is not None:
        return frozenset(dataset.test_groups), "split: tested are the groups of dataset.test_groups"
    if any(segment.split == "test" for segment in segments):
        return None, "split: as the annotations have it"
    groups: dict[str, Counter[Action]] = {}
    for segment in segments:
        groups.setdefault(segment.group, Counter())[segment.action] += 1
    if len(groups) < 2:
        raise DataError(
            f"all {len(segments)} segments are of one group, {next(iter(groups))!r}, and a test needs clips of another "
            f"one: name the person, camera or recording of each row in the column group"
        )
    tested = propose_test_groups(groups)
    return tested, f"split: proposed, {len(tested)} of {len(groups)} groups are tested; {how}"


def propose_test_groups(groups: Mapping[str, Mapping[Action, int]]) -> frozenset[str]:
    """About a quarter of the clips in whole groups, with a training clip left of every action; the same every time.

    Groups are taken in the order of the SHA-256 of their names, which follows no order of recording. Where every group
    alone shows some action, the smallest one is tested that leaves two actions; its own actions are novel then.
    """
    total = sum((Counter(counts) for counts in groups.values()), Counter[Action]())
    tested, chosen = Counter[Action](), set[str]()
    names = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    for name in names:
        taken = tested + Counter(groups[name])
        fits = taken.total() <= TEST_SHARE * total.total()
        if fits and all(taken[shown] < total[shown] for shown in groups[name]):
            tested, chosen = taken, chosen | {name}
    if chosen:
        return frozenset(chosen)

    def rank(name: str) -> tuple[bool, int, int]:
        lost = sum(total[shown] == count for shown, count in groups[name].items())
        return len(total) - lost < 2, lost, sum(groups[name].values())

    best = min(names, key=rank)
    if rank(best)[0]:
        raise DataError(
            f"each of the {len(groups)} groups is the only one that shows some action, and without any one of them "
            f"fewer than two are left to train: annotate each action in two groups or more, or name larger groups"
        )
    return frozenset({best})


def describe(split: str, segments: Sequence[Segment]) -> str:
    groups, actions = {segment.group for segment in segments}, {segment.action for segment in segments}
    return f"{split}: {len(segments)} segments, {len(actions)} actions, groups {shown(groups)}"


def shown(names: Iterable[str]) -> str:
    """The first names in order, and the number of the others."""
    listed = sorted(names)
    return (", ".join(listed[:SHOWN]) or "none") + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def row(segment: Segment, folder: Path) -> list[str]:
    """The columns of a segment; its video counts from the folder of the file."""
    video, times = path_from(folder, Path(segment.video)), written_times(segment.start_s, segment.end_s)
    return [video, *times, segment.verb, segment.object, segment.split, segment.group]
