"""The tubelet tower: a video transformer of transformers, whose tokens are patches of two frames, under a new head.

Shapes: B clips, T frames, S pixels a side, N tokens of a clip, D width of a token, E embedding width. Parameter names
are those of transformers' model for classification, whose classes are here the dimensions of the shared space.
"""

import re
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from ace_dist.config import VideoConfig
from ace_dist.models.attention import short_on_cpu
from ace_dist.models.library import LibraryTower
from ace_dist.models.video import check_config
from ace_dist.utils.errors import ModelError
from ace_dist.utils.parts import part

TUBELET = 2  # frames of a token, in all released models


class TubeletTower(LibraryTower):
    """[B,T,3,S,S] -> [B,E]: VideoMAE (`arch=videomae`), any even number of frames.

    These models were trained without texts, so the head starts anew: a norm and a projection of the tokens' mean.
    Positions are fixed, one a place in the order of tokens: more frames go on with them, and another image size would
    move every patch.
    """

    fresh = ("fc_norm", "classifier")
    block_names = re.compile(r"videomae\.encoder\.layer\.(\d+)\.")
    norm_names = re.compile(r"fc_norm\.")
    head_names = re.compile(r"classifier\.")

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        for name, module in library_model(config).named_children():
            self.add_module(name, module)
        self.freeze()

    @property
    def network(self) -> Any:
        """transformers' encoder with its patch embedding."""
        return getattr(self, str(self.config.arch))

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        return self.network.encoder.layer

    @property
    def patch_embed(self) -> nn.Conv3d:  # type: ignore[override]
        return cast(nn.Conv3d, self.network.embeddings.patch_embeddings.projection)

    @property
    def pos_embed(self) -> nn.Parameter:  # type: ignore[override]
        """A parameter that tells device and type: positions are computed and no parameter."""
        return cast(nn.Parameter, self.patch_embed.weight)

    def forward(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,S,S], or the [B,N,D] of `frozen_features`."""
        tokens = video if video.dim() == 3 else self.frozen_tokens(video)
        for block in self.blocks[self.first_trained :]:
            with part("trained blocks"):
                tokens = self.run_block(self.run_one, block, tokens)
        with part("head"):
            return cast(Tensor, self.classifier(self.fc_norm(tokens.mean(1))))

    def frozen_tokens(self, video: Tensor) -> Tensor:
        """Clips through the embedding and the frozen blocks: -> [B,N,D]."""
        self.check_video(video)
        with part("patch embedding"), self.grad_from(-1, below=self.first_trained == 0):
            tokens = self.embed(video)
        with torch.no_grad() if self.first_trained else nullcontext():
            for block in self.blocks[: self.first_trained]:
                with part("frozen blocks"):
                    tokens = self.run_one(block, tokens)
        return tokens

    def embed(self, video: Tensor) -> Tensor:
        tokens: Tensor = self.patch_embed(video.transpose(1, 2)).flatten(2).transpose(1, 2)
        return tokens + sine_positions(tokens.shape[1], tokens.shape[2], tokens.device).to(tokens.dtype)

    def run_one(self, block: nn.Module, tokens: Tensor) -> Tensor:
        with short_on_cpu(tokens.shape[1], tokens):
            return cast(Tensor, block(tokens))

    @torch.no_grad()
    def frozen_features(self, video: Tensor) -> Tensor:
        """See `LibraryTower.frozen_features`: [B,N,D]."""
        return self.frozen_tokens(video)

    def check_video(self, video: Tensor) -> None:
        super().check_video(video)
        if video.shape[1] % TUBELET:
            raise ModelError(
                f"a clip of {video.shape[1]} frames cannot be cut into the pairs that model.video.arch="
                f"{self.config.arch} sees; set dataset.clip.frames to an even number"
            )

    def check_origin(self, names: Collection[str], facts: Mapping[str, str]) -> None:
        """See `VideoTower.check_origin`: positions are of one image size, and a head that starts anew must train."""
        if "classifier.weight" not in names and not self.config.train_head:
            raise ModelError(
                f"model.video.train_head=false keeps the random head that {self.config.arch} starts with; set "
                f"model.video.train_head=true"
            )
        size = facts.get("image_size", str(self.config.image_size))
        if size != str(self.config.image_size):
            raise ModelError(
                f"model.video.image_size={self.config.image_size} and weights trained on {size} pixels: "
                f"{self.config.arch} has one fixed position a patch of that size; set model.video.image_size={size}"
            )


def library_config(config: VideoConfig) -> Any:
    """transformers' configuration in our sizes. Raises `ModelError` for a name that is none of its models here."""
    if config.arch != "videomae":
        raise ModelError(f"model.video.arch={config.arch} is not videomae, which model.video.tower=transformers has")
    from transformers import VideoMAEConfig  # here: the import takes seconds

    return VideoMAEConfig(
        image_size=config.image_size, patch_size=config.patch, num_frames=config.frames, tubelet_size=TUBELET,
        hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
        intermediate_size=int(config.width * config.mlp_ratio), num_labels=config.embed_dim,
        attn_implementation="sdpa",
    )  # fmt: skip


def library_model(config: VideoConfig) -> nn.Module:
    """transformers' model for classification in our sizes."""
    shape = library_config(config)
    from transformers import VideoMAEForVideoClassification

    # Its table of positions takes seconds at the real size, so it gets one of a single token and we have our own.
    shape.image_size, shape.num_frames = config.patch, TUBELET
    return cast(nn.Module, VideoMAEForVideoClassification(shape))


@lru_cache(maxsize=8)
def sine_positions(tokens: int, width: int, device: torch.device) -> Tensor:
    """The positions of VideoMAE, [N,D]: sine and cosine in turns (Vaswani et al. 2017), in the order of tokens."""
    with torch.inference_mode(False):
        places = torch.arange(tokens, dtype=torch.float64, device=device)[:, None]
        exponents = (torch.arange(width, device=device) // 2 * 2).double() / width
        angles = places / 10000**exponents
        angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
        return angles.float()
