"""Brings the pictures of a long video to the encoder: decoded once, in another process, cropped as test views are."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ace_dist.config import EncodingConfig, LoaderConfig
from ace_dist.data.build.container import open_video
from ace_dist.data.build.decode import clock_zero, frame_rate, read_window, shown_span
from ace_dist.data.build.isolation import stream_alone
from ace_dist.data.loader.pixels import TestCrop
from ace_dist.utils.errors import DataError

BLOCK = 16  # pictures that come over at once
THUMBNAIL = 120  # pixels
STALL_S = 120.0  # for a block; a file that takes longer hangs FFmpeg


def stream_crops(
    path: Path, start_s: float, interval_s: float, encoding: EncodingConfig, loader: LoaderConfig, exact: bool = False
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Blocks of crops, uint8 RGB [k, 3, S, S], of the pictures `interval_s` apart from `start_s` on.

    Each comes with the time of the first picture of all: that of the frame nearest to `start_s`, where it is not to be
    `exact`. The process that decodes may crash or hang: then, and when the
    file cannot be read, raises `DataError`.
    """
    return stream_alone(STALL_S, crops, path, start_s, interval_s, encoding, loader, exact)


def crops(
    path: Path, start_s: float, interval_s: float, encoding: EncodingConfig, loader: LoaderConfig, exact: bool = False
) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    raw = read_window(path, start_s, fps=1 / interval_s, short_side=encoding.short_side, exact=exact)
    crop: TestCrop | None = None
    block: list[NDArray[np.uint8]] = []
    for picture in raw.frames:
        crop = crop or TestCrop(picture.shape[0], picture.shape[1], loader)
        block.append(crop(picture))
        if len(block) == BLOCK:
            yield raw.start_s, np.stack(block)
            block = []
    if block:
        yield raw.start_s, np.stack(block)


def stream_thumbnails(path: Path, times_s: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
    """The upright pictures, at most `THUMBNAIL` pixels on their shorter side, that are shown at each of `times_s`.

    For a time after the end it is the last one: windows reach past it by up to half the distance of their pictures.
    """
    return stream_alone(STALL_S, thumbnails, path, times_s)


def thumbnails(path: Path, times_s: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
    with open_video(path) as (container, stream):
        last_s = (shown_span(container, stream)[1] or math.inf) - 1 / frame_rate(path, container, stream)
    for time_s in times_s:
        try:
            yield thumbnail(path, min(time_s, last_s))
        except DataError:  # perhaps it does not say when it ends, or its last picture is shown for longer
            last_s = min(last_s, last_picture_s(path))
            yield thumbnail(path, min(time_s, last_s))


def thumbnail(path: Path, time_s: float) -> NDArray[np.uint8]:
    """One picture is decoded, which may be shown a little later."""
    return next(iter(read_window(path, max(time_s, 0.0), short_side=THUMBNAIL).frames))


def last_picture_s(path: Path) -> float:
    """When it is shown, by the file's packets."""
    with open_video(path) as (container, stream):
        zero = clock_zero(container)
        stamps = (packet.pts for packet in container.demux(stream))
        return max((float(stamp * stream.time_base - zero) for stamp in stamps if stamp is not None), default=0.0)


def stream_frames(path: Path, fps: float, short_side: int) -> Iterator[NDArray[np.uint8]]:
    """All pictures of a video at a constant rate."""
    return stream_alone(STALL_S, frames, path, fps, short_side)


def frames(path: Path, fps: float, short_side: int) -> Iterator[NDArray[np.uint8]]:
    yield from read_window(path, fps=fps, short_side=short_side).frames
