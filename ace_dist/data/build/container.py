"""The one door through which a video that others made is opened.

A file may be what its name does not say. A playlist, a manifest or a pattern of pictures would make FFmpeg open the
files and addresses that it names. So FFmpeg gets bytes and no name, knows the containers of `CONTAINERS` alone, and can
open nothing else.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from ace_dist.utils.errors import DataError

# FFmpeg's names of the demuxers. Each reads one file that holds its own pictures.
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "dv", "yuv4mpegpipe", "ivf", "gif"),
    *("h264", "hevc", "mjpeg", "mpegvideo", "m4v"),  # bare streams, which the reader refuses with a way to wrap them
)
SPOKEN = "mp4, mov, mkv, webm, avi, ts, mpg, flv, wmv, ogv, mxf, dv, y4m, ivf or gif"


@dataclass(frozen=True)
class StoredVideo:
    """A video inside another file, such as a tar: its bytes, and a name for messages."""

    name: str
    data: bytes

    def __str__(self) -> str:
        return self.name


Source = str | Path | StoredVideo


@contextlib.contextmanager
def open_container(source: Source, containers: Sequence[str] = CONTAINERS) -> Iterator[Any]:
    """The opened file. What FFmpeg dislikes, now or while decoding, becomes a `DataError`."""
    try:
        with (
            open_bytes(source) as file,
            av.open(
                Nameless(file),
                options={"format_whitelist": ",".join(containers), "protocol_whitelist": "none"},
                metadata_errors="replace",  # titles in Latin-1 are no damage
            ) as container,
        ):
            yield container
    except (
        av.error.ArgumentError,
        av.error.InvalidDataError,
    ) as error:  # what a container that is not listed gives, too
        raise DataError(f"{source} cannot be read as a video: it is damaged, or none of {SPOKEN}") from error
    except av.error.FFmpegError as error:
        raise DataError(f"{source} cannot be read as a video: {error.strerror or error}") from error


@contextlib.contextmanager
def open_video(source: Source, threads: int = 1, containers: Sequence[str] = CONTAINERS) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream, ready to decode. Raises `DataError` as `open_container` does."""
    with open_container(source, containers) as container:
        if not container.streams.video:
            raise DataError(f"{source} has no video stream" + (", only audio" if container.streams.audio else ""))
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise DataError(f"{source} is damaged, or of a video codec that FFmpeg does not know")
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        stream.codec_context.options = {"err_detect": "explode"}  # else FFmpeg paints over damage and says nothing
        yield container, stream


def open_bytes(source: Source) -> io.BufferedIOBase:
    """The bytes of a video. Raises `DataError` when there are none."""
    if isinstance(source, StoredVideo):
        size = len(source.data)
    elif Path(source).is_file():
        size = Path(source).stat().st_size
    else:
        raise DataError(f"video {source} does not exist")
    if size == 0:
        raise DataError(f"video {source} is empty (0 bytes)")
    return io.BytesIO(source.data) if isinstance(source, StoredVideo) else Path(source).open("rb")


class Nameless:
    """What PyAV needs of a file to read it. It has no `name`, which PyAV would hand on to FFmpeg."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
