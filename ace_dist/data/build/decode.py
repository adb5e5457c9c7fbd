"""Decodes any user's video: a stretch of time in, upright RGB frames at a constant rate out."""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.reformatter import ColorRange, ColorTrc, Interpolation, VideoReformatter
from numpy.typing import NDArray

from ace_dist.data.build.container import STILL, Source, check_picture, open_video
from ace_dist.data.sampling import scaled_size
from ace_dist.data.segments import RawClip
from ace_dist.utils.errors import DataError

CAMERA_FPS = 120  # what ordinary cameras reach; a higher claim is checked by counting
EARLIER_S = 10.0  # a second try to seek goes back by this much more: groups of pictures are seldom longer
BREAK_S = 0.5  # a header may promise this much more than there is; audio tracks and rounding make it so
MOST_REPEATS = 2**17  # of one picture: an hour at 30 frames/s; three frames may claim to last for weeks
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
        # `frame.side_data` would tie frames into cycles, and hundreds of them would wait for the garbage collector.
        matrix = SideDataContainer(frame).get(Type.DISPLAYMATRIX)  # type: ignore[call-arg]  # missing in its stub
        return as_shown(scaled.to_ndarray().astype(np.uint8, copy=False), matrix)


def as_shown(pixels: NDArray[np.uint8], matrix: Any) -> NDArray[np.uint8]:
    """A stored picture turned and mirrored as its display matrix says; None leaves it as it is.

    A pixel at (x, y) is shown at (ax + cy, bx + dy), by ISO/IEC 14496-12, 8.3.2; x counts to the right, y down. Other
    turns than quarters count as the nearest one of these eight.
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32).astype(int)[:5]
    if abs(a) + abs(d) < abs(b) + abs(c):  # rows become columns
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def read_window(
    path: Source,
    start_s: float = 0.0,
    end_s: float = math.inf,
    *,
    fps: float | None = None,
    short_side: int = 0,
    threads: int = 1,
    exact: bool = False,
) -> RawClip:
    """Frames of `path` from `start_s` to `end_s` seconds of the file's clock, clamped to what exists, as a stream.

    The rate is `fps`, or the file's average rate; every output frame is the one shown nearest to its time, so variable
    rates become constant. Rotation, mirroring and pixel aspect are applied; frames whose shorter side exceeds
    `short_side` (when not 0) are scaled down to it. The first output frame's time is that of the nearest frame, or with
    `exact` that of `start_s` itself.
    Raises `DataError`, now or while the frames are taken, when the file is missing, is not a video, is damaged or
    breaks off inside the window, is HDR, changes its size, or ends before `start_s`.
    """
    with open_video(path) as (container, stream):
        own_rate = frame_rate(path, container, stream)
        rate = fps or own_rate
        promised_s, upright = shown_span(container, stream)[1], Upright(path, stream, short_side)
    pictures = nearest_pictures(path, start_s, end_s, rate, promised_s, upright, threads, exact)
    first_s, picture = next(pictures)
    return RawClip(itertools.chain([picture], (picture for _, picture in pictures)), rate, first_s)


class DamageError(DataError):
    """A stretch of a file that cannot be decoded without guessing."""


class OpenGroupError(DamageError):
    """One in an open group of pictures that a file begins with: perhaps what stood before it is missed, and no more."""


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
    packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
    stamps = [packet.dts if counted else packet.pts for packet in packets if packet.size]
    times = [stamp for stamp in stamps if stamp is not None and stamp >= (stamps[0] or 0)]  # less an open group's first
    if len(times) < 2 or min(times) == max(times):
        raise DataError(f"{path} does not say its frame rate; set dataset.encoding.fps")
    return (len(times) - 1) / float((max(times) - min(times)) * stream.time_base)


def clock_zero(container: Any) -> Fraction:
    """The time stamp, in seconds, at which a file's clock shows 0: that of its first picture or sound.

    Players and annotation tools count from there; capture devices begin with up to seconds of sound alone. Exact, where
    FFmpeg's own number is rounded, and without cover pictures, which have no time.
    """
    streams = [*container.streams.video, *container.streams.audio]
    timed = [stream for stream in streams if stream.start_time is not None and not stream.disposition & STILL]
    return min((stream.start_time * stream.time_base for stream in timed), default=Fraction(0))


def shown_span(container: Any, stream: Any) -> tuple[float, float]:
    """When the first picture is shown by the file's clock, and when the last one ends; 0 when the file does not say."""
    first_s = float(stream.start_time * stream.time_base - clock_zero(container))
    promised_s = promised_length(container, stream)
    return first_s, first_s + promised_s if promised_s else 0.0


def promised_span(path: Source) -> tuple[float, float]:
    """`shown_span` of a file. Raises `DataError` when it is no video."""
    with open_video(path) as (container, stream):
        frame_rate(path, container, stream)  # refuses a stream without times
        return shown_span(container, stream)


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
    """Decoded frames with their times in seconds of the file's clock, from about `from_s` on.

    Seeks to the key frame before it. Where a file's index misleads (that of a transport stream knows no key frames) and
    the first frame comes too late, seeks `EARLIER_S` further back, then decodes from the beginning. Frames may come
    twice when a try fails half-way; `cells` takes the first one.
    """
    for target_s in (from_s, from_s - EARLIER_S):
        with contextlib.suppress(DamageError):  # what follows a key frame may need what stands before it
            tried = decoded_frames(path, target_s, rate, threads)
            first = next(tried, None)
            if first is not None and first[0] <= from_s:
                yield first
                yield from tried
                return
    try:
        yield from decoded_frames(path, 0.0, rate, threads)
    except OpenGroupError:  # its first frames order FFmpeg to forget pictures that stood before them
        yield from decoded_frames(path, 0.0, rate, threads, strict=False)


def decoded_frames(
    path: Source, target_s: float, rate: float, threads: int, strict: bool = True
) -> Iterator[tuple[float, Any]]:
    """Frames with their times from the key frame before `target_s` on; none where the file knows no such key frame.

    Files whose packets do not say when they are shown begin at the beginning: their frames are counted.
    """
    with open_video(path, threads, strict=strict) as (container, stream):
        zero, base = clock_zero(container), stream.time_base
        counted = counted_times(path, rate) if shown_out_of_order(container, stream) else None
        if counted is None and target_s > stream.start_time * base - zero:
            try:
                container.seek(math.floor((zero + target_s) / base), stream=stream, backward=True)
            except av.error.PermissionError:
                return
        for frame in undamaged_frames(path, container, stream, counted is not None):
            yield next(counted) if counted else float(frame.pts * base - zero), frame


def shown_out_of_order(container: Any, stream: Any) -> bool:
    """Whether frames are stored in another order than shown in a container that does not say when: AVI with B-frames.

    FFmpeg makes up their times; for H.264 it gets the order wrong, and without B-frames all of them one frame late.
    """
    codec = stream.codec_context
    return container.format.name == "avi" and (codec.name == "h264" or bool(codec.has_b_frames))


def counted_times(path: Source, rate: float) -> Iterator[float]:
    """Seconds at which the frames of such a file are shown: they come out in order, at the times of its packets."""
    with open_video(path) as (container, stream):
        zero = clock_zero(container)
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
        stamps = sorted(packet.dts for packet in packets if packet.size and packet.dts is not None)
        times = [float(stamp * stream.time_base - zero) for stamp in stamps]
    return itertools.chain(times, itertools.count(times[-1] + 1 / rate if times else 0.0, 1 / rate))


def undamaged_frames(path: Source, container: Any, stream: Any, counted: bool = False) -> Iterator[Any]:
    """Decoded frames from the next key frame on: what stands before it lacks its references and would be grey.

    So do frames that stand behind this key frame and are shown before it, those of an open group. Most decoders leave
    them out themselves; that of H.264 calls them damaged.
    Raises `DamageError` instead of a frame that FFmpeg had to guess, or one without a time unless times are `counted`.
    """
    keys, key_pts, leading = 0, 0, 0
    last_s, zero = 0.0, clock_zero(container)
    for packet in container.demux(stream):
        keys += packet.is_keyframe
        if packet.is_keyframe and keys == 1:
            key_pts = packet.pts
        if packet.size and not keys:
            continue
        if stream.codec_context.name == "h264" and None not in (packet.pts, key_pts) and packet.pts < key_pts:
            leading += 1
            continue
        kind = OpenGroupError if leading and keys == 1 else DamageError
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            raise kind(f"{path} is damaged after {last_s:.2f} s: {error.strerror or error}") from error
        for frame in frames:
            if packet.is_corrupt or frame.is_corrupt:
                raise kind(f"{path} is damaged after {last_s:.2f} s")
            if frame.pts is None and not counted:
                raise DamageError(f"{path} has a frame without a time after {last_s:.2f} s")
            if frame.pts is not None:
                last_s = float(frame.pts * stream.time_base - zero)
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


def nearest_pictures(
    path: Source,
    start_s: float,
    end_s: float,
    rate: float,
    promised_s: float,
    upright: Upright,
    threads: int,
    exact: bool = False,
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """The pictures nearest to the times first + k / rate below `end_s`, each with `first`; at least one.

    `first` is the time of the frame nearest to `start_s` where one is within half a frame, so that a file of constant
    rate is copied frame by frame; `start_s` itself in a longer pause of a variable rate, or when `exact`; and the first
    frame's time in a file that begins later.
    Raises `DataError` when there is none, or when a file that promises to last until `promised_s` ends earlier.
    """
    count, first_s, last_s, shown_until_s = 0, math.nan, 0.0, 0.0
    shown = timed_frames(path, max(start_s - 1 / rate, 0.0), rate, threads)
    for time_s, begin_s, until_s, frame in cells(shown, rate):
        last_s = time_s
        shown_until_s = time_s + float((frame.duration or 0) * (frame.time_base or 0))
        if until_s <= start_s:
            continue
        if math.isnan(first_s):
            in_a_pause = begin_s <= start_s and (exact or abs(time_s - start_s) > 0.5 / rate)
            first_s = start_s if in_a_pause else time_s
        times = range(count, math.ceil((min(until_s, end_s) - first_s) * rate - 1e-6))
        if len(times) > MOST_REPEATS:
            raise DataError(
                f"{path} shows one picture from {begin_s:.0f} to {until_s:.0f} s, {len(times)} frames at {rate:g} a "
                "second; name a part without this pause, or a lower dataset.encoding.fps"
            )
        if times:
            picture = upright.picture(frame, time_s)
            yield from ((first_s, picture) for _ in times)
            count += len(times)
        if until_s >= end_s:
            break
    ends_s = first_s + count / rate if count else last_s + 1 / rate
    if max(ends_s, shown_until_s) < min(end_s, promised_s - BREAK_S) - 0.5 / rate:
        where = f"at {ends_s:.2f} s" if count else f"before {start_s:g} s"
        raise DataError(f"{path} breaks off {where}, although its header promises {promised_s:.2f} s")
    if not count and not math.isnan(first_s):
        raise DataError(f"{path} shows nothing before {last_s:.2f} s: its pictures begin there")
    if not count:
        ends = f"its last one begins at {last_s:.2f} s" if shown_until_s > start_s else f"it ends at {ends_s:.2f} s"
        raise DataError(f"{path} shows no frame at {max(start_s, 0):g} s: {ends}")
