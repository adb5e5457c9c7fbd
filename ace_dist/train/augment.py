"""What ViFi-CLIP's authors augment with and the paper does not mention: Mixup, CutMix, colour jitter, grey clips.

All are off unless a setting of `loader` switches them on. They work on a decoded batch on its device. Draws depend on
the seed, the step, the rank and the micro-batch, whose clips are partners; another number of either draws anew. Shapes:
B clips, C classes.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.base import Batch

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2}  # largest change of each factor from 1 (ViFi-CLIP)
GREY = (0.299, 0.587, 0.114)  # of R, G, B in the luma (ITU-R BT.601)
CUTMIX_SHARE = 0.5  # of the batches, when Mixup is on too (ViFi-CLIP)


def augment(batch: Batch, loader: LoaderConfig, classes: int, key: tuple[int, ...]) -> Batch:
    """The batch with what is switched on; with Mixup or CutMix its labels are shares of the classes, [B,C]."""
    rng = np.random.default_rng([*key, 1])
    if loader.color_jitter or loader.gray_scale:
        batch = replace(batch, video=recolour(batch.video, loader, rng))
    if not (loader.mixup or loader.cutmix):
        return batch
    shares = one_hot(batch.labels, classes).to(batch.video.dtype)
    order = torch.from_numpy(rng.permutation(len(shares))).to(batch.video.device)
    if loader.cutmix and (not loader.mixup or rng.random() < CUTMIX_SHARE):
        video, kept = paste(batch.video, order, float(rng.beta(loader.cutmix, loader.cutmix)), rng)
    else:
        kept = float(rng.beta(loader.mixup, loader.mixup))
        video = kept * batch.video + (1 - kept) * batch.video[order]
    return replace(batch, video=video, labels=kept * shares + (1 - kept) * shares[order])


def paste(video: Tensor, order: Tensor, kept: float, rng: np.random.Generator) -> tuple[Tensor, float]:
    """CutMix: a rectangle of 1 - `kept` of the area, at a random place, from each clip's partner; the share kept."""
    height, width = video.shape[-2:]
    sides = [int(side * (1 - kept) ** 0.5) for side in (height, width)]
    middles = [int(rng.integers(side)) for side in (height, width)]
    (top, bottom), (left, right) = (
        (max(0, middle - side // 2), min(whole, middle + side // 2))
        for middle, side, whole in zip(middles, sides, (height, width), strict=True)
    )
    mixed = video.clone()
    mixed[..., top:bottom, left:right] = video[order][..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def recolour(video: Tensor, loader: LoaderConfig, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and saturation, and grey, each clip by its own draw, the same for all its frames.

    Their authors draw anew for every frame and turn the hue too.
    """
    mean, std = (video.new_tensor(values)[:, None, None] for values in (loader.mean, loader.std))
    rgb = video * std + mean
    luma = video.new_tensor(GREY)[:, None, None]
    draws = rng.random((len(video), 2 + len(JITTER)))
    jittered = draws[:, 0] < loader.color_jitter
    factors = {
        name: video.new_tensor(np.where(jittered, 1 + most * (2 * draws[:, 2 + place] - 1), 1.0)).view(-1, 1, 1, 1, 1)
        for place, (name, most) in enumerate(JITTER.items())
    }
    grey = video.new_tensor((draws[:, 1] < loader.gray_scale).astype(float)).view(-1, 1, 1, 1, 1)
    rgb = (rgb * factors["brightness"]).clamp(0, 1)
    average = (rgb * luma).sum(2, keepdim=True).mean((3, 4), keepdim=True)  # of each frame
    rgb = (average + (rgb - average) * factors["contrast"]).clamp(0, 1)
    plain = (rgb * luma).sum(2, keepdim=True)
    rgb = (plain + (rgb - plain) * factors["saturation"] * (1 - grey)).clamp(0, 1)
    return (rgb - mean) / std
