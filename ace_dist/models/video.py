"""What all video towers share: which parts train, which run without gradients, and how embeddings change their length.

Shapes: B clips, T frames, S pixels a side, P patches of a frame, D width.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional

from ace_dist.config import VideoConfig
from ace_dist.models.lora import add_lora, trains_by
from ace_dist.models.recompute import recompute, stored_bytes
from ace_dist.utils.console import say
from ace_dist.utils.errors import ModelError

EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed", "norm_pre")
SHARE_OF_FREE_MEMORY = 0.5  # of a GPU, that activations may take before norms are computed again
STORED_ON_CPU_GIB = 0.25  # of them in a rank on a CPU: a small step is a sixth faster, one at full width is not
Result = TypeVar("Result")


class VideoTower(nn.Module):
    """A video encoder with `patch_embed`, `cls_token`, `pos_embed`, `blocks`, `norm` and `head`.

    The last `trained_blocks` blocks train (all of them: the embeddings too), the final norm with `train_norm`, the head
    with `train_head`, the time embedding with `train_time_embed`, and whatever is in `fresh` always. With `lora_rank`
    updates of these blocks train instead of their weights, and no embedding does. Frozen parts stay
    in eval mode under `train()`, and what lies below everything that trains runs under `no_grad` and stores nothing.
    With `train_time_embed` every block stores its activations, since the gradient passes through all of them.
    """

    fresh: tuple[str, ...] = ()  # submodules and parameters that no weight file has: they start anew and train
    config: VideoConfig
    patch_embed: Any
    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    blocks: Any
    head: Any
    recompute = "norms"  # none | norms | blocks: set by `set_recompute`

    @property
    def first_trained(self) -> int:
        return self.config.depth - self.config.trained_blocks

    def reset_parameters(self) -> None:
        """The TimeSformer's initialisation: truncated normal 0.02, zero biases and zero time embedding."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)

    def new_parameters(self) -> Iterator[nn.Parameter]:
        """Those of `fresh`, which `training.lr_new` is for."""
        return (parameter for name, parameter in self.named_parameters() if name.split(".")[0] in self.fresh)

    def add_lora(self) -> None:
        """Give the blocks that train the updates of `model.video.lora_rank`, if there are any."""
        add_lora(self.blocks[self.first_trained :], self.config)

    @property
    def trains_embeddings(self) -> bool:
        return self.first_trained == 0 and not self.config.lora_rank

    def freeze(self) -> None:
        """Set `requires_grad` of every parameter from the configuration, and eval mode of frozen modules."""
        config, all_blocks = self.config, self.trains_embeddings
        trained = dict.fromkeys(EMBEDDINGS, all_blocks) | dict.fromkeys(self.fresh, True)
        trained |= {"norm": config.train_norm, "head": config.train_head}
        trained["time_embed"] = all_blocks or config.train_time_embed
        for name, parameter in self.named_parameters():
            top, *rest = name.split(".")
            is_trained = trained.get(top, False)
            if top == "blocks":
                is_trained = int(rest[0]) >= self.first_trained and trains_by(config, name)
            parameter.requires_grad_(is_trained)
        self.set_recompute("norms" if config.recompute == "auto" else config.recompute)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for child in self.children():
            for module in (child, *child.children()) if isinstance(child, nn.Sequential | nn.ModuleList) else (child,):
                module.train(mode and any(parameter.requires_grad for parameter in module.parameters()))
        return self

    def forget_device(self) -> None:
        """Drop or bring back what no weight is and lies on the device: it is made again, or moved, where it is used."""

    def part_name(self, index: int) -> str:
        """The part of a step that block `index` belongs to."""
        return "trained blocks" if index >= self.first_trained else "frozen blocks"

    def grad_from(self, layer: int, below: bool) -> Any:
        """Context in which block `layer` runs: with gradients once something that trains lies at or below it."""
        return torch.set_grad_enabled(torch.is_grad_enabled() and (below or layer >= self.first_trained))

    def run_block(self, block: Callable[..., Result], *inputs: Any) -> Result:
        """A block's output; with `recompute=blocks` its inputs alone are stored for the backward pass."""
        return recompute(block, *inputs) if self.recompute == "blocks" else block(*inputs)

    def set_recompute(self, what: str) -> None:
        """What the backward pass computes again: `none`, the TimeSformer's `norms` and GELU, or whole `blocks`."""
        self.recompute = what

    def choose_recompute(self, shape: Sequence[int]) -> None:
        """Settle `model.video.recompute=auto` for training on clips of `shape`, by what storing all takes; say so.

        No bit of a result depends on it. Half of a GPU's free memory is left to frozen blocks and the loader.
        """
        device, dtype = self.pos_embed.device, self.pos_embed.dtype
        if self.config.recompute != "auto":
            return
        with torch.device("meta"), contextlib.redirect_stdout(None):
            twin = type(self)(replace(self.config, attention="sdpa", recompute="none")).to(dtype).train()
            needed = stored_bytes(lambda: twin(torch.empty(*shape, dtype=dtype)), twin.parameters()) / 2**30
        allowed, why = STORED_ON_CPU_GIB, f"{STORED_ON_CPU_GIB} GiB are allowed on a CPU"
        if device.type == "cuda":
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            free = (torch.cuda.mem_get_info(device)[0] + cached) / 2**30
            allowed = SHARE_OF_FREE_MEMORY * free
            why = f"{SHARE_OF_FREE_MEMORY:.0%} of {free:.1f} GiB free are allowed"
        self.set_recompute("none" if needed <= allowed else "norms")
        say(
            f"recompute: {self.recompute}, since all that the backward pass needs is {needed:.2f} GiB and {why} "
            "(model.video.recompute=auto)"
        )

    def set_step(self, seed: int, step: int, rank: int, world: int) -> None:
        """Fix what is random in a training step: nothing here, as stochastic depth is the TimeSformer's alone."""

    def cross_layer_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters read outside of the layer that holds them: ZeRO 3 has to gather these for the whole tower."""
        return iter(())

    def fit_positions(self, state: MutableMapping[str, Tensor]) -> list[str]:
        """Resize the stored `pos_embed` and `time_embed` that have another length than ours; says which and how.

        Time is resized by `model.video.time_embed_resize`. What cannot be resized stays, for the caller to refuse.
        """
        resized = []
        for name in ("pos_embed", "time_embed"):
            own, embed = getattr(self, name, None), state.get(name)
            if own is None or embed is None or embed.shape == own.shape:
                continue
            if embed.dim() != 3 or embed.shape[2] != own.shape[2]:
                continue
            patches = embed.shape[1] - 1
            if name == "time_embed":
                state[name] = resize_times(embed.float(), self.config.frames, self.config.time_embed_resize)
            elif patches > 0 and math.isqrt(patches) ** 2 == patches:
                state[name] = resize_positions(embed.float(), own.shape[1] - 1)
            else:
                continue
            resized.append(f"{name} {list(embed.shape)} to {list(own.shape)}")
        return resized

    def check_origin(self, names: Collection[str], facts: Mapping[str, str]) -> None:
        """Raise `ModelError` when weights of these names and this metadata cannot serve with these settings."""

    def check_video(self, video: Tensor) -> None:
        """Refuse clips that are not [B,T,3,S,S] with the S that the position embedding was made for."""
        size = self.config.image_size
        if video.dim() != 5 or tuple(video.shape[2:]) != (3, size, size):
            raise ModelError(
                f"a batch of clips must be [B,T,3,{size},{size}], got {list(video.shape)}; set loader.crop to "
                f"model.video.image_size"
            )


def check_config(config: VideoConfig) -> None:
    """Refuse settings of `model.video` that fit no network, or not this one."""
    for name, unit in (("width", "heads"), ("image_size", "patch")):
        size, part = getattr(config, name), getattr(config, unit)
        if size % part:
            raise ModelError(f"model.video.{name}={size} is no multiple of model.video.{unit}={part}")
    if not 0 <= config.trained_blocks <= config.depth:
        raise ModelError(
            f"model.video.trained_blocks={config.trained_blocks} is not between 0 and model.video.depth={config.depth}"
        )
    if not 0 <= config.drop_path < 1:
        raise ModelError(f"model.video.drop_path={config.drop_path} is not in [0, 1)")
    if config.drop_path and config.tower != "timesformer":
        raise ModelError(
            f"model.video.tower={config.tower} has no stochastic depth: model.video.drop_path={config.drop_path} must "
            f"be 0"
        )


def resize_times(embed: Tensor, frames: int, how: str = "nearest") -> Tensor:
    """Time embedding [1,T0,D] -> [1,frames,D]; `nearest` takes row floor(i * T0 / frames), as the official code."""
    length = embed.shape[1]
    if frames == length:
        return embed
    if how == "nearest":
        return embed.index_select(1, torch.arange(frames, device=embed.device) * length // frames)
    return functional.interpolate(embed.transpose(1, 2), size=frames, mode="linear").transpose(1, 2)


def resize_positions(embed: Tensor, patches: int) -> Tensor:
    """Position embedding [1,1+P0,D] -> [1,1+patches,D]: square grids, nearest as in the official code; cls row kept."""
    old, new = round((embed.shape[1] - 1) ** 0.5), round(patches**0.5)
    if old == new:
        return embed
    rows = torch.arange(new, device=embed.device) * old // new
    grid = (rows[:, None] * old + rows).flatten() + 1
    return torch.cat([embed[:, :1], embed.index_select(1, grid)], dim=1)
