"""The patch embedding of clips, from normalised floats or from the bytes that a decoder gives.

Shapes: B clips, T frames, S pixels a side, p a patch's, P patches of a frame, D width.
"""

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from ace_dist.utils.errors import ModelError


class ClipPatches(nn.Module):
    """[B,T,3,S,S] -> [B,P,T,D]; the weights are those of a convolution with stride p, `proj`.

    Floats are normalised RGB. Bytes are RGB as stored, normalised by `normalisation`, mean and std of RGB in [0, 1], in
    the same matrix product: one kernel sorts the pixels into patches and there is no normalised clip. A byte less a
    whole number is exact even in bfloat16, which a normalised pixel is not.
    """

    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __init__(self, side: int, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.num_patches = (side // patch) ** 2

    def forward(self, video: Tensor) -> Tensor:
        if video.dtype == torch.uint8:
            return self.from_bytes(video)
        video = video.to(self.proj.weight.dtype)
        if video.is_cuda:
            return self.from_floats(video)
        # The sums of a product are not those of the convolution to the last bit: CPU runs stay as they were.
        grid: Tensor = self.proj(video.flatten(0, 1))
        patches = grid.flatten(2).unflatten(0, (len(video), -1)).permute(0, 3, 1, 2)
        return cast(Tensor, patches.contiguous())

    def from_floats(self, video: Tensor) -> Tensor:
        """As a matrix product: cuDNN's bf16 convolution takes 4 ms of a step on an H100 where this takes 0.2."""
        weight, cut = self.proj.weight, self.cut(video)
        pixels = cut.reshape(-1, weight[0].numel())
        embedded = torch.addmm(cast(Tensor, self.proj.bias), pixels, weight.flatten(1).t())
        return embedded.view(len(video), -1, video.shape[1], len(weight))

    def cut(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,S,S] -> a view of their patches, [B,S/p,S/p,T,3,p,p]."""
        patch = self.proj.weight.shape[-1]
        grid = video.shape[-1] // patch
        squares: Tensor = video.unflatten(4, (grid, patch)).unflatten(3, (grid, patch))
        return squares.permute(0, 3, 5, 1, 2, 4, 6)

    def from_bytes(self, video: Tensor) -> Tensor:
        """With x a byte and c near their mean: W ((x / 255 - mean) / std) + b = s (W r (x - c)) + b', for each
        channel's r = std_0 / std, 1 where all are equal, s = 1 / (255 std_0), and b' = b + W ((c / 255 - mean) / std).
        """
        if self.normalisation is None:
            raise ModelError("clips are bytes, which loader.dtype=uint8 alone gives; normalise them first")
        mean, std = self.normalisation
        centre = round(255 * sum(mean) / len(mean))
        weight, dtype = self.proj.weight, self.proj.weight.dtype

        # Bytes [B,T,3,S,S] become patches less the centre, [B,P,T,3*p*p], in one pass.
        cut = self.cut(video)
        pixels = torch.empty(cut.shape, dtype=dtype, device=video.device)
        torch.sub(cut, torch.tensor(float(centre), dtype=dtype, device="cpu"), out=pixels)

        ratio, offset = ratio_and_offset(mean, std, centre, video.device)
        flat = (weight.float() * ratio.view(3, 1, 1)).to(dtype).flatten(1)
        bias = cast(Tensor, self.proj.bias).float() + weight.float().sum((2, 3)) @ offset
        embedded = torch.addmm(bias.to(dtype), pixels.view(-1, flat.shape[1]), flat.t(), alpha=1 / (255 * std[0]))
        return embedded.view(len(video), -1, video.shape[1], len(weight))


@lru_cache
def ratio_and_offset(
    mean: tuple[float, ...], std: tuple[float, ...], centre: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """std_0 / std and (centre / 255 - mean) / std, [3] each, on a device that gets them once."""
    offset = [(centre / 255 - m) / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor([std[0] / s for s in std], device=device), torch.tensor(offset, device=device)
