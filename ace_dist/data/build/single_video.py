"""Cuts one loose video as shards are cut; without torch, so that a process for it starts quickly."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ace_dist.config import ClipConfig, EncodingConfig
from ace_dist.data.build.container import Source
from ace_dist.data.build.cut import Cutter
from ace_dist.data.build.decode import EXACT, promised_span, read_window
from ace_dist.data.sampling import scaled_size
from ace_dist.data.segments import Failure, RawClip, Reader, Segment
from ace_dist.data.shards import ClipRecord
from ace_dist.utils.errors import DataError

LONGEST_S = 60.0  # an action lasts seconds


class TooLongError(DataError):
    """A video, or the part of it that was named, is longer than an action lasts."""


@dataclass(frozen=True)
class OneVideo(Reader):
    """The reader of a single video, `video` or the file that a segment names; which part is the caller's to say."""

    fps: float | None
    short_side: int
    video: Source | None = None

    def segments(self) -> list[Segment]:
        return []

    def read(self, segment: Segment, start_s: float, end_s: float) -> RawClip:
        video = self.video or segment.video
        return read_window(video, start_s, end_s, fps=self.fps, short_side=self.short_side, threads=0)

    def span(self, segment: Segment) -> tuple[float, float]:
        """As the file says; one that does not say is read, up to the longest part that is allowed."""
        first_s, end_s = promised_span(self.video or segment.video)
        if not end_s:
            raw = self.read(segment, first_s, first_s + LONGEST_S + 1)
            end_s = first_s + sum(1 for _ in raw.frames) / raw.fps
        return first_s, end_s


@dataclass(frozen=True)
class Frames(Reader):
    """The reader of pictures in memory: uint8 RGB [T, H, W, 3] at `own_fps`, brought to `fps` and `short_side`."""

    pixels: NDArray[np.uint8]
    own_fps: float
    fps: float | None
    short_side: int

    def segments(self) -> list[Segment]:
        return []

    def span(self, segment: Segment) -> tuple[float, float]:
        return 0.0, len(self.pixels) / self.own_fps

    def read(self, segment: Segment, start_s: float, end_s: float) -> RawClip:
        rate, length_s = self.fps or self.own_fps, len(self.pixels) / self.own_fps
        first = max(0, math.ceil(start_s * rate - 1e-6))
        last = math.ceil(min(end_s, length_s) * rate - 1e-6)
        if first >= last:
            raise DataError(f"the frames end at {length_s:g} s, before {start_s:g} s")
        nearest = (min(len(self.pixels) - 1, round(index / rate * self.own_fps)) for index in range(first, last))
        return RawClip(self.scaled(nearest), rate, first / rate)

    def scaled(self, indices: Iterator[int]) -> Iterator[NDArray[np.uint8]]:
        reformatter = VideoReformatter()
        return (scaled_picture(self.pixels[index], self.short_side, reformatter) for index in indices)


def scaled_picture(
    picture: NDArray[np.uint8], short_side: int, reformatter: VideoReformatter | None = None
) -> NDArray[np.uint8]:
    """A picture [H, W, 3] whose shorter side exceeds `short_side` (when not 0) scaled down, as those of a file."""
    height, width = picture.shape[:2]
    picture = np.ascontiguousarray(picture)
    if not short_side or min(height, width) <= short_side:
        return picture
    high, wide = scaled_size(height, width, short_side)
    frame, how = av.VideoFrame.from_ndarray(picture, format="rgb24"), EXACT | Interpolation.AREA
    reformatter = reformatter or VideoReformatter()
    small = reformatter.reformat(frame, wide, high, "rgb24", interpolation=how, dst_color_range=ColorRange.JPEG)
    return small.to_ndarray().astype(np.uint8, copy=False)


def cut_video(
    video: Source, clip: ClipConfig, encoding: EncodingConfig, pad: bool, start_s: float | None, end_s: float | None
) -> tuple[Segment, ClipRecord, bytes]:
    """`cut_part` of a video file."""
    return cut_part(OneVideo(encoding.fps, encoding.short_side, video), str(video), clip, encoding, pad, start_s, end_s)


def cut_part(
    reader: Reader,
    name: str,
    clip: ClipConfig,
    encoding: EncodingConfig,
    pad: bool,
    start_s: float | None,
    end_s: float | None,
) -> tuple[Segment, ClipRecord, bytes]:
    """What was cut of a video, or of its part from `start_s` to `end_s` seconds, and the stored clip it became.

    Raises `DataError` as `read_clip` does.
    """
    if start_s is not None and start_s < 0:
        raise DataError(f"start_s={start_s:g} is negative; times count from the start of the file")
    cutter = Cutter(reader, clip.seconds, encoding, pad=pad)
    segment = cutter.placed(
        Segment("video", name, start_s or 0.0, math.inf if end_s is None else end_s, "v", "o", "test")
    )
    if segment.end_s - segment.start_s > LONGEST_S:
        raise TooLongError(
            f"{name}: {segment.end_s - segment.start_s:.0f} s are too long for one action; name a part of at most "
            f"{LONGEST_S:.0f} s with start_s=... and end_s=..."
        )
    cut = cutter.cut(segment)
    if isinstance(cut, Failure):
        raise DataError(cut.reason if name in cut.reason else f"{name}: {cut.reason}")
    return segment, *cut
