"""Owns what trains of an image-style tower (embedding, blocks, norm, head), as `TimeSformer` has it for its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ace_dist.models.timesformer import check_config
from ace_dist.utils.errors import ModelError

if TYPE_CHECKING:
    from ace_dist.config import VideoConfig


EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed", "norm_pre")


class FrozenTrunk(nn.Module):
    """Base of a video encoder with `patch_embed`, `cls_token`, `pos_embed`, `blocks`, `norm` and `head`.

    The last `trained_blocks` blocks train (all of them: the embeddings too), the final norm with `train_norm`, the head
    with `train_head`, the time embedding with `train_time_embed`, and whatever is in `fresh` always: it is new.
    Frozen parts stay in eval mode, and what lies below everything that trains runs under `no_grad`.
    """

    fresh: tuple[str, ...] = ()  # submodules and parameters that no weight file has: they start anew and train
    config: VideoConfig
    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def settle(self, config: VideoConfig) -> None:
        """Check the configuration and freeze accordingly; the end of a subclass's construction."""
        check_config(config)
        if config.drop_path:
            raise ModelError(
                f"model.video.tower={config.tower} has no stochastic depth: model.video.drop_path={config.drop_path} "
                f"must be 0"
            )
        self.config = config
        self.first_trained = config.depth - config.trained_blocks
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(self.is_trained(name))
        self.train(self.training)

    def is_trained(self, name: str) -> bool:
        """Whether the parameter of this name trains."""
        top, _, rest = name.partition(".")
        if top in self.fresh:
            return True
        if top == "blocks":
            return int(rest.partition(".")[0]) >= self.first_trained
        whole = self.first_trained == 0
        chosen = {
            "norm": self.config.train_norm,
            "head": self.config.train_head,
            "time_embed": whole or self.config.train_time_embed,
        }
        return chosen.get(top, whole and top in EMBEDDINGS)

    def train(self, mode: bool = True) -> FrozenTrunk:
        """Training mode for the modules that train; the others stay in eval mode."""
        super().train(mode)
        for child in self.children():
            for module in (child, *child.children()) if isinstance(child, nn.Sequential | nn.ModuleList) else (child,):
                module.train(mode and any(parameter.requires_grad for parameter in module.parameters()))
        return self

    def grad_from(self, layer: int, below: bool) -> Any:
        """Context in which block `layer` runs: with gradients once something that trains lies at or below it."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and (below or layer >= self.first_trained))

    def set_step(self, seed: int, step: int, rank: int, world: int) -> None:
        """Nothing to fix: these towers have no stochastic depth (`model.video.drop_path` must be 0)."""

    def check_video(self, video: Tensor) -> None:
        """Refuse clips that are not [B,T,3,S,S] with the S that the position embedding was made for."""
        size = self.config.image_size
        if video.dim() != 5 or tuple(video.shape[2:]) != (3, size, size):
            raise ModelError(
                f"a batch of clips must be [B,T,3,{size},{size}], got {list(video.shape)}; set loader.crop to "
                f"model.video.image_size"
            )
