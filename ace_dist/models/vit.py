"""The image tower: timm's VisionTransformer on every frame, with CLIP's layout or the plain one.

Shapes: B clips, T frames, N tokens of a frame, D width, E embedding width, K prompt tokens. Parameter names are timm's,
with `head` as the projection into the text's space.
"""

from functools import partial
from typing import cast

import torch
from timm.layers import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ace_dist.config import VideoConfig
from ace_dist.models.attention import short_on_cpu
from ace_dist.models.temporal import FrameByFrameTower, TemporalTransformer
from ace_dist.models.text_clip import PROMPT_STD
from ace_dist.models.video import check_config
from ace_dist.utils.parts import part

CLIP_EPS, PLAIN_EPS = 1e-5, 1e-6  # of layer norms: CLIP's, and those of timm's ViTs and of the TimeSformer


def attend_block(block: nn.Module, tokens: Tensor) -> Tensor:
    """A block of timm's, which calls PyTorch's attention itself, with the attention that serves its length best."""
    with short_on_cpu(tokens.shape[1], tokens):
        return cast(Tensor, block(tokens))


class ImageTower(FrameByFrameTower, VisionTransformer):  # type: ignore[misc]  # timm is untyped
    """[B,T,3,H,W] -> [B,E], the mean of the frames' embeddings; with `pooling=frames` all of them, [B,T,E].

    `clip_style` is CLIP's network: a norm before the blocks, QuickGELU, no bias in the patch embedding. With
    `prompt_tokens` K tokens are learned for each of the first `prompt_depth` blocks and put after the others there.
    """

    norm_pre: nn.Module
    blocks: nn.Sequential
    norm: nn.Module

    def __init__(self, config: VideoConfig) -> None:
        check_config(config)
        super().__init__(
            img_size=config.image_size, patch_size=config.patch, embed_dim=config.width, depth=config.depth,
            num_heads=config.heads, mlp_ratio=config.mlp_ratio, num_classes=config.embed_dim,
            pre_norm=config.clip_style, act_layer=QuickGELU if config.clip_style else nn.GELU,
            norm_layer=partial(nn.LayerNorm, eps=CLIP_EPS if config.clip_style else PLAIN_EPS),
        )  # fmt: skip
        self.temporal = None
        self.prompts: nn.Parameter | None = None
        if config.temporal_layers:
            self.temporal = TemporalTransformer(config.embed_dim, config.temporal_layers, config.frames)
        if config.prompt_tokens:
            shape = (min(config.prompt_depth, config.depth), config.prompt_tokens, config.width)
            self.prompts = nn.Parameter(torch.randn(shape) * PROMPT_STD)
        self.fresh = ("temporal", "prompts")
        self.config = config
        self.add_lora()
        self.freeze()

    def forward(self, video: Tensor) -> Tensor:
        self.check_video(video)
        return self.embed_clips(self.embed_frames(video.flatten(0, 1)).unflatten(0, video.shape[:2]))

    def embed_frames(self, images: Tensor) -> Tensor:
        """Single frames [N,3,H,W] -> [N,E]."""
        prompted = self.prompts is not None
        with part("patch embedding"), self.grad_from(-1, below=self.first_trained == 0):
            tokens: Tensor = self._pos_embed(self.patch_embed(images))  # type: ignore[operator]  # class token first
        length = tokens.shape[1]
        with self.grad_from(-1, below=self.first_trained == 0 or prompted):
            tokens = self.norm_pre(self.with_prompts(tokens, 0, length))
        for index, block in enumerate(self.blocks):
            with part(self.part_name(index)), self.grad_from(index, below=prompted):
                prompted_tokens = self.with_prompts(tokens, index, length) if index else tokens
                tokens = self.run_block(partial(attend_block, block), prompted_tokens)
        with part("head"):
            return cast(Tensor, self.head(self.norm(tokens[:, 0])))

    def with_prompts(self, tokens: Tensor, index: int, length: int) -> Tensor:
        """Tokens [N,L,D] with block `index`'s learned ones after the first `length`, in place of the block's before."""
        if self.prompts is None or index >= len(self.prompts):
            return tokens
        learned = self.prompts[index].expand(len(tokens), -1, -1)
        return torch.cat([tokens[:, :length], learned], dim=1)
