"""Long videos with their true segments: what timelines are calibrated on and tested against."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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


def labelled_videos(segments: Iterable[Segment], split: str) -> list[LabelledVideo]:
    """The videos of a split, by path; a video whose segments lie in both splits belongs to neither."""
    by_path: dict[str, list[Segment]] = {}
    for segment in segments:
        if segment.video:
            by_path.setdefault(segment.video, []).append(segment)
    return [
        LabelledVideo(
            Path(path),
            own[0].group,
            tuple(sorted((s.start_s, s.end_s, str(s.action)) for s in own)),
        )
        for path, own in sorted(by_path.items())
        if {segment.split for segment in own} == {split}
    ]
