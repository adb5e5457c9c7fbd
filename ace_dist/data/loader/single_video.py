"""Brings one loose video to the encoder by the very cutting, encoding and cropping that shards go through."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from ace_dist.config import Config
from ace_dist.data.build.container import ClipInMemory, Source
from ace_dist.data.build.isolation import LostError, run_alone
from ace_dist.data.build.single_video import Frames, cut_part, cut_video
from ace_dist.data.loader.base import normalise
from ace_dist.data.loader.pyav import decode_clip
from ace_dist.data.sampling import TestPlan
from ace_dist.utils.errors import DataError

# A path, a file opened in binary mode, or pictures: uint8 RGB [T, H, W, 3], or T pictures [H, W, 3].
Video = str | Path | BinaryIO | NDArray[np.uint8] | torch.Tensor | Sequence[Any]


@dataclass(frozen=True)
class LooseClip:
    """The test views of a video: normalised RGB [views, T, 3, H, W]; short videos show the same frames in each.

    `stored`: the clip that they are of, as shards would hold it.
    """

    video: torch.Tensor
    start_s: float
    end_s: float
    distinct_views: int
    stored: bytes


def read_clip(
    video: Video,
    config: Config,
    start_s: float | None,
    end_s: float | None,
    timeout_s: float | None = None,
    fps: float | None = None,
) -> LooseClip:
    """The test views of a video, or of its part from `start_s` to `end_s`, as the shards of `config` would give them.

    A file is read in a process of its own, which may crash or take longer than `timeout_s` (None: `dataset.timeout_s`)
    without harm. `fps` is the rate of pictures; None: together they last one clip, `dataset.clip.seconds`.
    Raises `DataError` when the video cannot be read, is shorter than a clip, or longer than a minute without a part
    being named.
    """
    fps = None if fps is None else check_fps(fps)
    dataset = config.dataset
    how = dataset.clip, dataset.encoding, dataset.pad, start_s, end_s
    source = as_source(video)
    if isinstance(source, np.ndarray):
        own_fps = fps or len(source) / dataset.clip.seconds
        frames = Frames(source, own_fps, dataset.encoding.fps, dataset.encoding.short_side)
        part, record, data = cut_part(frames, "the frames", *how)
    elif fps is not None:
        raise DataError(f"fps={fps:g} is of pictures in memory; {source} has its own")
    else:
        limit_s = dataset.timeout_s if timeout_s is None else timeout_s
        try:
            part, record, data = run_alone(limit_s, cut_video, source, *how)
        except LostError as error:
            raise DataError(f"{source} cannot be read: {error}") from error
    (requests,) = TestPlan([record], [0], config.dataset.clip, config.loader, config.dataset.clip.views).batches()
    views = torch.stack([torch.from_numpy(decode_clip(data, request)) for request in requests])
    distinct_views = len({request.frames for request in requests})
    return LooseClip(normalise(views, config.loader), part.start_s, part.end_s, distinct_views, data)


def check_fps(fps: float) -> float:
    """A rate as a plain number, whatever kind of number it is. Raises `DataError`."""
    try:
        rate = float(fps)
    except (TypeError, ValueError, OverflowError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise DataError(f"fps={fps} must be a number of pictures a second above 0; leave it out where it is not known")
    return rate


def as_source(video: Video) -> Source | NDArray[np.uint8]:
    """A file as what is opened, pictures as uint8 RGB [T, H, W, 3]. Raises `DataError` for what is neither."""
    if isinstance(video, (str, Path)):
        return Path(video)
    if hasattr(video, "read"):
        file: Any = video
        data = file.read()
        if not data and hasattr(file, "seekable") and file.seekable():  # it was asked about before
            file.seek(0)
            data = file.read()
        if not data:
            raise DataError(f"{video} is empty, or was read to its end before")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise DataError(f"{video} is open as text: open it in binary mode, 'rb'")
        return ClipInMemory(bytes(data))
    if isinstance(video, (list, tuple)):
        pictures = [np.asarray(picture) for picture in video]
        if len(shapes := {picture.shape for picture in pictures}) != 1:
            raise DataError(f"the pictures of a video have one shape [H, W, 3], not {sorted(shapes) or 'none'}")
        video = np.stack(pictures)
    pixels = video.detach().cpu().numpy() if isinstance(video, torch.Tensor) else np.asarray(video)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels):
        channels_first = pixels.ndim == 4 and pixels.shape[1] == 3
        hint = "; bring the channels to the end" * channels_first + "; scale to 0 ... 255" * (pixels.dtype.kind == "f")
        raise DataError(f"a video in memory is uint8 RGB [T, H, W, 3], not {pixels.dtype} {list(pixels.shape)}{hint}")
    return pixels


def is_batch(video: Any) -> bool:
    """Whether a list holds videos, and not the pictures of one."""
    if not isinstance(video, (list, tuple)) or not video:
        return False
    first = video[0]
    return isinstance(first, (str, Path, list, tuple)) or hasattr(first, "read") or getattr(first, "ndim", 0) == 4
