"""Brings one loose video to the encoder by the very cutting, encoding and cropping that shards go through."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ace_dist.config import Config
from ace_dist.data.build.isolation import LostError, run_alone
from ace_dist.data.build.single_video import cut_video
from ace_dist.data.loader.base import normalise
from ace_dist.data.loader.pyav import decode_clip
from ace_dist.data.sampling import TestPlan
from ace_dist.utils.errors import DataError


@dataclass(frozen=True)
class LooseClip:
    """The test views of a video: normalised RGB [views, T, 3, H, W]; short videos show the same frames in each."""

    video: torch.Tensor
    start_s: float
    end_s: float
    distinct_views: int


def read_clip(
    path: str | Path, config: Config, start_s: float | None, end_s: float | None, timeout_s: float | None = None
) -> LooseClip:
    """The test views of `path`, or of its part from `start_s` to `end_s`, as the shards of `config` would give them.

    The file is read in a process of its own, which may crash or take longer than `timeout_s` (None:
    `dataset.timeout_s`) without harm.
    Raises `DataError` when the file cannot be read, is shorter than a clip, or longer than a minute without a part
    being named.
    """
    dataset = config.dataset
    limit_s = dataset.timeout_s if timeout_s is None else timeout_s
    arguments = Path(path), dataset.clip, dataset.encoding, dataset.pad, start_s, end_s
    try:
        part, record, data = run_alone(limit_s, cut_video, *arguments)
    except LostError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    (requests,) = TestPlan([record], [0], config.dataset.clip, config.loader, config.dataset.clip.views).batches()
    views = torch.stack([torch.from_numpy(decode_clip(data, request)) for request in requests])
    distinct_views = len({request.frames for request in requests})
    return LooseClip(normalise(views, config.loader), part.start_s, part.end_s, distinct_views)
