"""What is made of T frames: Text4Vis' transformer over their embeddings, and an adapter between the blocks.

Shapes: B clips, T frames, N tokens of a frame, D width of a token, d width inside of the adapter, E embedding width.
"""

from abc import abstractmethod
from functools import partial
from typing import cast

import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ace_dist.models.attention import attend_packed, resolve_attention, short_on_cpu
from ace_dist.models.video import VideoTower, resize_times
from ace_dist.utils.parts import part

TEMPORAL_EPS = 1e-12  # of Text4Vis' temporal transformer
HEAD_WIDTH = 64  # CLIP's heads are 64 wide
NARROWING = 4  # an adapter is a quarter as wide as its block


class TemporalTransformer(nn.Module):
    """Transformer layers over the T frame embeddings, added to them (Text4Vis, BIKE): [B,T,E] -> [B,T,E]."""

    def __init__(self, width: int, layers: int, frames: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, frames, width) * 0.01)
        norm = partial(nn.LayerNorm, eps=TEMPORAL_EPS)
        heads = max(1, width // HEAD_WIDTH)
        self.layers = nn.Sequential(
            *(Block(width, heads, qkv_bias=True, norm_layer=norm, act_layer=QuickGELU) for _ in range(layers))
        )

    def forward(self, frames: Tensor) -> Tensor:
        positions = resize_times(self.positions, frames.shape[1])
        with short_on_cpu(frames.shape[1], frames):
            return frames + cast(Tensor, self.layers(frames + positions))


class TimeAdapter(nn.Module):
    """Attention over the frames at each place, added to the tokens before a block: [B,T,N,D] -> [B,T,N,D].

    With the block's own attention over a frame it makes the TimeSformer's divided attention. Its last matrix starts at
    zero, so that it starts as the identity.
    """

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        inner = max(1, width // NARROWING)
        self.heads = next(heads for heads in range(max(1, inner // HEAD_WIDTH), 0, -1) if inner % heads == 0)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.down = nn.Linear(width, inner)
        self.times = nn.Parameter(torch.randn(1, frames, inner) * 0.02)
        self.qkv = nn.Linear(inner, 3 * inner)
        self.up = nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor, attention: str) -> Tensor:
        """`attention` is `model.video.attention`."""
        places_BNTd = self.down(self.norm(tokens)).transpose(1, 2)
        places_BNTd = places_BNTd + resize_times(self.times, tokens.shape[1])
        qkv = self.qkv(places_BNTd).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        frames, head = tokens.shape[1], qkv.shape[-1]
        backend = resolve_attention(attention, tokens.device, frames, self.heads, head, tokens.dtype)
        mixed = attend_packed(qkv, backend).reshape(places_BNTd.shape)
        return tokens + cast(Tensor, self.up(mixed)).transpose(1, 2)


class FrameByFrameTower(VideoTower):
    """A tower that embeds frames and makes a clip's embedding of theirs: `embed_frames`, then `embed_clips`."""

    temporal: TemporalTransformer | None

    @property
    def sees_frames_alone(self) -> bool:
        """Whether no frame looks at another before that: clips that overlap may then share what they have in common."""
        return True

    @abstractmethod
    def embed_frames(self, images: Tensor) -> Tensor:
        """Images [n,3,S,S] -> [n,E]; only where `sees_frames_alone`."""

    def embed_clips(self, frames_BTE: Tensor) -> Tensor:
        """[B,T,E] -> [B,E], the mean over the frames; with `pooling=frames` all of them, [B,T,E]."""
        if self.temporal is not None:
            with part("trained blocks"):
                frames_BTE = self.temporal(frames_BTE)
        return frames_BTE if self.config.pooling == "frames" else frames_BTE.mean(1)
