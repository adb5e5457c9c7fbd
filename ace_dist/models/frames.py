"""The frame tower: an image tower of open_clip on every frame, and a choice of what is made of the frames.

Shapes: B clips, T frames, S pixels a side, N tokens of a frame, D width of a token, E embedding width. Parameter names
are open_clip's; what looks at several frames is in `temporal` and `adapters`.
"""

import re
from collections.abc import Iterator, MutableMapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ace_dist.config import VideoConfig
from ace_dist.models.attention import short_on_cpu
from ace_dist.models.library import LibraryTower
from ace_dist.models.open_clip import build_image_network
from ace_dist.models.temporal import FrameByFrameTower, TemporalTransformer, TimeAdapter
from ace_dist.models.video import check_config
from ace_dist.utils.errors import ModelError
from ace_dist.utils.parts import part


class FrameTower(LibraryTower, FrameByFrameTower):
    """[B,T,3,S,S] -> [B,E], the mean of the frames' embeddings; with `pooling=frames` all of them, [B,T,E].

    `temporal=transformer` adds Text4Vis' layers over the embeddings, `temporal=adapter` attention over time before each
    block that trains. An attention pool counts as the head: it, too, ends in the space of the text.
    """

    fresh = ("temporal", "adapters")
    block_names = re.compile(r"visual\.(?:transformer\.resblocks|trunk\.blocks)\.(\d+)\.")
    norm_names = re.compile(r"visual\.(?:ln_post|trunk\.(?:norm|fc_norm))\.")
    head_names = re.compile(r"visual\.(?:proj$|attn_pool|trunk\.(?:attn_pool|head)\.)")

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        self.visual: Any = build_image_network(config)
        self.adapters: Any = nn.ModuleList()
        self.temporal = None
        if config.temporal == "transformer":
            self.temporal = TemporalTransformer(config.embed_dim, config.temporal_layers, config.frames)
        if config.temporal == "adapter":
            if not config.trained_blocks:
                raise ModelError(
                    "model.video.temporal=adapter has its adapters before the blocks that train, and there is none; "
                    "set model.video.trained_blocks"
                )
            self.adapters.extend(TimeAdapter(config.width, config.frames) for _ in range(config.trained_blocks))
        # Angles of rotary positions stay in fp32 when the weights become bf16, as under the library's autocast.
        self.angles: Tensor | None = self.trunk.rope.get_embed() if self.is_rotary else None
        self.add_lora()
        self.freeze()

    @property
    def trunk(self) -> Any:
        """timm's network; of a tower of open_clip's own there is none."""
        return self.visual["trunk"] if isinstance(self.visual, nn.ModuleDict) else None

    @property
    def is_rotary(self) -> bool:
        return getattr(self.trunk, "rope", None) is not None

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        return self.visual.transformer.resblocks if self.trunk is None else self.trunk.blocks

    @property
    def pos_embed(self) -> nn.Parameter:  # type: ignore[override]
        """Learned positions: [1+P,D] of open_clip's own tower, [1,P,D] or [1,1+P,D] of timm's."""
        return cast(nn.Parameter, self.visual.positional_embedding if self.trunk is None else self.trunk.pos_embed)

    @property
    def patch_embed(self) -> nn.Module:  # type: ignore[override]
        return cast(nn.Module, self.visual.conv1 if self.trunk is None else self.trunk.patch_embed)

    @property
    def tokens(self) -> int:
        """N, class token and all."""
        patches = (self.config.image_size // self.config.patch) ** 2
        return patches + (1 if self.trunk is None else int(self.trunk.num_prefix_tokens))

    @property
    def sees_frames_alone(self) -> bool:
        return not len(self.adapters)

    def forward(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,S,S], or the [B,T*N,D] of `frozen_features`."""
        if video.dim() == 3:
            frames = video.shape[1] // self.tokens
            tokens = video.unflatten(1, (frames, self.tokens)).flatten(0, 1)
        else:
            self.check_video(video)
            frames, tokens = video.shape[1], self.frozen_tokens(video.flatten(0, 1))
        return self.embed_clips(self.embed_tokens(tokens, frames).unflatten(0, (-1, frames)))

    def embed_frames(self, images: Tensor) -> Tensor:
        return self.embed_tokens(self.frozen_tokens(images), frames=1)

    def embed_tokens(self, tokens: Tensor, frames: int) -> Tensor:
        """The blocks that train and the head: [n,N,D] of clips of so many frames -> [n,E]."""
        for index in range(self.first_trained, self.config.depth):
            with part("trained blocks"):
                if len(self.adapters):
                    adapter = self.adapters[index - self.first_trained]
                    tokens = adapter(tokens.unflatten(0, (-1, frames)), self.config.attention).flatten(0, 1)
                tokens = self.run_block(self.run_one, self.blocks[index], tokens)
        with part("head"):
            return self.pool(tokens)

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches, class token and learned positions, [n,3,S,S] -> [n,N,D], in the library's own order."""
        if self.trunk is None:
            return cast(Tensor, self.visual._embeds(pixels))
        tokens = self.trunk._pos_embed(self.trunk.patch_embed(pixels))
        return cast(Tensor, self.trunk.norm_pre(tokens[0] if isinstance(tokens, tuple) else tokens))

    def forget_device(self) -> None:
        self.angles = None if self.angles is None else self.angles.cpu()

    def run_one(self, block: nn.Module, tokens: Tensor) -> Tensor:
        with short_on_cpu(tokens.shape[1], tokens):
            if self.angles is None:
                return cast(Tensor, block(tokens))
            if self.angles.device != tokens.device:
                self.angles = self.angles.to(tokens.device)
            return cast(Tensor, block(tokens, rope=self.angles))

    def pool(self, tokens: Tensor) -> Tensor:
        """The last norm, the pooling and the projection, as the library has them: [n,N,D] -> [n,E]."""
        if self.trunk is not None:
            return cast(Tensor, self.trunk.forward_head(self.trunk.norm(tokens)))
        pooled, _ = self.visual._pool(tokens)
        return cast(Tensor, pooled @ self.visual.proj)

    @torch.no_grad()
    def frozen_features(self, video: Tensor) -> Tensor:
        """See `LibraryTower.frozen_features`: [B,T*N,D]."""
        self.check_video(video)
        tokens: Tensor = self.frozen_tokens(video.flatten(0, 1)).unflatten(0, video.shape[:2])
        return tokens.flatten(1, 2)

    def cross_layer_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that no forward pass of their own module reads: the tower's own, and attention's last matrix."""
        yield from (self.visual if self.trunk is None else self.trunk).parameters(recurse=False)
        for module in self.visual.modules():
            if isinstance(module, nn.MultiheadAttention):
                yield from module.out_proj.parameters()

    def fit_positions(self, state: MutableMapping[str, Tensor]) -> list[str]:
        """Bring learned positions of another image size to this one, as open_clip and timm do; says which and how."""
        name = "visual.positional_embedding" if self.trunk is None else "visual.trunk.pos_embed"
        stored, own = state.get(name), self.pos_embed
        if (
            stored is None
            or stored.shape == own.shape
            or stored.dim() != own.dim()
            or stored.shape[-1] != own.shape[-1]
        ):
            return []
        if self.trunk is None:
            from open_clip.model import resize_pos_embed

            fitted = {name: stored.float()}
            resize_pos_embed(fitted, self)
            state[name] = fitted[name]
        else:
            from timm.layers import resample_abs_pos_embed

            prefix = 0 if self.trunk.no_embed_class else int(self.trunk.num_prefix_tokens)
            grid = list(self.trunk.patch_embed.grid_size)
            state[name] = resample_abs_pos_embed(stored.float(), grid, num_prefix_tokens=prefix)
        return [f"{name} {list(stored.shape)} to {list(own.shape)}"]
