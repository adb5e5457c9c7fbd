"""Owns the decoding of any user's video: a stretch of time in, upright RGB frames at a constant rate out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ace_dist.data.clips import scaled_size
from ace_dist.data.segments import DataError, RawClip

__all__ = ["read_window"]

CAMERA_FPS = 120  # what ordinary cameras reach; a higher claim is checked by counting
EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


def read_window(
    path: str | Path,
    start_s: float = 0.0,
    end_s: float = math.inf,
    *,
    fps: float | None = None,
    short_side: int = 0,
    threads: int = 1,
) -> RawClip:
    """Frames of `path` from `start_s` to `end_s` seconds after its first frame, clamped to what exists.

    The rate is `fps`, or the file's average rate; every output frame is the one shown nearest to its time, so variable
    rates become constant. Rotation and pixel aspect are applied; frames whose shorter side exceeds `short_side` (when
    not 0) are scaled down to it while they are read, so that a long full-HD segment fits into memory.
    Raises `DataError` when the file is missing, is not a video, breaks off, or ends before `start_s`.
    """
    with opened(path, threads) as (container, stream):
        rate = fps or frame_rate(path, container, stream)
        shown = timed_frames(container, stream, start_s - 1 / rate, rate)
        frames, first_s = nearest_frames(shown, start_s, end_s, rate, Upright(stream, short_side))
    if not frames:
        raise DataError(f"{path} shows no frame at {max(start_s, 0):g} s: it ends at {first_s:.2f} s")
    return RawClip(np.stack(frames), rate, first_s)


@contextlib.contextmanager
def opened(path: str | Path, threads: int = 1) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. What FFmpeg dislikes, now or while decoding, becomes a `DataError`."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"video {path} does not exist")
    if path.stat().st_size == 0:
        raise DataError(f"video {path} is empty (0 bytes)")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream" + (", only audio" if container.streams.audio else ""))
            stream = container.streams.video[0]
            stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
            yield container, stream
    except av.error.FFmpegError as error:
        raise DataError(f"{path} cannot be read as a video: {error.strerror or error}") from error


def frame_rate(path: str | Path, container: Any, stream: Any) -> float:
    """Average frames per second, counted when the file claims more than a camera does: it may mean its clock."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    if 0 < rate <= CAMERA_FPS:
        return rate
    times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    container.seek(stream.start_time or 0, stream=stream, backward=True)
    if len(times) < 2 or min(times) == max(times):
        raise DataError(f"{path} does not say its frame rate; set dataset.encoding.fps")
    return (len(times) - 1) / float((max(times) - min(times)) * stream.time_base)


def timed_frames(container: Any, stream: Any, from_s: float, rate: float) -> Iterator[tuple[float, Any]]:
    """Decoded frames with their times in seconds after the file's first frame, from about `from_s` on.

    Seeks to the key frame before it. Where a file's index misleads and the first frame comes too late, decodes from the
    beginning instead.
    """
    base = stream.time_base
    origin = stream.start_time or 0
    if from_s > 0:
        container.seek(origin + math.floor(from_s / base), stream=stream, backward=True)
    first = True
    for number, frame in enumerate(container.decode(stream)):
        if frame.pts is None and from_s > 0 and first:
            raise DataError(f"{container.name} has frames without times; only whole files of this kind can be read")
        time_s = float((frame.pts - origin) * base) if frame.pts is not None else number / rate
        if first and from_s > 0 and time_s > from_s:
            container.seek(origin, stream=stream, backward=True)
            yield from timed_frames(container, stream, 0.0, rate)
            return
        first = False
        yield time_s, frame


def cells(shown: Iterator[tuple[float, Any]], rate: float) -> Iterator[tuple[float, float, Any]]:
    """Each frame with its time and the end of the stretch of time whose nearest frame it is.

    The last frame is nearest for half a frame more. A frame not later than its predecessor (a broken file) is left out.
    """
    before: tuple[float, Any] | None = None
    for time_s, frame in shown:
        if before is not None and time_s <= before[0]:
            continue
        if before is not None:
            yield before[0], (before[0] + time_s) / 2, before[1]
        before = time_s, frame
    if before is not None:
        yield before[0], before[0] + 0.5 / rate, before[1]


def nearest_frames(
    shown: Iterator[tuple[float, Any]], start_s: float, end_s: float, rate: float, upright: Upright
) -> tuple[list[NDArray[np.uint8]], float]:
    """The pictures nearest to the times first + k / rate below `end_s`, and `first`.

    `first` is the time of the frame nearest to `start_s`, so that a file of constant rate is copied frame by frame.
    Without any picture, `first` is the time at which the file ends.
    """
    pictures: list[NDArray[np.uint8]] = []
    first_s, last_s = math.nan, 0.0
    for time_s, until_s, frame in cells(shown, rate):
        last_s = time_s
        if until_s <= start_s:
            continue
        if math.isnan(first_s):
            first_s = time_s
        times = range(len(pictures), math.ceil((min(until_s, end_s) - first_s) * rate - 1e-6))
        if times:
            pictures += [upright.picture(frame)] * len(times)
        if until_s >= end_s:
            break
    return pictures, first_s if pictures else last_s + 1 / rate


class Upright:
    """Turns decoded frames into upright RGB of square pixels, uint8 [H, W, 3]; shorter side at most `short_side`."""

    def __init__(self, stream: Any, short_side: int) -> None:
        self.reformatter = VideoReformatter()
        self.pixel_aspect = float(stream.sample_aspect_ratio or 1)
        self.short_side = short_side

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to scale a frame to."""
        width = max(1, round(width * self.pixel_aspect))
        if self.short_side and min(height, width) > self.short_side:
            return scaled_size(height, width, self.short_side)
        return height, width

    def picture(self, frame: Any) -> NDArray[np.uint8]:
        """One frame. Any bit depth and chroma format; the colour matrix is the one the file names, else BT.601."""
        height, width = self.size(frame.height, frame.width)
        same = (height, width) == (frame.height, frame.width)
        scaled = self.reformatter.reformat(
            frame,
            width,
            height,
            "rgb24",
            interpolation=EXACT | (Interpolation.BILINEAR if same else Interpolation.AREA),
            dst_color_range=ColorRange.JPEG,
            threads=1,
        )
        pixels: NDArray[np.uint8] = scaled.to_ndarray().astype(np.uint8, copy=False)
        return np.rot90(pixels, round(frame.rotation / 90))  # both count counterclockwise
