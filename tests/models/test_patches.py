"""The patch embedding of bytes: it is normalising and then embedding, in one product."""

from __future__ import annotations

import pytest
import torch

from ace_dist.config import LoaderConfig, TextConfig, VideoConfig, load_config
from ace_dist.data.loader.base import normalise
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.patches import ClipPatches
from ace_dist.utils.errors import ConfigError, ModelError

MEAN, STD = (0.48, 0.40, 0.55), (0.27, 0.21, 0.33)  # other ones for each channel
SIDE, PATCH, WIDTH = 24, 8, 20


def made(dtype=torch.float32) -> ClipPatches:
    """Random weights of a size that leaves outputs near 1."""
    patches = ClipPatches(SIDE, PATCH, WIDTH)
    torch.nn.init.normal_(patches.proj.weight, std=0.07)
    torch.nn.init.normal_(patches.proj.bias)
    return patches.to(dtype)


def clips() -> torch.Tensor:
    """Bytes, whole range."""
    video = torch.randint(0, 256, (2, 5, 3, SIDE, SIDE), dtype=torch.uint8)
    video[0, 0], video[1, 1] = 0, 255
    return video


def normalised(video: torch.Tensor, mean=MEAN, std=STD) -> torch.Tensor:
    """In float64, written out."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    return (video.double() / 255 - mean) / std


@pytest.mark.parametrize("std", [STD, (0.225, 0.225, 0.225)])
def test_bytes_are_normalised_and_embedded(std) -> None:
    """Against torch's convolution in float64, in the order [B,P,T,D]: patches row by row."""
    patches, video = made(), clips()
    patches.normalisation = (MEAN, std)
    weight, bias = patches.proj.weight.double(), patches.proj.bias.double()
    wanted = torch.nn.functional.conv2d(normalised(video, std=std).flatten(0, 1), weight, bias, stride=PATCH)
    wanted = wanted.unflatten(0, (2, 5)).permute(0, 3, 4, 1, 2).flatten(1, 2)
    assert (patches(video) - wanted).abs().max() < 2e-5
    floats = normalised(video, std=std).float()
    for embed in (patches, patches.from_floats):  # the convolution itself, and what serves on a GPU
        assert (embed(floats) - wanted).abs().max() < 2e-5
    assert patches(video).is_contiguous()


def test_bfloat16_loses_no_more_than_with_normalised_clips() -> None:
    """The bytes are exact; what is rounded is a weight of another std, and the result."""
    patches, video = made(torch.bfloat16), clips()
    exact = made(torch.float64)
    exact.load_state_dict(patches.state_dict())
    wanted = exact(normalised(video))
    patches.normalisation = (MEAN, STD)
    errors = [(patches(x) - wanted).square().mean().sqrt() for x in (video, normalised(video))]
    assert errors[0] < 1.5 * errors[1]


def test_gradients_are_those_of_normalised_clips() -> None:
    """With all blocks trained the patch embedding trains, too."""
    patches, video = made(), clips()
    patches.normalisation = (MEAN, STD)
    upstream = torch.randn(2, 9, 5, WIDTH)
    grads = [
        torch.autograd.grad((patches(x) * upstream).sum(), [*patches.parameters()]) for x in (video, normalised(video))
    ]
    for ours, plain in zip(*grads, strict=True):
        assert (ours - plain).abs().max() < 1e-4 * plain.abs().max()


def test_a_model_takes_what_its_loader_gives() -> None:
    """The same embedding either way; bytes that nobody announced are refused, not taken for normalised numbers."""
    small = {"width": 24, "depth": 2, "heads": 2, "trained_blocks": 1, "frames": 5, "embed_dim": 8}
    video = VideoConfig(patch=PATCH, image_size=SIDE, **small)
    model = DualEncoder(video, TextConfig(width=16, depth=1, heads=2, embed_dim=8)).eval()
    loader, pixels = LoaderConfig(dtype="uint8", mean=list(MEAN), std=list(STD)), clips()
    with pytest.raises(ModelError, match="loader.dtype=uint8"):
        model.encode_video(pixels)
    model.expect_clips(loader)
    with torch.no_grad():
        plain = model.encode_video(normalise(pixels, loader))
        assert (model.encode_video(pixels) - plain).abs().max() < 1e-5 * plain.abs().max()
    model.expect_clips(LoaderConfig())
    with pytest.raises(ModelError):
        model.encode_video(pixels)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["loader.dtype=uint8", "model.video.tower=vit"], r"loader\.dtype=uint8 is for model\.video\.tower"),
        (["loader.dtype=int8"], r"loader\.dtype=int8 is not one of float32, uint8"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, named) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(settings)
