"""InternVideo2's video tower (Wang et al. 2024), of its second stage: a transformer over the patches of all frames.

Shapes: B clips, T frames, S pixels a side, P patches of a frame, D width of a token, E embedding width. Parameter names
are those of its authors' `vision_encoder`; the biases of its pool stand in their layers.
"""

import math
import re
from collections.abc import Collection, Mapping, MutableMapping
from typing import cast

import torch
from timm.layers import LayerScale, Mlp, RmsNorm
from torch import Tensor, nn
from torch.nn import functional

from ace_dist.config import VideoConfig
from ace_dist.models.attention import attend
from ace_dist.models.library import LibraryTower
from ace_dist.models.video import check_config, resize_times
from ace_dist.utils.errors import ModelError
from ace_dist.utils.parts import part

POOL_WIDTH = 768  # that its pool ends in, at every size
LAYER_SCALE = 1e-5  # at the start
NORM_EPS = 1e-6


class Attention(nn.Module):
    """Self-attention whose queries and keys are normed over all heads at once: [B,N,D] -> [B,N,D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RmsNorm(width, eps=NORM_EPS), RmsNorm(width, eps=NORM_EPS)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in (self.q_norm(q), self.k_norm(k), v))
        return cast(Tensor, self.proj(attend(q, k, v).flatten(2)))


class Block(nn.Module):
    """[B,N,D] -> [B,N,D], each of its two branches scaled by a learned factor a channel."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = RmsNorm(width, eps=NORM_EPS), RmsNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls1, self.ls2 = LayerScale(width, LAYER_SCALE), LayerScale(width, LAYER_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return cast(Tensor, x + self.ls2(self.mlp(self.norm2(x))))


class CrossAttention(nn.Module):
    """Queries [B,1,D] over keys and values [B,N,D] -> [B,1,`POOL_WIDTH`]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.proj = nn.Linear(width, POOL_WIDTH)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        projected = (self.q(query), self.k(key), self.v(value))
        q, k, v = (each.unflatten(-1, (self.heads, -1)) for each in projected)
        return cast(Tensor, self.proj(attend(q, k, v).flatten(2)))


class AttentionPool(nn.Module):
    """[B,N,D] -> [B,`POOL_WIDTH`]: the tokens' mean asks for what it needs of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width) for _ in range(3))
        self.cross_attn = CrossAttention(width, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.norm1_q(tokens.mean(1, keepdim=True))
        return cast(Tensor, self.cross_attn(query, self.norm1_k(tokens), self.norm1_v(tokens)).squeeze(1))


class InternVideo2Tower(LibraryTower):
    """[B,T,3,S,S] -> [B,E]. One class token, and a learned position for each patch of each frame."""

    block_names = re.compile(r"blocks\.(\d+)\.")
    norm_names = re.compile(r"(?!)")  # there is none after the blocks
    head_names = re.compile(r"(?:clip_projector|head)\.")

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        if config.train_norm:
            raise ModelError(
                "model.video.tower=internvideo2 has no norm after its blocks, which model.video.train_norm=true would "
                "train; set it to false (train_head=true trains the pool with its norms)"
            )
        width, heads, size = config.width, config.heads, (1, config.patch, config.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, size, stride=size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.frames * self.places, width))
        self.blocks = nn.ModuleList(Block(width, heads, config.mlp_ratio) for _ in range(config.depth))
        self.clip_projector = AttentionPool(width, heads)
        self.head = nn.Linear(POOL_WIDTH, config.embed_dim)
        self.reset_parameters()
        self.add_lora()
        self.freeze()

    @property
    def places(self) -> int:
        """P at the size of the settings."""
        return (self.config.image_size // self.config.patch) ** 2

    def forward(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,S,S], or the [B,1+T*P,D] of `frozen_features`."""
        tokens = self.last_tokens(video)
        with part("head"):
            return cast(Tensor, self.head(self.clip_projector(tokens)))

    def embed(self, pixels: Tensor) -> Tensor:
        """Class token, then the patches frame by frame, [B,T,3,S,S] -> [B,1+T*P,D]."""
        patches = self.patch_embed["proj"](pixels.transpose(1, 2)).flatten(2).transpose(1, 2)
        positions = resize_grid(self.pos_embed, self.config.frames, pixels.shape[1], self.places)
        return torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + positions

    def run_one(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return cast(Tensor, block(tokens))

    def fit_positions(self, state: MutableMapping[str, Tensor]) -> list[str]:
        """Bring the positions of another image size to ours, as its authors' code; says which and how."""
        stored, own, frames = state.get("pos_embed"), self.pos_embed, self.config.frames
        if stored is None or stored.dim() != 3 or stored.shape == own.shape or stored.shape[2] != own.shape[2]:
            return []
        places, left_over = divmod(stored.shape[1] - 1, frames)
        if left_over or math.isqrt(places) ** 2 != places:
            return []
        state["pos_embed"] = resize_grid(stored.float(), frames, frames, self.places)
        return [f"pos_embed {list(stored.shape)} to {list(own.shape)}"]

    def check_origin(self, names: Collection[str], facts: Mapping[str, str]) -> None:
        """See `VideoTower.check_origin`: how many frames positions are of is not told by their number."""
        if (frames := facts.get("frames", str(self.config.frames))) != str(self.config.frames):
            raise ModelError(
                f"model.video.frames={self.config.frames}, and the positions of these weights are of {frames} frames; "
                f"set model.video.frames={frames} (clips may have another dataset.clip.frames)"
            )


def resize_grid(embed: Tensor, old: int, frames: int, places: int) -> Tensor:
    """Positions [1,1+old*P0,D] -> [1,1+frames*places,D], linear in time, then bicubic in space; the first row stays.

    Of one frame it is the mean over the times.
    """
    first, rest = embed[:, :1], embed[:, 1:].unflatten(1, (old, -1))
    if frames != old:
        times = rest.transpose(1, 2).flatten(0, 1)
        times = times.mean(1, keepdim=True) if frames == 1 else resize_times(times, frames, "linear")
        rest = times.transpose(0, 1)[None]
    if rest.shape[2] != places:
        before, after = round(rest.shape[2] ** 0.5), round(places**0.5)
        grids = rest[0].unflatten(1, (before, before)).permute(0, 3, 1, 2)
        grids = functional.interpolate(grids, size=(after, after), mode="bicubic")
        rest = grids.permute(0, 2, 3, 1).flatten(1, 2)[None]
    return torch.cat([first, rest.flatten(1, 2)], dim=1)
