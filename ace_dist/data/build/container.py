"""The one door through which a video that others made is opened.

A file may be what its name does not say. A playlist, a manifest or a pattern of pictures would make FFmpeg open the
files and addresses that it names. So FFmpeg gets bytes and no name, knows the containers of `CONTAINERS` alone, and can
open nothing else. Cameras and RTSP addresses, which the user named, it opens itself, as that and nothing else.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Self

import av
from av.stream import Disposition

from ace_dist.data.build.live_source import (
    OPENED_BY_FFMPEG,
    SILENCE_S,
    Incoming,
    LiveSource,
    ffmpeg_input,
    open_incoming,
)
from ace_dist.utils.errors import DataError
from ace_dist.utils.reading import why_no_file

# FFmpeg's names of the demuxers. Each reads one file that holds its own pictures.
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "dv", "yuv4mpegpipe", "ivf", "gif"),
    *("h264", "hevc", "mjpeg", "mpegvideo", "m4v"),  # bare streams, which the reader refuses with a way to wrap them
)
STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
SPOKEN = "mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, mxf, dv, y4m, ivf or gif"


# Limits on one picture, above what any camera writes: the largest is 12288x6480 (Blackmagic URSA 12K).
MOST_PIXELS = 2**27
PICTURE_LIMIT = {"max_pixels": str(MOST_PIXELS)}
WIDEST = 32  # times as long as the shorter side, as it is shown; panoramas of several cameras reach 8


@dataclass(frozen=True)
class StoredVideo:
    """A video inside another file, such as a tar: where its bytes lie, and a name for messages."""

    name: str
    file: Path
    offset: int
    size: int

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class ClipInMemory:
    """A video that is in no file yet, or no longer."""

    data: bytes

    def __str__(self) -> str:
        return "the clip"


Source = str | Path | StoredVideo | ClipInMemory | LiveSource


@contextlib.contextmanager
def open_container(source: Source, containers: Sequence[str] = CONTAINERS) -> Iterator[Any]:
    """The opened file. What FFmpeg dislikes, now or while decoding, becomes a `DataError`."""
    try:
        with open_input(source, containers) as container:
            yield container
    except (av.error.ArgumentError, av.error.InvalidDataError) as error:  # the first for what is not in the list
        if isinstance(source, LiveSource) and source.kind in OPENED_BY_FFMPEG:
            raise DataError(f"{source} sends no video that can be read: {error.strerror}") from error
        raise DataError(f"{source} cannot be read as a video: it is damaged, or none of {SPOKEN}") from error
    except av.error.FFmpegError as error:
        raise DataError(f"{source} cannot be read as a video: {error.strerror or error}") from error


@contextlib.contextmanager
def open_input(source: Source, containers: Sequence[str]) -> Iterator[Any]:
    """What FFmpeg may read `source` by: its bytes, and of a camera or an RTSP address the name."""
    with contextlib.ExitStack() as stack:
        file: Any
        if isinstance(source, LiveSource) and source.kind in OPENED_BY_FFMPEG:
            file, (name, options), timeout_s = source.place, ffmpeg_input(source), SILENCE_S
        else:
            file, name, timeout_s = stack.enter_context(open_bytes(source)), None, None
            options = {"format_whitelist": ",".join(containers), "protocol_whitelist": "none"}
        options |= PICTURE_LIMIT
        errors = "replace"  # titles in Latin-1 are no damage
        container = av.open(file, format=name, options=options, timeout=timeout_s, metadata_errors=errors)
        yield stack.enter_context(container)


@contextlib.contextmanager
def open_video(
    source: Source, threads: int = 1, containers: Sequence[str] = CONTAINERS, strict: bool = True
) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, ready to decode. Raises `DataError` as `open_container` does.

    FFmpeg paints over damage and says nothing, unless it is `strict`; else it only marks most frames that it painted.
    """
    with open_container(source, containers) as container:
        stream = choose_stream(source, container)
        context = stream.codec_context
        check_picture(source, context.width, context.height, float(stream.sample_aspect_ratio or 1))
        stream.thread_type, context.thread_count = "AUTO", threads
        context.options = PICTURE_LIMIT | ({"err_detect": "explode"} if strict else {})
        yield container, stream


def choose_stream(source: Source, container: Any) -> Any:
    """The default one of a file's video streams, else its largest; never a cover picture. Says so when it chooses."""
    streams = [stream for stream in container.streams.video if not stream.disposition & STILL]
    if not streams:
        only = "a cover picture" if container.streams.video else "audio" if container.streams.audio else ""
        raise DataError(f"{source} has no video stream" + (f", only {only}" if only else ""))
    known = [stream for stream in streams if stream.codec_context is not None]
    if not known:
        raise DataError(f"{source} is damaged, or of a video codec that FFmpeg does not know")
    best = max(known, key=lambda stream: (bool(stream.disposition & Disposition.default), stream.width * stream.height))
    if len(known) > 1:
        say_choice(f"{source}", len(known), f"stream {best.index} ({best.width}x{best.height})")
    return best


@cache
def say_choice(source: str, count: int, chosen: str) -> None:
    print(f"{source} has {count} video streams; {chosen} is read: the default one, else the largest", file=sys.stderr)


def check_picture(source: Source, width: int, height: int, pixel_aspect: float) -> None:
    """Raise `DataError` for pictures that no camera makes: a few KB of such a file decode to GBs."""
    shown = width * pixel_aspect, height
    if width * height > MOST_PIXELS or max(shown) > WIDEST * min(shown):
        raise DataError(
            f"{source} has pictures of {width}x{height} pixels, shown as {shown[0]:g}x{height}; at most "
            f"{MOST_PIXELS / 1e6:.0f} million pixels and sides of 1:{WIDEST} are read; crop or scale it first"
        )


def open_bytes(source: Source) -> "Part | Incoming":
    """The bytes of a video. Raises `DataError` when there are none."""
    if isinstance(source, LiveSource):
        return open_bytes(Path(source.place)) if source.kind == "file" else open_incoming(source)
    if isinstance(source, ClipInMemory):
        return Part(io.BytesIO(source.data), 0, len(source.data))
    path = source.file if isinstance(source, StoredVideo) else Path(source)
    if not path.is_file():
        raise DataError(f"video {source} {why_no_file(path)}")
    offset, size = (source.offset, source.size) if isinstance(source, StoredVideo) else (0, path.stat().st_size)
    if size == 0:
        raise DataError(f"video {source} is empty (0 bytes)")
    try:
        return Part(path.open("rb"), offset, size)
    except OSError as error:
        raise DataError(f"video {source} cannot be opened: {error.strerror}") from error


class Part:
    """A stretch of a file, with what PyAV needs to read it. It has no `name`, which PyAV would hand on to FFmpeg."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self.file, self.offset, self.size = file, offset, size
        self.seek(0)

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.size - self.tell())))

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}[whence]
        return self.file.seek(self.offset + max(0, start + place)) - self.offset

    def tell(self) -> int:
        return self.file.tell() - self.offset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
