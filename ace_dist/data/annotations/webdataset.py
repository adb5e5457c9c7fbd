"""Reads shards that others made: WebDataset tar files of trimmed videos, cut and encoded again like any other source.

A sample is the members that share a name up to its first dot: one video (`SUFFIXES`) and

- `json`, an object with `verb` and `object`, or with `label`; optional: `split`, `group`, `start_s`, `end_s`; or
- `cls`, the number of its class: its place, from 0, in the file `dataset.classes`.

A label is looked up in `dataset.classes`. Without `split`, a tar file's name says it (`train-...`, `test-...`); without
times, the segment is the whole video. Members are read where they lie, none is ever extracted.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_dist.concepts.actions import Action
from ace_dist.config import DatasetConfig
from ace_dist.data.annotations.base import VideoReader, class_table, data_root
from ace_dist.data.build.container import StoredVideo, open_video
from ace_dist.data.build.decode import promised_length
from ace_dist.data.build.isolation import run_alone
from ace_dist.data.segments import SPLITS, Failure, Segment
from ace_dist.data.shards import safe_members
from ace_dist.utils.errors import DataError, listing

SUFFIXES = ("mp4", "m4v", "mov", "mkv", "webm", "avi")


@dataclass(frozen=True)
class Place:
    tar: Path
    member: str
    offset: int
    size: int

    def read(self) -> bytes:
        with self.tar.open("rb") as file:
            return os.pread(file.fileno(), self.size, self.offset)

    def video(self) -> StoredVideo:
        return StoredVideo(f"{self.tar}/{self.member}", self.tar, self.offset, self.size)


class WebDatasetReader(VideoReader):
    """Reads the members' names and labels of every `*.tar` in `dataset.root` at once, the videos when asked.

    Segments are in the order of the tar files and of their first members. Raises `DataError` for a tar file that is
    not safe or not readable, and with all faulty samples, unless `dataset.allow_quarantine` makes them `rejected`.
    """

    def __init__(self, dataset: DatasetConfig) -> None:
        root = data_root(dataset, "tar files in WebDataset's layout")
        self.table, self.timeout_s = class_table(dataset), dataset.timeout_s
        self.places: dict[str, Place] = {}
        rejected: list[Failure] = []
        tars = sorted(root.glob("*.tar"))
        if not tars:
            raise DataError(f"dataset.root={root} holds no *.tar file")
        segments = [segment for tar in tars for segment in self.parse(tar, rejected)]
        if rejected and not dataset.allow_quarantine:
            raise DataError(
                f"{len(rejected)} samples of dataset.root={root} cannot be used (dataset.allow_quarantine=true "
                f"goes on without them):{listing([f'{entry.origin}: {entry.reason}' for entry in rejected])}"
            )
        super().__init__(segments, dataset.encoding.fps, dataset.encoding.short_side, rejected=rejected)

    def video(self, segment: Segment) -> StoredVideo:
        return self.places[segment.id].video()

    def parse(self, tar: Path, rejected: list[Failure]) -> list[Segment]:
        """The samples of one tar file; those that cannot be used join `rejected`."""
        samples: dict[str, dict[str, Place]] = defaultdict(dict)
        for member in safe_members(tar):
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            samples[f"{folder}/{stem}" if folder else stem][suffix.lower()] = Place(
                tar, member.name, member.offset_data, member.size
            )
        segments = []
        for key, members in samples.items():
            try:
                segment, place = self.sample(tar, key, members)
            except DataError as fault:
                rejected.append(Failure(key, str(tar), f"{tar} sample {key}", str(fault)))
                continue
            self.places[segment.id] = place
            segments.append(segment)
        return segments

    def sample(self, tar: Path, key: str, members: Mapping[str, Place]) -> tuple[Segment, Place]:
        """One sample as a segment, and where its video lies. Raises `DataError` with what is wrong with it."""
        videos = [members[suffix] for suffix in SUFFIXES if suffix in members]
        if len(videos) != 1:
            raise DataError(
                f"has {len(videos)} videos ({', '.join(SUFFIXES)}) instead of one; it has {', '.join(members)}"
            )
        about = description(members)
        action = self.action(about)
        split = about.get("split", next((name for name in SPLITS if tar.name.startswith(name)), None))
        if split not in SPLITS:
            raise DataError(
                f"split {split!r} is neither train nor test; say it in its json, or begin the tar file's name with it"
            )
        start_s, end_s = number(about, "start_s", 0.0), number(about, "end_s", None)
        digest = hashlib.sha256(f"{tar.name}\n{key}".encode()).hexdigest()[:8]
        segment = Segment(
            id=f"{re.sub('[^A-Za-z0-9_-]+', '-', key).strip('-')[-40:] or 'sample'}-{digest}",
            video=str(tar),
            start_s=start_s,
            end_s=run_alone(self.timeout_s, length_s, videos[0]) if end_s is None else end_s,
            verb=action.verb,
            object=action.object,
            split=str(split),
            group=str(about.get("group", "")),
            origin=f"{tar} member {videos[0].member}",
        )
        return segment, videos[0]

    def action(self, about: Mapping[str, Any]) -> Action:
        """What a sample shows, from its verb and object, its label, or its class number."""
        if about.get("verb") and about.get("object"):
            return Action(" ".join(str(about["verb"]).split()), " ".join(str(about["object"]).split()))
        if "label" not in about and "cls" not in about:
            raise DataError("says neither verb and object, nor label (json), nor class number (cls)")
        if self.table is None:
            raise DataError("has a label or a class number; set dataset.classes=FILE, which says what they mean")
        actions: Mapping[str, Action] = self.table.actions
        if "label" in about:
            if not isinstance(about["label"], str) or about["label"] not in actions:
                raise DataError(f"label {about['label']!r} is not in dataset.classes={self.table.source}")
            return actions[about["label"]]
        if type(about["cls"]) is not int or not 0 <= about["cls"] < len(actions):
            raise DataError(
                f"class {about['cls']!r} is not one of the {len(actions)} of dataset.classes={self.table.source}"
            )
        return list(actions.values())[int(about["cls"])]


def description(members: Mapping[str, Place]) -> dict[str, Any]:
    """What a sample says about itself: its json, and the number in its cls as `cls`."""
    about: dict[str, Any] = {}
    try:
        if "json" in members:
            about = json.loads(members["json"].read())
        if "cls" in members:
            about["cls"] = int(members["cls"].read())
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"its description cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise DataError("its json is not an object")
    return about


def number(about: Mapping[str, Any], key: str, default: float | None) -> Any:
    value = about.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9):
        raise DataError(f"{key}={value!r} is not a number of seconds from 0 on")
    return value


def length_s(place: Place) -> float:
    """What a video says of its own length. Raises `DataError` when it says nothing, or is none."""
    video = place.video()
    with open_video(video) as (container, stream):
        promised_s = promised_length(container, stream)
    if promised_s <= 0:
        raise DataError(f"{video} does not say how long it is; give start_s and end_s in its json")
    return promised_s
