"""Decodes any user's video: a stretch of time in, upright RGB frames at a constant rate out."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ace_dist.data.build.container import Source, check_picture, open_video
from ace_dist.data.sampling import scaled_size
from ace_dist.data.segments import RawClip
from ace_dist.utils.errors import DataError

CAMERA_FPS = 120  # what ordinary cameras reach; a higher claim is checked by counting
BREAK_S = 0.5  # a header may promise this much more than there is; audio tracks and rounding make it so
HDR = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
EXACT = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP


class Upright:
    """Turns decoded frames into upright RGB of square pixels, uint8 [H, W, 3]; shorter side at most `short_side`."""

    def __init__(self, path: Source, stream: Any, short_side: int) -> None:
        self.path, self.short_side = path, short_side
        self.reformatter = VideoReformatter()
        self.pixel_aspect = float(stream.sample_aspect_ratio or 1)
        self.stored: tuple[int, int] | None = None  # height and width of the first frame

    def picture(self, frame: Any, time_s: float) -> NDArray[np.uint8]:
        """One frame. Any bit depth and chroma format; the colour matrix is the one the file names, else BT.601.

        Raises `DataError` for a frame of another size than its predecessors, or one that needs tone mapping.
        """
        if self.stored is None:
            check_picture(self.path, frame.width, frame.height, self.pixel_aspect)  # a header may say something else
            self.stored = frame.height, frame.width
        if self.stored != (frame.height, frame.width):
            raise DataError(
                f"{self.path} changes from {self.stored[1]}x{self.stored[0]} to {frame.width}x{frame.height} pixels at "
                f"{time_s:.2f} s; convert it to one size first"
            )
        if frame.color_trc in HDR:
            raise DataError(
                f"{self.path} is HDR ({HDR[frame.color_trc]}), whose light would come out wrong; tone-map it to BT.709 "
                "first, with FFmpeg 8: ffmpeg -i IN -vf "
                "scale=out_transfer=bt709:out_primaries=bt709:out_color_matrix=bt709,format=yuv420p OUT.mp4"
            )
        height, width = frame.height, max(1, round(frame.width * self.pixel_aspect))
        if self.short_side and min(height, width) > self.short_side:
            height, width = scaled_size(height, width, self.short_side)
        same = (height, width) == self.stored
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


def read_window(
    path: Source,
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
    Raises `DataError` when the file is missing, is not a video, is damaged or breaks off inside the window, is HDR,
    changes its size, or ends before `start_s`.
    """
    with open_video(path) as (container, stream):
        own_rate = frame_rate(path, container, stream)
        rate = fps or own_rate
        promised_s, upright = promised_length(container, stream), Upright(path, stream, short_side)
    from_s = max(start_s - 1 / rate, 0.0)
    try:
        frames, first_s = nearest_frames(timed_frames(path, from_s, rate, threads), start_s, end_s, rate, upright)
    except DamageError:
        if not from_s:
            raise
        # In an open group of pictures, what follows a key frame may need what comes before it: not damage but our seek.
        frames, first_s = nearest_frames(timed_frames(path, 0.0, rate, threads), start_s, end_s, rate, upright)
    ends_s = first_s + len(frames) / rate
    if ends_s < min(end_s, promised_s - BREAK_S) - 0.5 / rate:
        where = f"at {ends_s:.2f} s" if frames else f"before {start_s:g} s"
        raise DataError(f"{path} breaks off {where}, although its header promises {promised_s:.2f} s")
    if not frames and ends_s > max(start_s, 0):
        raise DataError(f"{path} shows nothing before {ends_s - 1 / rate:.2f} s: it does not begin with a key frame")
    if not frames:
        raise DataError(f"{path} shows no frame at {max(start_s, 0):g} s: it ends at {ends_s:.2f} s")
    return RawClip(np.stack(frames), rate, first_s)


class DamageError(DataError):
    """A stretch of a file that cannot be decoded without guessing."""


def frame_rate(path: Source, container: Any, stream: Any) -> float:
    """Average frames per second, as the file says.

    The frames are counted where the stated rate cannot be trusted: a rate above any camera's may be that of the clock,
    and for AVI files with reordered frames FFmpeg derives it from times of its own making.
    """
    if stream.start_time is None:
        raise DataError(
            f"{path} is a bare stream without times; wrap it first: ffmpeg -r FRAMES_PER_SECOND -i IN -c copy OUT.mkv"
        )
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    counted = shown_out_of_order(container, stream)
    if 0 < rate <= CAMERA_FPS and not counted:
        return rate
    stamps = [packet.dts if counted else packet.pts for packet in container.demux(stream) if packet.size]
    times = [stamp for stamp in stamps if stamp is not None]
    if len(times) < 2 or min(times) == max(times):
        raise DataError(f"{path} does not say its frame rate; set dataset.encoding.fps")
    return (len(times) - 1) / float((max(times) - min(times)) * stream.time_base)


def promised_length(container: Any, stream: Any) -> float:
    """Seconds of video that the file says it holds, 0 when it does not say."""
    if container.format.name == "avi" and stream.frames:  # its duration is a guess from the size of what is there
        return float(stream.frames * stream.time_base)
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    start_s = float((stream.start_time or 0) * stream.time_base)
    if tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # Matroska's end time
        return 3600 * int(tag[1]) + 60 * int(tag[2]) + float(tag[3]) - start_s
    if container.duration is not None and not container.streams.audio:
        return float(container.duration / av.time_base) - start_s
    return 0.0


def timed_frames(path: Source, from_s: float, rate: float, threads: int) -> Iterator[tuple[float, Any]]:
    """Decoded frames with their times in seconds after the file's first frame, from about `from_s` on.

    Seeks to the key frame before it. Where a file's index misleads and the first frame comes too late, decodes from the
    beginning instead. So do files whose packets do not say when they are shown: their frames are counted.
    """
    with open_video(path, threads) as (container, stream):
        base, origin = stream.time_base, stream.start_time
        counted = counted_times(path, rate) if shown_out_of_order(container, stream) else None
        if from_s > 0 and counted is None:
            container.seek(origin + math.floor(from_s / base), stream=stream, backward=True)
        for number, frame in enumerate(undamaged_frames(path, container, stream, counted is not None)):
            time_s = next(counted) if counted else float((frame.pts - origin) * base)
            if number == 0 and time_s > from_s > 0 and counted is None:
                break
            yield time_s, frame
        else:
            return
    yield from timed_frames(path, 0.0, rate, threads)


def shown_out_of_order(container: Any, stream: Any) -> bool:
    """Whether frames are stored in another order than shown in a container that does not say when: AVI with B-frames.

    FFmpeg makes up their times; for H.264 it gets the order wrong, and without B-frames all of them one frame late.
    """
    codec = stream.codec_context
    return container.format.name == "avi" and (codec.name == "h264" or bool(codec.has_b_frames))


def counted_times(path: Source, rate: float) -> Iterator[float]:
    """Seconds at which the frames of such a file are shown: they come out in order, at the times of its packets."""
    with open_video(path) as (container, stream):
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
        stamps = sorted(packet.dts for packet in packets if packet.size and packet.dts is not None)
        times = [float((stamp - stream.start_time) * stream.time_base) for stamp in stamps]
    return itertools.chain(times, itertools.count(times[-1] + 1 / rate if times else 0.0, 1 / rate))


def undamaged_frames(path: Source, container: Any, stream: Any, counted: bool = False) -> Iterator[Any]:
    """Decoded frames from the next key frame on: what stands before it lacks its references and would be grey.

    Raises `DamageError` instead of a frame that FFmpeg had to guess, or one without a time unless times are `counted`.
    """
    keyed, last_s = False, 0.0
    for packet in container.demux(stream):
        keyed = keyed or packet.is_keyframe
        if packet.size and not keyed:
            continue
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            raise DamageError(f"{path} is damaged after {last_s:.2f} s: {error.strerror or error}") from error
        for frame in frames:
            if packet.is_corrupt or frame.is_corrupt:
                raise DamageError(f"{path} is damaged after {last_s:.2f} s")
            if frame.pts is None and not counted:
                raise DamageError(f"{path} has a frame without a time after {last_s:.2f} s")
            if frame.pts is not None:
                last_s = float((frame.pts - stream.start_time) * stream.time_base)
            yield frame


def cells(shown: Iterator[tuple[float, Any]], rate: float) -> Iterator[tuple[float, float, float, Any]]:
    """Each frame with its time, and the beginning and end of the stretch of time whose nearest frame it is.

    The first and the last frame are nearest for half a frame more. A frame not later than its predecessor (a broken
    file) is left out.
    """
    before: tuple[float, Any] | None = None
    begin_s = 0.0
    for time_s, frame in shown:
        if before is None:
            begin_s = time_s - 0.5 / rate
        elif time_s <= before[0]:
            continue
        else:
            until_s = (before[0] + time_s) / 2
            yield before[0], begin_s, until_s, before[1]
            begin_s = until_s
        before = time_s, frame
    if before is not None:
        yield before[0], begin_s, before[0] + 0.5 / rate, before[1]


def nearest_frames(
    shown: Iterator[tuple[float, Any]], start_s: float, end_s: float, rate: float, upright: Upright
) -> tuple[list[NDArray[np.uint8]], float]:
    """The pictures nearest to the times first + k / rate below `end_s`, and `first`.

    `first` is the time of the frame nearest to `start_s` where one is within half a frame, so that a file of constant
    rate is copied frame by frame; `start_s` itself in a longer pause of a variable rate; and the first frame's time in
    a file that begins later. Without any picture, `first` is the time at which the file ends.
    """
    pictures: list[NDArray[np.uint8]] = []
    first_s, last_s = math.nan, 0.0
    for time_s, begin_s, until_s, frame in cells(shown, rate):
        last_s = time_s
        if until_s <= start_s:
            continue
        if math.isnan(first_s):
            in_a_pause = begin_s <= start_s and abs(time_s - start_s) > 0.5 / rate
            first_s = start_s if in_a_pause else time_s
        times = range(len(pictures), math.ceil((min(until_s, end_s) - first_s) * rate - 1e-6))
        if times:
            pictures += [upright.picture(frame, time_s)] * len(times)
        if until_s >= end_s:
            break
    return pictures, first_s if pictures else last_s + 1 / rate
