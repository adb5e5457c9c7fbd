"""What towers share whose network is a library's own: it keeps the library's names, which tell its parts.

Shapes: B clips, T frames, S pixels a side, D width of a token.
"""

import re
from abc import abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ace_dist.models.lora import trains_by
from ace_dist.models.video import VideoTower
from ace_dist.utils.parts import part


class LibraryTower(VideoTower):
    """A video tower whose blocks, last norm and head are told by their names in a library's network.

    What trains is counted as in every `VideoTower`; what comes before the blocks trains with all of them.
    """

    block_names: ClassVar[re.Pattern[str]]  # its first group is the block's number
    norm_names: ClassVar[re.Pattern[str]]
    head_names: ClassVar[re.Pattern[str]]  # what ends in the shared space, an attention pool too

    def freeze(self) -> None:
        """See `VideoTower.freeze`."""
        config = self.config
        for name, parameter in self.named_parameters():
            if block := self.block_names.match(name):
                trains = int(block[1]) >= self.first_trained and trains_by(config, name)
            elif self.norm_names.match(name) or self.head_names.match(name):
                trains = config.train_norm if self.norm_names.match(name) else config.train_head
            else:
                trains = name.split(".")[0] in self.fresh or self.trains_embeddings
            parameter.requires_grad_(trains)
        self.set_recompute("norms" if config.recompute == "auto" else config.recompute)
        self.train(self.training)

    @property
    def frozen_depth(self) -> int:
        return self.first_trained

    @abstractmethod
    def embed(self, pixels: Tensor) -> Tensor:
        """The input of the first block, [n,N,D], of clips or of single images."""

    @abstractmethod
    def run_one(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """A block's output [n,N,D]."""

    def frozen_tokens(self, pixels: Tensor) -> Tensor:
        """Clips or single images through the embedding and the frozen blocks: -> [n,N,D]."""
        with part("patch embedding"), self.grad_from(-1, below=self.first_trained == 0):
            tokens = self.embed(pixels.to(self.pos_embed.dtype))  # the feature cache comes here with clips in fp32
        with torch.no_grad() if self.first_trained else nullcontext():
            for block in self.blocks[: self.first_trained]:
                with part("frozen blocks"):
                    tokens = self.run_one(block, tokens)
        return tokens

    def last_tokens(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,S,S], or what `frozen_features` makes of them, through all blocks."""
        if video.dim() == 3:
            tokens = video
        else:
            self.check_video(video)
            tokens = self.frozen_tokens(video)
        for block in self.blocks[self.first_trained :]:
            with part("trained blocks"):
                tokens = self.run_block(self.run_one, block, tokens)
        return tokens

    @torch.no_grad()
    def frozen_features(self, video: Tensor) -> Tensor:
        """What no training changes of clips [B,T,3,S,S], the tokens [B,-1,D] below the first block that trains."""
        self.check_video(video)
        return self.frozen_tokens(video)

    def frozen_features_state(self) -> dict[str, Tensor]:
        """The weights that `frozen_features` depends on, by name."""
        frozen = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        state = self.state_dict()
        return {name: state[name] for name in sorted(frozen) if not self.is_behind(name)}

    def is_behind(self, name: str) -> bool:
        """Whether a parameter is of what follows the frozen blocks: with LoRA it may be frozen there, too."""
        if block := self.block_names.match(name):
            return int(block[1]) >= self.first_trained
        return any(end.match(name) for end in (self.norm_names, self.head_names))

    def frozen_features_settings(self, device: torch.device) -> tuple[list[Any], str]:
        """Settings that the arithmetic of `frozen_features` depends on, and which attention computes it on `device`."""
        names = ("arch", "width", "depth", "heads", "patch", "image_size")
        settings = [self.frozen_depth, *(getattr(self.config, name) for name in names)]
        return settings, f"the library's own on {device.type}"
