"""Cuts one loose video as shards are cut; without torch, so that a process for it starts quickly."""

from dataclasses import dataclass
from pathlib import Path

from ace_dist.config import ClipConfig, EncodingConfig
from ace_dist.data.build.container import open_video
from ace_dist.data.build.cut import Cutter
from ace_dist.data.build.decode import promised_length, read_window
from ace_dist.data.segments import Failure, RawClip, Reader, Segment
from ace_dist.data.shards import ClipRecord
from ace_dist.utils.errors import DataError

LONGEST_S = 60.0  # an action lasts seconds; a minute of frames at a short side of 256 is about 0.6 GB


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


def cut_video(
    path: Path, clip: ClipConfig, encoding: EncodingConfig, start_s: float | None, end_s: float | None
) -> tuple[Segment, ClipRecord, bytes]:
    """What was cut of `path`, or of its part from `start_s` to `end_s` seconds, and the stored clip it became.

    Raises `DataError` as `read_clip` does.
    """
    if end_s is None:
        with open_video(path) as (container, stream):
            end_s = promised_length(container, stream)
        # A file that does not say how long it is is read to its end.
        end_s = end_s or read_window(path, end_s=LONGEST_S + 1, short_side=64).end_s
    segment = Segment("video", str(path), start_s or 0.0, end_s, "v", "o", "test")
    if segment.end_s - segment.start_s > LONGEST_S:
        raise TooLongError(
            f"{path}: {segment.end_s - segment.start_s:.0f} s are too long for one action; name a part of at most "
            f"{LONGEST_S:.0f} s with start_s=... and end_s=..."
        )
    cut = Cutter(OneVideo(encoding.fps, encoding.short_side), clip.seconds, encoding).cut(segment)
    if isinstance(cut, Failure):
        raise DataError(cut.reason if str(path) in cut.reason else f"{path}: {cut.reason}")
    return segment, *cut
