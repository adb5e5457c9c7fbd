"""What a long video shows, when: labelled stretches of time, and the curve of every label behind them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import overload

import numpy as np
import numpy.typing as npt

from ace_dist.segment.embed import EmbeddedVideo
from ace_dist.segment.procedure import Deviation

UNCERTAIN = 0.5  # a segment whose mean probability is below is marked for a person to look at


@dataclass(frozen=True, slots=True)
class TimedSegment:
    """One stretch with one label; None when no label fits.

    `score`: mean probability of the label over the stretch, 0 to 1; `cosine`: its mean similarity (Eq. 3, without
    temperature), of the best label where none fits. `runner_up`: the next best label.
    """

    start_s: float
    end_s: float
    label: str | None
    score: float
    cosine: float
    runner_up: str | None

    @property
    def uncertain(self) -> bool:
        return self.score < UNCERTAIN


@dataclass(frozen=True)
class Timeline(Sequence[TimedSegment]):
    """The segments of a video, which cover it without a gap, and probabilities [N, K + 1] of its windows.

    Window k stands for the time from `start_s` + k `stride_s` on; the last column is "none of these".
    """

    video: str
    start_s: float
    end_s: float
    labels: tuple[str, ...]
    segments: tuple[TimedSegment, ...]
    stride_s: float
    probabilities: npt.NDArray[np.float32] = field(compare=False)
    deviations: tuple[Deviation, ...] | None = None  # from the procedure, where there is one

    @overload
    def __getitem__(self, place: int) -> TimedSegment: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[TimedSegment]: ...
    def __getitem__(self, place: int | slice) -> TimedSegment | Sequence[TimedSegment]:
        return self.segments[place]

    def __len__(self) -> int:
        return len(self.segments)

    @cached_property
    def seen(self) -> tuple[bool, ...]:
        """Whether each label has a segment."""
        found = {part.label for part in self.segments}
        return tuple(label in found for label in self.labels)

    @property
    def actions(self) -> Iterator[TimedSegment]:
        """The segments that have a label."""
        return (segment for segment in self.segments if segment.label is not None)

    @property
    def spans(self) -> list[tuple[float, float, str]]:
        """(start_s, end_s, label) of the segments that have a label."""
        return [(part.start_s, part.end_s, part.label) for part in self.segments if part.label is not None]

    def label_at(self, time_s: float) -> str | None:
        place = bisect_right(self.segments, time_s, key=lambda part: part.start_s) - 1
        return self.segments[place].label if place >= 0 and time_s < self.segments[place].end_s else None

    def frame_labels(self, frames: int, fps: float) -> list[str | None]:
        """The label of each of the first `frames` frames, taken in the middle of the time that it is shown."""
        return [self.label_at(self.start_s + (frame + 0.5) / fps) for frame in range(frames)]

    def table(self) -> str:
        """One line a segment: times, label, score, and the next best label where it is uncertain."""
        width = max((len(part.label or NONE) for part in self.segments), default=0)
        return "\n".join(
            f"{clock(part.start_s)}  {clock(part.end_s)}  {part.label or NONE:{width}}  {part.score:4.0%}"
            + (f"  or {part.runner_up}?" if part.uncertain and part.runner_up else "")
            for part in self.segments
        )


NONE = "(none of these)"


def clock(time_s: float) -> str:
    """`1:02:03.4`."""
    tenths = round(time_s * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths // 10 % 60:02d}.{tenths % 10}"


def build_timeline(
    video: EmbeddedVideo,
    labels: Sequence[str],
    classes: npt.NDArray[np.int64],
    log_probabilities: npt.NDArray[np.float64],
    cosines: npt.NDArray[np.float64],
) -> Timeline:
    """Windows of equal `classes` [N] (K: none) become segments; `log_probabilities` [N, K + 1], `cosines` [N, K]."""
    probabilities = np.exp(log_probabilities)
    segments, first = [], 0
    for chosen, group in groupby(classes.tolist()):
        last = first + sum(1 for _ in group)
        means, similarities = probabilities[first:last].mean(0), cosines[first:last].mean(0)
        others = [k for k in np.argsort(-means[: len(labels)], kind="stable").tolist() if k != chosen]
        end_s = video.end_s if last == len(classes) else video.start_s + last * video.stride_s
        segments.append(
            TimedSegment(
                start_s=round(video.start_s + first * video.stride_s, 3),
                end_s=round(end_s, 3),
                label=labels[chosen] if chosen < len(labels) else None,
                score=float(means[chosen]),
                cosine=float(similarities[chosen] if chosen < len(labels) else similarities.max()),
                runner_up=labels[others[0]] if others else None,
            )
        )
        first = last
    curves = probabilities.astype(np.float32)
    return Timeline(video.video, video.start_s, video.end_s, tuple(labels), tuple(segments), video.stride_s, curves)
