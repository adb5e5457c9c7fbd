"""Turns labelled frames of recordings into segments in seconds, for the data sets that are labelled in frames.

Frames count from 0 and become seconds by the rate that the video's own container states.
"""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.concepts import ClassTable
from ace_dist.config import DatasetConfig
from ace_dist.data.annotations.base import VideoReader, class_table
from ace_dist.data.build.container import open_video
from ace_dist.data.build.decode import frame_rate, shown_span
from ace_dist.data.build.isolation import run_alone
from ace_dist.data.segments import Failure, Segment
from ace_dist.utils.errors import DataError, listing
from ace_dist.utils.reading import why_no_file


@dataclass(frozen=True)
class LabelledFrames:
    """Frames `first` to `end` (not included) of a recording show `label`. `origin` is where that is annotated."""

    first: int
    end: int
    label: str
    origin: str


@dataclass(frozen=True)
class Recording:
    """One annotated video. `name` is unique in its data set; `frames` is how many the annotation says it has, if so."""

    name: str
    video: Path
    group: str
    split: str
    labels: tuple[LabelledFrames, ...]
    frames: int | None = None


class FrameReader(VideoReader):
    """`recordings`: the videos that can be used, also those without a segment."""

    recordings: Sequence[Recording] = ()


def video_clock(path: Path) -> tuple[float, int, float]:
    """Frames per second, number of frames, and when the first one is shown, as the container states them.

    Frames are counted where it states none, or a number that does not go with its length: some AVI files give the ticks
    of their clock. Raises `DataError` when the file is missing or is no video.
    """
    with open_video(path) as (container, stream):
        rate = frame_rate(path, container, stream)
        stated, length_s = int(stream.frames), float((stream.duration or 0) * stream.time_base)
        first_s, _ = shown_span(container, stream)
    if stated > 0 and abs(stated - length_s * rate) <= 2:
        return rate, stated, first_s
    with open_video(path) as (container, stream):
        return rate, sum(1 for packet in container.demux(stream) if packet.size), first_s


def build_frame_reader(
    dataset: DatasetConfig,
    recordings: Sequence[Recording],
    *,
    as_released: bool = False,
    table: ClassTable | None = None,
) -> VideoReader:
    """The reader of the labelled frames of all recordings as segments; its notes count labels that were left out.

    A label counts when `table`, by default `dataset.classes`, has it, and is left out when it is listed as no action.
    Any other label, or one without a frame, is an error; in annotations taken `as_released`, which a user cannot mend,
    it is left out with a note that counts it. Labels that reach past the end of their recording end with it; those that
    begin there, and exact repetitions, are left out with a note.
    Raises `DataError` for such labels, and for videos that are missing, unreadable, or of another length than their
    labels by more than `dataset.frame_tolerance_s`; with `dataset.allow_quarantine` each such video costs itself alone.
    """
    table = table or class_table(dataset)
    if table is None:
        raise DataError(
            f"dataset.kind={dataset.kind} needs dataset.classes=FILE, such as ace_dist/assets/classes/gtea.json"
        )
    if not as_released:
        check_labels(recordings, table)
    clocks, faults = read_clocks(recordings, dataset.frame_tolerance_s, dataset.timeout_s)
    if faults and not (dataset.allow_quarantine and clocks):
        problems = [f"{video}: {fault}" for video, fault in faults.items()]
        raise DataError(
            f"{len(faults)} of {len(recordings)} annotated videos cannot be used:{listing(problems)}\nuse the videos "
            f"that were annotated, at their own rate, set dataset.frame_tolerance_s "
            f"(now {dataset.frame_tolerance_s:g}), or go on without them with dataset.allow_quarantine=true"
        )
    segments: dict[str, Segment] = {}
    rejected: list[Failure] = []
    outside: Counter[str] = Counter()
    for recording in recordings:
        video = f"{recording.video}"
        if video in faults:
            parts = [part for part in recording.labels if table.action(part.label)]
            rejected += [Failure(f"{recording.name}-{part.first}", video, part.origin, faults[video]) for part in parts]
            continue
        fps, held, first_s = clocks[video]
        last = min(held, recording.frames) if recording.frames is not None else held
        for part in recording.labels:
            if table.action(part.label) is None:
                outside[part.label] += part.label not in table
            elif part.end <= part.first:
                outside["labels without a frame"] += 1
            elif part.first >= last:
                outside["labels past the end of their video"] += 1
            else:
                segment = build_segment(recording, part, min(part.end, last), fps, first_s, table)
                outside["labels that repeat another one exactly"] += segment.id in segments
                segments.setdefault(segment.id, segment)
    notes = tuple(f"{count} segments left out: {label}" for label, count in sorted(outside.items()) if count)
    reader = FrameReader(list(segments.values()), dataset.encoding.fps, dataset.encoding.short_side, notes, rejected)
    reader.recordings = [recording for recording in recordings if f"{recording.video}" in clocks]
    return reader


def read_clocks(
    recordings: Sequence[Recording], tolerance_s: float, timeout_s: float
) -> tuple[dict[str, tuple[float, int, float]], dict[str, str]]:
    """Rate, frames and first time of each video that can be used, and why each other one cannot, by its path."""
    clocks, faults = {}, {}
    for recording in recordings:
        video = f"{recording.video}"
        if not recording.video.is_file():
            faults[video] = why_no_file(recording.video)
            continue
        try:
            fps, held, first_s = run_alone(timeout_s, video_clock, recording.video)
        except DataError as error:
            faults[video] = f"{error}"
            continue
        if fault := length_fault(recording, fps, held, tolerance_s):
            faults[video] = fault
        else:
            clocks[video] = (fps, held, first_s)
    return clocks, faults


def check_labels(recordings: Sequence[Recording], table: ClassTable) -> None:
    """Raise `DataError` for stretches without a frame and for unknown labels, each of these once."""
    faults: dict[str, str] = {}
    for part in (part for recording in recordings for part in recording.labels):
        if part.end <= part.first:
            faults[part.origin] = f"{part.origin}: frames {part.first} to {part.end} are no stretch of frames"
        elif part.label not in table:
            near = difflib.get_close_matches(part.label, [*table.actions, *table.not_actions], n=1)
            hint = f"; nearest: {near[0]!r}" if near else ""
            faults.setdefault(part.label, f"{part.origin}: label {part.label!r} is not in {table.source}{hint}")
    if faults:
        raise DataError(f"annotations that cannot be used:{listing(list(faults.values()))}\n(dataset.classes)")


def length_fault(recording: Recording, fps: float, held: int, tolerance_s: float) -> str | None:
    """How the annotation disagrees with the video about its length, or None when both agree within the tolerance."""
    tolerance, claimed = tolerance_s * fps, recording.frames
    if claimed is not None and abs(claimed - held) > tolerance:
        return f"has {held} frames at {fps:g} frames per second, its annotation {claimed}"
    reach = max((part.end for part in recording.labels), default=0)
    if reach - max(held, claimed or 0) > tolerance:
        return f"has {held} frames at {fps:g} frames per second, but labels up to frame {reach}"
    return None


def build_segment(
    recording: Recording, part: LabelledFrames, end: int, fps: float, first_s: float, table: ClassTable
) -> Segment:
    """One labelled stretch in seconds. Its id depends on the recording's name, the frames and the label alone."""
    action = table.action(part.label)
    assert action is not None
    digest = hashlib.sha256(f"{recording.name}\n{part.first}\n{part.end}\n{part.label}".encode()).hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", recording.name).strip("-")[:60]
    return Segment(
        id=f"{stem}-{part.first:06d}-{digest}",
        video=str(recording.video),
        start_s=first_s + part.first / fps,
        end_s=first_s + end / fps,
        verb=action.verb,
        object=action.object,
        split=recording.split,
        group=recording.group,
        origin=part.origin,
    )
