"""LaViLa's video tower, the space-time transformer of "Frozen in Time" (Bain et al. 2021) on CLIP's layout.

It is a relative of the TimeSformer with three differences: the class token attends to all tokens of all frames, in time
and in space; patches attend to the class token as well; and the spatial residual starts from the block's input, so that
temporal attention acts through the spatial one alone. Parameter names are LaViLa's, with `norm_pre`, `time_embed` and
`head` for its `ln_pre`, `temporal_embed` and `image_projection`.

Shapes: B clips, T frames, P patches of a frame, D width, E embedding width, h heads of width d.
"""

from typing import cast

import torch
from timm.layers import Mlp, PatchEmbed, QuickGELU
from torch import Tensor, nn

from ace_dist.config import VideoConfig
from ace_dist.models.attention import AttentionBackend, attend, general_attention
from ace_dist.models.timesformer import Attention
from ace_dist.models.video import VideoTower, check_config, resize_times
from ace_dist.models.vit import CLIP_EPS, PLAIN_EPS
from ace_dist.utils.parts import part


class GroupedAttention(Attention):
    """Self-attention where the class token sees everything, and a patch sees the class token and its own group."""

    def forward(self, x: Tensor, frames: int, over_time: bool, backend: AttentionBackend) -> Tensor:
        """[B,1+TP,D] -> the same, patches in frame-major order; groups are patch columns over time, or frames."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        cls = attend(q[:, :1], k, v, backend)

        def group(tensor: Tensor, with_cls: bool) -> Tensor:
            """[B,1+TP,h,d] -> the patches [B,P,T,h,d] over time or [B,T,P,h,d] over space, behind cls or not."""
            patches = tensor[:, 1:].unflatten(1, (frames, -1))
            patches = patches.transpose(1, 2) if over_time else patches
            cls = tensor[:, None, :1].expand(-1, patches.shape[1], -1, -1, -1)
            return torch.cat([cls, patches], dim=2) if with_cls else patches

        queries, keys, values = group(q, False), group(k, True), group(v, True)
        out = attend(queries.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), backend)
        out = out.unflatten(0, queries.shape[:2])
        patches = (out.transpose(1, 2) if over_time else out).flatten(1, 2)
        return cast(Tensor, self.proj(torch.cat([cls, patches], dim=1).flatten(2)))


class SpaceTimeBlock(nn.Module):
    """Temporal attention into spatial attention, whose residual is the block's input; then the MLP."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width, eps=PLAIN_EPS) for _ in range(3))
        self.attn = GroupedAttention(config.width, config.heads)
        self.timeattn = GroupedAttention(config.width, config.heads)
        activation = QuickGELU if config.clip_style else nn.GELU
        self.mlp = Mlp(config.width, int(config.width * config.mlp_ratio), act_layer=activation)

    def forward(self, x: Tensor, frames: int, backend: AttentionBackend) -> Tensor:
        timed = x + self.timeattn(self.norm3(x), frames, True, backend)
        x = x + self.attn(self.norm1(timed), frames, False, backend)
        return x + cast(Tensor, self.mlp(self.norm2(x)))


class SpaceTimeTower(VideoTower):
    """[B,T,3,H,W] -> [B,E], not unit length. `clip_style`: a norm before the blocks, QuickGELU, no patch bias."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        style = config.clip_style
        self.patch_embed = PatchEmbed(config.image_size, config.patch, 3, config.width, bias=not style)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, config.width))
        self.time_embed = nn.Parameter(torch.zeros(1, config.frames, config.width))
        self.norm_pre = nn.LayerNorm(config.width, eps=CLIP_EPS) if style else nn.Identity()
        self.blocks = nn.ModuleList(SpaceTimeBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=PLAIN_EPS)
        self.head = nn.Linear(config.width, config.embed_dim)
        self.reset_parameters()
        self.add_lora()
        self.freeze()

    def forward(self, video: Tensor) -> Tensor:
        self.check_video(video)
        frames, backend = video.shape[1], general_attention(self.config.attention, video.device)
        below = self.time_embed.requires_grad
        with self.grad_from(-1, below):
            x = self.norm_pre(self.embed(video))
        for index, block in enumerate(self.blocks):
            with part(self.part_name(index)), self.grad_from(index, below):
                x = self.run_block(block, x, frames, backend)
        with part("head"):
            return cast(Tensor, self.head(self.norm(x[:, 0])))

    def embed(self, video: Tensor) -> Tensor:
        """[B,T,3,H,W] -> [B,1+TP,D]: the class token, then the patches with position and time."""
        clips, frames = video.shape[:2]
        with part("patch embedding"):
            patches = self.patch_embed(video.flatten(0, 1)).unflatten(0, (clips, frames))
        times = resize_times(self.time_embed, frames, self.config.time_embed_resize)
        patches = patches + self.pos_embed[:, None, 1:] + times[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(clips, -1, -1)
        return torch.cat([cls, patches.flatten(1, 2)], dim=1)
