"""Reads shards that others made: WebDataset tar files of trimmed videos, cut and encoded again like any other source.

A sample is the members that share a name up to its first dot, or up to its last one in a tar file whose videos have
dots inside their names (`P01.take2.mp4`): one video (`SUFFIXES`) and

- `json`, an object with `verb` and `object`, or with `label`; optional: `split`, `group`, `start_s`, `end_s`; or
- `cls`, the number of its class: its place, from 0, in the file `dataset.classes`.

A label is looked up in `dataset.classes`. Without `split`, the name of the tar file or of a folder says it
(`train-...`, `test/...`); without times, the segment is the whole video. Members are read where they lie, none is ever
extracted. Every video is a segment or has a line in the ledger.
"""

import hashlib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ace_dist.concepts.actions import Action
from ace_dist.config import DatasetConfig
from ace_dist.data.annotations.base import VideoReader, class_table, data_root
from ace_dist.data.build.container import StoredVideo
from ace_dist.data.segments import SPLITS, VALIDATION, Failure, Segment, parse_split
from ace_dist.data.shards import safe_members
from ace_dist.utils.errors import DataError, UserError, listing
from ace_dist.utils.reading import files_below, parse_json

SUFFIXES = ("mp4", "m4v", "mov", "mkv", "webm", "avi")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LARGEST_DESCRIPTION = 1 << 20  # bytes


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
    """Reads the members' names and labels of every `*.tar` below `dataset.root` at once, the videos when asked.

    Segments are in the order of the tar files and of their first members. Raises `DataError` for a tar file that is
    not safe or not readable, and with all faulty samples, unless `dataset.allow_quarantine` makes them `rejected`.
    """

    def __init__(self, dataset: DatasetConfig) -> None:
        self.root = root = data_root(dataset, "tar files in WebDataset's layout")
        self.table = class_table(dataset)
        self.places: dict[str, Place] = {}
        self.dotted: list[Path] = []  # tar files whose names hold dots
        rejected: list[Failure] = []
        files = list(files_below(root))
        if packed := [path for path in files if path.name.endswith(PACKED)]:
            raise DataError(f"{packed[0]} is compressed, and members are read where they lie: unpack it to a .tar file")
        tars = [path for path in files if path.suffix == ".tar"]
        if not tars:
            raise DataError(f"dataset.root={root} holds no *.tar file")
        segments = [segment for tar in tars for segment in self.parse(tar, rejected)]
        if rejected and not dataset.allow_quarantine:
            raise DataError(
                f"{len(rejected)} samples of dataset.root={root} cannot be used (dataset.allow_quarantine=true "
                f"goes on without them):{listing([f'{entry.origin}: {entry.reason}' for entry in rejected])}"
            )
        notes = [f"{tar}: its names hold dots, so a sample's name ends at the last one" for tar in self.dotted]
        super().__init__(segments, dataset.encoding.fps, dataset.encoding.short_side, notes, rejected)

    def video(self, segment: Segment) -> StoredVideo:
        return self.places[segment.id].video()

    def parse(self, tar: Path, rejected: list[Failure]) -> list[Segment]:
        """The samples of one tar file; those that cannot be used join `rejected`, a line for each video."""
        segments = []
        for key, members, repeated in self.samples(tar):
            try:
                if repeated:
                    raise DataError(
                        f"repeats the name of {', '.join(place.member for place in members.values())}; names must "
                        f"differ within a tar file, and the first one is kept"
                    )
                segment, place = self.sample(tar, key, members)
            except UserError as fault:
                videos = [place.member for suffix, place in members.items() if suffix in SUFFIXES]
                names = videos if len(videos) > 1 else [key]
                rejected += [Failure(name, str(tar), f"{tar} sample {key}", str(fault)) for name in names]
                continue
            self.places[segment.id] = place
            segments.append(segment)
        return segments

    def samples(self, tar: Path) -> Iterator[tuple[str, dict[str, Place], bool]]:
        """Name, members by suffix, and whether a sample before it has these names, in the order of first members."""
        members = [member for member in safe_members(tar) if not is_of_macos(member.name)]
        dotted = any(has_inner_dot(member.name) for member in members)
        self.dotted += [tar] if dotted else []
        found: dict[str, list[dict[str, Place]]] = defaultdict(list)
        times: Counter[tuple[str, str]] = Counter()
        for member in members:
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.rpartition(".") if dotted else name.partition(".")
            key, suffix = f"{folder}/{stem}" if folder else stem, suffix.lower()
            number = times[key, suffix]
            times[key, suffix] += 1
            if number == len(found[key]):
                found[key].append({})
            found[key][number][suffix] = Place(tar, member.name, member.offset_data, member.size)
        return ((key, sample, number > 0) for key, samples in found.items() for number, sample in enumerate(samples))

    def sample(self, tar: Path, key: str, members: Mapping[str, Place]) -> tuple[Segment, Place]:
        """One sample as a segment, and where its video lies. Raises `DataError` with what is wrong with it."""
        videos = [members[suffix] for suffix in SUFFIXES if suffix in members]
        if len(videos) != 1:
            raise DataError(
                f"has {len(videos)} videos ({', '.join(SUFFIXES)}) instead of one; it has {', '.join(members)}"
            )
        about = description(members)
        action = self.action(about)
        place = tar.relative_to(self.root)  # its file name alone, where it does not lie in a folder
        start_s, end_s = number(about, "start_s", 0.0), number(about, "end_s", math.inf)
        digest = hashlib.sha256(f"{place.as_posix()}\n{key}".encode()).hexdigest()[:8]
        segment = Segment(
            id=f"{re.sub('[^A-Za-z0-9_-]+', '-', key).strip('-')[-40:] or 'sample'}-{digest}",
            video=str(tar),
            start_s=start_s,
            end_s=end_s,
            verb=action.verb,
            object=action.object,
            split=parse_split(text(about, "split")) if about.get("split") else split_by_name(place),
            group=text(about, "group"),
            origin=f"{tar} member {videos[0].member}",
        )
        return segment, videos[0]

    def action(self, about: Mapping[str, Any]) -> Action:
        """What a sample shows, from its verb and object, its label, or its class number."""
        if about.get("verb") and about.get("object"):
            return Action(text(about, "verb"), text(about, "object"))
        if "label" not in about and "cls" not in about:
            raise DataError("says neither verb and object, nor label (json), nor class number (cls)")
        if self.table is None:
            raise DataError("has a label or a class number; set dataset.classes=FILE, which says what they mean")
        actions: Mapping[str, Action] = self.table.actions
        if "label" in about:
            action = self.table.action(about["label"]) if isinstance(about["label"], str) else None
            if action is None:
                raise DataError(f"label {about['label']!r} is not in dataset.classes={self.table.source}")
            return action
        if type(about["cls"]) is not int or not 0 <= about["cls"] < len(actions):
            raise DataError(
                f"class {about['cls']!r} is not one of the {len(actions)} of dataset.classes={self.table.source}"
            )
        return list(actions.values())[int(about["cls"])]


def is_of_macos(member: str) -> bool:
    """Whether macOS put a member beside the user's own: `._a.mp4` holds attributes and no video."""
    parts = member.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


def has_inner_dot(member: str) -> bool:
    """Whether a video's name goes on behind its first dot: `P01.take2.mp4`, and not `P01.mp4`."""
    name = member.rpartition("/")[2].lower()
    return name.partition(".")[2] not in SUFFIXES and name.rpartition(".")[2] in SUFFIXES


def split_by_name(tar: Path) -> str:
    """The split that the name of a tar file or of a folder above it begins with. Raises `DataError`."""
    names = [part.lower() for part in reversed(tar.parts)]
    if split := next((split for name in names for split in SPLITS if name.startswith(split)), None):
        return split
    if held_out := next((word for name in names if (word := re.split("[^a-z]", name)[0]) in VALIDATION), None):
        return parse_split(held_out)
    raise DataError("has no split; say train or test in its json, or begin the name of the tar file with it")


def text(about: Mapping[str, Any], key: str) -> str:
    """A text or number of a description; nothing where it is null or absent."""
    value = about.get(key)
    if isinstance(value, bool | list | dict):
        raise DataError(f"{key}={value!r} is not text")
    return "" if value is None else str(value)


def description(members: Mapping[str, Place]) -> dict[str, Any]:
    """What a sample says about itself: its json, and the number in its cls as `cls`."""
    about: dict[str, Any] = {}
    try:
        for suffix in ("json", "cls"):
            if suffix in members and members[suffix].size > LARGEST_DESCRIPTION:
                raise DataError(f"its {suffix} has {members[suffix].size:,} bytes, more than {LARGEST_DESCRIPTION:,}")
        if "json" in members:
            about = parse_json(members["json"].read(), "its json", DataError)
        if "cls" in members:
            about["cls"] = int(members["cls"].read()[:20])
    except (ValueError, TypeError) as error:
        raise DataError(f"its description cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise DataError("its json is not an object")
    return about


def number(about: Mapping[str, Any], key: str, default: float) -> float:
    value = about.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise DataError(f"{key}={value!r} is not a number of seconds from 0 on")
    return value
