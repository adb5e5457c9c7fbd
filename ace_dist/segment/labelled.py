"""Long videos with their true segments: what timelines are calibrated on and tested against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ace_dist.data.annotations.frames import Recording
from ace_dist.data.segments import Segment


@dataclass(frozen=True)
class LabelledVideo:
    """A video and its `spans` (start_s, end_s, label) in time; what lies between them is background."""

    path: Path
    group: str
    spans: tuple[tuple[float, float, str], ...]

    def labels_at(self, times_s: npt.NDArray[np.floating[Any]]) -> list[str | None]:
        """The label at each of some rising times: of the span that begins last, where several overlap."""
        found: list[str | None] = [None] * len(times_s)
        for start_s, end_s, label in self.spans:
            first, end = np.searchsorted(times_s, [start_s, end_s])
            found[first:end] = [label] * (end - first)
        return found

    def window_labels(self, start_s: float, stride_s: float, windows: int) -> list[str | None]:
        """The label in the middle of each window's stretch."""
        return self.labels_at(start_s + (np.arange(windows) + 0.5) * stride_s)

    def frame_labels(self, start_s: float, end_s: float, fps: float) -> list[str | None]:
        """The label in the middle of each frame of a video that shows `fps` frames a second."""
        return self.labels_at(start_s + (np.arange(round((end_s - start_s) * fps)) + 0.5) / fps)


def labelled_videos(
    segments: Sequence[Segment], split: str, recordings: Sequence[Recording] = ()
) -> list[LabelledVideo]:
    """The videos of a split, by path; a video whose segments lie in both splits belongs to neither.

    `recordings`: the annotated videos, where these are known; one that shows no segment is background throughout.
    """
    by_path = segments_by_path(segments)
    found = [
        LabelledVideo(
            Path(path),
            own[0].group,
            tuple(sorted((s.start_s, s.end_s, str(s.action)) for s in own)),
        )
        for path, own in by_path.items()
        if {segment.split for segment in own} == {split}
    ]
    found += [
        LabelledVideo(each.video, each.group, ())
        for each in recordings
        if str(each.video) not in by_path and each.split == split
    ]
    return sorted(found, key=lambda video: str(video.path))


def in_both_splits(segments: Sequence[Segment]) -> list[str]:
    return [path for path, own in segments_by_path(segments).items() if len({segment.split for segment in own}) > 1]


def segments_by_path(segments: Sequence[Segment]) -> dict[str, list[Segment]]:
    found: dict[str, list[Segment]] = {}
    for segment in segments:
        if segment.video:
            found.setdefault(segment.video, []).append(segment)
    return found
