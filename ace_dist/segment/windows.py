"""Overlapping windows over a long video, made from frames that are each decoded once.

A window is what a training clip is: `frames` frames over `seconds` seconds. Window k stands for the time from
k * stride_s to (k + 1) * stride_s, about whose middle it lies. All frames of all windows lie on one grid of times,
`interval_s` apart, so that neighbours share theirs. At both ends of the video the first and the last frame are
repeated, as in the windows of clips.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ace_dist.config import ClipConfig
from ace_dist.data.build.live import LiveGrid
from ace_dist.utils.errors import ConfigError

Picture = TypeVar("Picture")
WINDOWS_A_CLIP = 4  # how many windows begin within one, unless a stride is given


def windows_between(start_s: float, end_s: float, first_s: float, stride_s: float) -> slice:
    """The windows, one at least, of a stretch of a video whose window 0 stands for the time from `first_s` on."""
    first, last = (round((time_s - first_s) / stride_s) for time_s in (start_s, end_s))
    return slice(first, max(last, first + 1))


@dataclass(frozen=True)
class WindowGrid:
    """`frames` pictures a window, `interval_s` apart; `step` pictures from window to window."""

    frames: int
    interval_s: float
    step: int

    @classmethod
    def build(cls, clip: ClipConfig, stride_s: float | None = None) -> "WindowGrid":
        """The grid of a run's clips. `stride_s` becomes the nearest whole number of intervals between frames."""
        interval_s = clip.seconds / clip.frames
        if stride_s is None:
            return cls(clip.frames, interval_s, max(1, round(clip.frames / WINDOWS_A_CLIP)))
        if not 0 < stride_s <= clip.seconds:
            raise ConfigError(
                f"stride_s={stride_s} must lie above 0 and not above {clip.seconds:g}, the seconds of a window "
                "(dataset.clip.seconds): what lies between two windows would be seen by none"
            )
        return cls(clip.frames, interval_s, max(1, round(stride_s / interval_s)))

    @property
    def stride_s(self) -> float:
        return self.step * self.interval_s

    @property
    def offset(self) -> int:
        """Where window 0 begins, in pictures from the first one; 0, or below where it reaches out of the video."""
        return (self.step - self.frames + 1) // 2

    @property
    def first_s(self) -> float:
        """Time of the grid's first picture: half an interval where a window's middle lies between two pictures."""
        return ((self.step - self.frames + 1) % 2) * self.interval_s / 2

    @property
    def times(self) -> LiveGrid:
        """What a live stream needs of it; a pause longer than a window begins it anew."""
        return LiveGrid(self.first_s, self.interval_s, self.frames * self.interval_s)

    def count(self, pictures: int) -> int:
        """Windows of a video of which the grid has so many pictures."""
        return math.ceil(pictures / self.step)

    def first_picture(self, window: int) -> int:
        """The first picture of a window that lies within the video."""
        return max(0, window * self.step + self.offset)

    def windows(self, pictures: Iterable[Picture], first: int = 0, to_end: bool = True) -> Iterator[list[Picture]]:
        """Windows `first`, `first` + 1, ... of a video, from its pictures `first_picture(first)` on.

        Each comes with its last picture. `to_end`: those too that reach out of the video at its end.
        """
        held: deque[Picture] = deque(maxlen=self.frames)
        begin, place = first * self.step + self.offset, self.first_picture(first)
        window, last = first, None
        for picture in pictures:
            copies = place - begin + 1 if last is None else 1  # before its first picture a video stands still
            held.extend([picture] * copies)
            place, last = place + 1, picture
            while place == window * self.step + self.offset + self.frames:
                yield list(held)
                window += 1
        while to_end and last is not None and window < self.count(place):
            missing = window * self.step + self.offset + self.frames - place
            yield (list(held) + [last] * missing)[-self.frames :]
            window += 1
