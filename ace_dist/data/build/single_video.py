"""Cuts one loose video as shards are cut; without torch, so that a process for it starts quickly."""

import math
from dataclasses import dataclass
from pathlib import Path

from ace_dist.config import ClipConfig, EncodingConfig
from ace_dist.data.build.cut import Cutter
from ace_dist.data.build.decode import promised_span, read_window
from ace_dist.data.segments import Failure, RawClip, Reader, Segment
from ace_dist.data.shards import ClipRecord
from ace_dist.utils.errors import DataError

LONGEST_S = 60.0  # an action lasts seconds


class TooLongError(DataError):
    """A video, or the part of it that was named, is longer than an action lasts."""


@dataclass(frozen=True)
class OneVideo(Reader):
    """The reader of a single file; which part of which file is the caller's to say."""

    fps: float | None
    short_side: int

    def segments(self) -> list[Segment]:
        return []

    def read(self, segment: Segment, start_s: float, end_s: float) -> RawClip:
        return read_window(segment.video, start_s, end_s, fps=self.fps, short_side=self.short_side, threads=0)

    def span(self, segment: Segment) -> tuple[float, float]:
        """As the file says; one that does not say is read, up to the longest part that is allowed."""
        first_s, end_s = promised_span(segment.video)
        if not end_s:
            raw = self.read(segment, first_s, first_s + LONGEST_S + 1)
            end_s = first_s + sum(1 for _ in raw.frames) / raw.fps
        return first_s, end_s


def cut_video(
    path: Path, clip: ClipConfig, encoding: EncodingConfig, pad: bool, start_s: float | None, end_s: float | None
) -> tuple[Segment, ClipRecord, bytes]:
    """What was cut of `path`, or of its part from `start_s` to `end_s` seconds, and the stored clip it became.

    Raises `DataError` as `read_clip` does.
    """
    cutter = Cutter(OneVideo(encoding.fps, encoding.short_side), clip.seconds, encoding, pad=pad)
    segment = cutter.placed(
        Segment("video", str(path), start_s or 0.0, math.inf if end_s is None else end_s, "v", "o", "test")
    )
    if segment.end_s - segment.start_s > LONGEST_S:
        raise TooLongError(
            f"{path}: {segment.end_s - segment.start_s:.0f} s are too long for one action; name a part of at most "
            f"{LONGEST_S:.0f} s with start_s=... and end_s=..."
        )
    cut = cutter.cut(segment)
    if isinstance(cut, Failure):
        raise DataError(cut.reason if str(path) in cut.reason else f"{path}: {cut.reason}")
    return segment, *cut
