"""Tubelet towers: video transformers of transformers, whose tokens are patches of two frames, under a new head.

Shapes: B clips, T frames, S pixels a side, N tokens of a clip, D width of a token, E embedding width. Parameter names
are those of transformers' model for classification, whose classes are here the dimensions of the shared space.
"""

import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
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
    """[B,T,3,S,S] -> [B,E], any even number of frames.

    These models were trained without texts, so the head starts anew.
    """

    classifier: nn.Linear  # the projection into the shared space

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        for name, module in self.build_network(config).named_children():
            self.add_module(name, module)
        self.add_lora()
        self.freeze()

    @staticmethod
    @abstractmethod
    def library_config(config: VideoConfig) -> Any:
        """transformers' configuration in our sizes."""

    @staticmethod
    @abstractmethod
    def build_network(config: VideoConfig) -> nn.Module:
        """transformers' model for classification in our sizes, without what a tower does not use."""

    @property
    def pos_embed(self) -> nn.Parameter:  # type: ignore[override]
        """A parameter that tells device and type: positions are computed and no parameter."""
        return cast(nn.Parameter, self.patch_embed.weight)

    def forward(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,S,S], or the [B,N,D] of `frozen_features`."""
        tokens = self.last_tokens(video)
        with part("head"):
            return cast(Tensor, self.classifier(self.pool(tokens)))

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches of frame pairs, [B,T,3,S,S] -> [B,N,D], row by row, pair by pair."""
        return cast(Tensor, self.patch_embed(pixels.transpose(1, 2)).flatten(2).transpose(1, 2))

    def run_one(self, block: nn.Module, tokens: Tensor) -> Tensor:
        with short_on_cpu(tokens.shape[1], tokens):
            result = block(tokens)
        return cast(Tensor, result[0] if isinstance(result, tuple) else result)

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """[B,N,D] -> [B,D], the last norm included."""

    def check_video(self, video: Tensor) -> None:
        super().check_video(video)
        if video.shape[1] % TUBELET:
            raise ModelError(
                f"a clip of {video.shape[1]} frames cannot be cut into the pairs that model.video.arch="
                f"{self.config.arch} sees; set dataset.clip.frames to an even number"
            )

    def check_origin(self, names: Collection[str], facts: Mapping[str, str]) -> None:
        """See `VideoTower.check_origin`: a head that starts anew must train."""
        if "classifier.weight" not in names and not self.config.train_head:
            raise ModelError(
                f"model.video.train_head=false keeps the random head that {self.config.arch} starts with; set "
                f"model.video.train_head=true"
            )


class VideoMaeTower(TubeletTower):
    """VideoMAE (Tong et al. 2022); the head is a norm of the tokens' mean and a projection.

    Positions are fixed, one a place in the order of tokens: more frames go on with them, and another image size would
    move every patch.
    """

    fresh = ("fc_norm", "classifier")
    block_names = re.compile(r"videomae\.encoder\.layer\.(\d+)\.")
    norm_names = re.compile(r"fc_norm\.")
    head_names = re.compile(r"classifier\.")
    videomae: Any
    fc_norm: nn.Module

    @staticmethod
    def library_config(config: VideoConfig) -> Any:
        from transformers import VideoMAEConfig  # here: the import takes seconds

        return VideoMAEConfig(
            image_size=config.image_size, patch_size=config.patch, num_frames=config.frames, tubelet_size=TUBELET,
            hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
            intermediate_size=int(config.width * config.mlp_ratio), num_labels=config.embed_dim,
            attn_implementation="sdpa",
        )  # fmt: skip

    @staticmethod
    def build_network(config: VideoConfig) -> nn.Module:
        from transformers import VideoMAEForVideoClassification

        shape = VideoMaeTower.library_config(config)
        # Its table of positions takes seconds at the real size, so it gets one of a single token and we have our own.
        shape.image_size, shape.num_frames = config.patch, TUBELET
        return cast(nn.Module, VideoMAEForVideoClassification(shape))

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        return self.videomae.encoder.layer

    @property
    def patch_embed(self) -> nn.Conv3d:  # type: ignore[override]
        return cast(nn.Conv3d, self.videomae.embeddings.patch_embeddings.projection)

    def embed(self, pixels: Tensor) -> Tensor:
        tokens = super().embed(pixels)
        return tokens + sine_positions(tokens.shape[1], tokens.shape[2], tokens.device).to(tokens.dtype)

    def pool(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.fc_norm(tokens.mean(1)))

    def check_origin(self, names: Collection[str], facts: Mapping[str, str]) -> None:
        super().check_origin(names, facts)
        size = facts.get("image_size", str(self.config.image_size))
        if size != str(self.config.image_size):
            raise ModelError(
                f"model.video.image_size={self.config.image_size} and weights trained on {size} pixels: "
                f"{self.config.arch} has one fixed position a patch of that size; set model.video.image_size={size}"
            )


class VJepa2Tower(TubeletTower):
    """V-JEPA 2 (Assran et al. 2025); the head is the library's attention pool, of one query, and a projection.

    Its authors' probes have three layers before that pool. Positions are rotary, of time, row and column: any number of
    frames and any image size.
    """

    fresh = ("pooler", "classifier")
    block_names = re.compile(r"vjepa2\.encoder\.layer\.(\d+)\.")
    norm_names = re.compile(r"vjepa2\.encoder\.layernorm\.")
    head_names = re.compile(r"(?:pooler|classifier)\.")
    vjepa2: Any
    pooler: nn.Module

    @staticmethod
    def library_config(config: VideoConfig) -> Any:
        """The predictor of its pretraining, which no embedding needs, is as small as it can be."""
        from transformers import VJEPA2Config

        return VJEPA2Config(
            crop_size=config.image_size, patch_size=config.patch, frames_per_clip=config.frames, tubelet_size=TUBELET,
            hidden_size=config.width, num_hidden_layers=config.depth, num_attention_heads=config.heads,
            mlp_ratio=config.mlp_ratio, num_labels=config.embed_dim, num_pooler_layers=0, pred_hidden_size=1,
            pred_num_attention_heads=1, pred_num_hidden_layers=0, pred_num_mask_tokens=1, attn_implementation="sdpa",
        )  # fmt: skip

    @staticmethod
    def build_network(config: VideoConfig) -> nn.Module:
        from transformers import VJEPA2ForVideoClassification

        network = VJEPA2ForVideoClassification(VJepa2Tower.library_config(config))
        del network.vjepa2.predictor
        return cast(nn.Module, network)

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        return self.vjepa2.encoder.layer

    @property
    def patch_embed(self) -> nn.Conv3d:  # type: ignore[override]
        return cast(nn.Conv3d, self.vjepa2.encoder.embeddings.patch_embeddings.proj)

    def pool(self, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.pooler(self.vjepa2.encoder.layernorm(tokens)))


TUBELET_TOWERS: Mapping[str, type[TubeletTower]] = {"videomae": VideoMaeTower, "vjepa2": VJepa2Tower}


def build_tubelet_tower(config: VideoConfig) -> TubeletTower:
    """The tower of `model.video.arch`. Raises `ModelError` when there is none."""
    if config.arch is None or config.arch not in TUBELET_TOWERS:
        raise ModelError(
            f"model.video.arch={config.arch} is not one of {', '.join(TUBELET_TOWERS)}, which "
            f"model.video.tower=transformers has"
        )
    return TUBELET_TOWERS[config.arch](config)


@lru_cache(maxsize=8)
def sine_positions(tokens: int, width: int, device: torch.device) -> Tensor:
    """The positions of VideoMAE, [N,D]: sine and cosine in turns (Vaswani et al. 2017), in the order of tokens."""
    with torch.inference_mode(False):
        places = torch.arange(tokens, dtype=torch.float64, device=device)[:, None]
        exponents = (torch.arange(width, device=device) // 2 * 2).double() / width
        angles = places / 10000**exponents
        angles[:, 0::2], angles[:, 1::2] = angles[:, 0::2].sin(), angles[:, 1::2].cos()
        return angles.float()
