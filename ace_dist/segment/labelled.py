"""Long videos with their true segments: what timelines are calibrated on and tested against."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ace_dist.concepts import Action
from ace_dist.data.segments import Segment


@dataclass(frozen=True)
class LabelledVideo:
    """A video and its `spans` (start_s, end_s, label) in time; what lies between them is background."""

    path: Path
    group: str
    spans: tuple[tuple[float, float, str], ...]

    def label_at(self, time_s: float) -> str | None:
        """Of the span that begins last, where several overlap."""
        found = [label for start_s, end_s, label in self.spans if start_s <= time_s < end_s]
        return found[-1] if found else None

    def window_labels(self, start_s: float, stride_s: float, windows: int) -> list[str | None]:
        """The label in the middle of each window's stretch."""
        return [self.label_at(start_s + (k + 0.5) * stride_s) for k in range(windows)]

    def frame_labels(self, start_s: float, end_s: float, fps: float) -> list[str | None]:
        """The label in the middle of each frame of a video that shows `fps` frames a second."""
        return [self.label_at(start_s + (k + 0.5) / fps) for k in range(round((end_s - start_s) * fps))]


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
            tuple(sorted((s.start_s, s.end_s, str(Action(s.verb, s.object))) for s in own)),
        )
        for path, own in sorted(by_path.items())
        if {segment.split for segment in own} == {split}
    ]
