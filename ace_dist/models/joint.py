"""ViCLIP's video tower (Wang et al. 2023): CLIP's image tower whose attention sees the patches of all frames at once.

Shapes: B clips, T frames, S pixels a side, P patches of a frame, D width of a token, E embedding width.
"""

from collections.abc import MutableMapping
from typing import cast

import torch
from torch import Tensor, nn

from ace_dist.config import VideoConfig
from ace_dist.models.frames import FrameTower
from ace_dist.models.library import LibraryTower
from ace_dist.models.video import resize_times
from ace_dist.utils.errors import ModelError
from ace_dist.utils.parts import part


class JointTower(FrameTower):
    """[B,T,3,S,S] -> [B,E]: one class token and the patches of all frames, each with its frame's place in `times`."""

    def __init__(self, config: VideoConfig) -> None:
        super().__init__(config)
        if self.trunk is not None:
            raise ModelError(
                f"model.video.temporal=joint is for CLIP's own vision transformers, not model.video.arch="
                f"{config.arch}; take adapter or transformer"
            )
        self.times = nn.Parameter(torch.zeros(1, config.frames, config.width))
        self.freeze()

    @property
    def sees_frames_alone(self) -> bool:
        return False

    def forward(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,S,S], or the [B,1+T*P,D] of `frozen_features`."""
        tokens = self.last_tokens(video)
        with part("head"):
            return self.pool(tokens)

    @torch.no_grad()
    def frozen_features(self, video: Tensor) -> Tensor:
        return LibraryTower.frozen_features(self, video)  # of whole clips, not frame by frame

    def embed(self, pixels: Tensor) -> Tensor:
        """Class token, then the patches frame by frame, [B,T,3,S,S] -> [B,1+T*P,D]."""
        clips, frames = pixels.shape[:2]
        places = self.visual.positional_embedding
        # A picture alone stands at the mean of all times, as in its authors' code.
        times = self.times.mean(1, keepdim=True) if frames == 1 else self.times
        times = resize_times(times, frames, self.config.time_embed_resize)
        patches = self.visual.conv1(pixels.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (clips, frames))
        patches = patches + places[1:] + times[:, :, None]
        first = (self.visual.class_embedding + places[0]).expand(clips, 1, -1)
        return cast(Tensor, self.visual.ln_pre(torch.cat([first, patches.flatten(1, 2)], dim=1)))

    def fit_positions(self, state: MutableMapping[str, Tensor]) -> list[str]:
        """See `FrameTower.fit_positions`; times are resized by `model.video.time_embed_resize`."""
        resized, stored, own = super().fit_positions(state), state.get("times"), self.times
        if stored is None or stored.dim() != 3 or stored.shape == own.shape or stored.shape[2] != own.shape[2]:
            return resized
        state["times"] = resize_times(stored.float(), self.config.frames, self.config.time_embed_resize)
        return [*resized, f"times {list(stored.shape)} to {list(own.shape)}"]


def build_frame_tower(config: VideoConfig) -> FrameTower:
    return JointTower(config) if config.temporal == "joint" else FrameTower(config)
