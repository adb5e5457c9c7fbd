"""Owns DeepSpeed: the engine around an objective, its optimizer, precision and batch arithmetic."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ace_dist.distributed import uses_bf16
from ace_dist.errors import UserError
from ace_dist.training.schedule import lr_factor

if TYPE_CHECKING:
    from ace_dist.concepts import ConceptDraw
    from ace_dist.config import Config
    from ace_dist.data.loading import Batch
    from ace_dist.distributed import Ranks
    from ace_dist.methods import ConceptObjective, Losses

__all__ = ["Engine", "EngineError", "micro_batch_size"]


class EngineError(UserError):
    """Batch sizes, precision or ZeRO settings that cannot run."""


def micro_batch_size(config: Config, world: int) -> int:
    """Clips of one forward pass on one rank. Raises `EngineError` when the global batch cannot be shared equally."""
    parts = world * config.training.accumulation
    if config.training.batch_size % parts:
        raise EngineError(
            f"training.batch_size={config.training.batch_size} cannot be shared by {world} ranks with "
            f"training.accumulation={config.training.accumulation}: choose a multiple of {parts}"
        )
    return config.training.batch_size // parts


class Engine:
    """An objective under DeepSpeed. `module` stays the plain objective, for evaluation and export."""

    def __init__(self, config: Config, objective: ConceptObjective, ranks: Ranks, steps: int) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        self.settings = config.training
        self.ranks = ranks
        self.steps = steps
        self.module = objective
        self.bf16 = uses_bf16(config.training.precision, ranks.device)
        optimizer = torch.optim.SGD(
            self.parameter_groups(),
            lr=config.training.lr_video,
            momentum=config.training.momentum,
            nesterov=config.training.nesterov and config.training.momentum > 0,
            weight_decay=config.training.weight_decay,
        )
        settings = engine_settings(config, ranks.world, self.bf16)
        self.deepspeed, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The trainable parameters of both towers, each group with its base rate."""
        rates = {"video": self.settings.lr_video, "text": self.settings.lr_text}
        named = self.module.model.trainable_parameters()
        groups = [
            {"params": list(params), "name": name, "lr": rates[name], "base_lr": rates[name]}
            for name, params in named.items()
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise EngineError(
                "nothing trains: raise model.video.trained_blocks or set model.text.train_projection=true"
            )
        return groups

    def set_learning_rates(self, step: int) -> dict[str, float]:
        """Set the rates of a step; returns them by group, `lr_video` and `lr_text`."""
        factor = lr_factor(self.settings, step, self.steps)
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return {f"lr_{group['name']}": group["lr"] for group in self.deepspeed.optimizer.param_groups}

    def forward(self, batch: Batch, draw: ConceptDraw) -> Losses:
        """Losses of one micro-batch; the video is cast to the engine's precision."""
        video: Tensor = batch.video.bfloat16() if self.bf16 else batch.video
        losses: Losses = self.deepspeed(video, batch.labels, draw)
        return losses

    def backward(self, loss: Tensor) -> None:
        """Backward pass; DeepSpeed averages over ranks and micro-batches."""
        self.deepspeed.backward(loss)

    def step(self) -> None:
        """One micro-step; the optimizer moves at the last of an accumulation."""
        self.deepspeed.step()


def engine_settings(config: Config, world: int, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's own settings: those of `configs/deepspeed`, completed by what the rest of the configuration says."""
    settings = copy.deepcopy(config.deepspeed)
    derived = {
        "train_micro_batch_size_per_gpu": micro_batch_size(config, world),
        "gradient_accumulation_steps": config.training.accumulation,
        "train_batch_size": config.training.batch_size,
        "bf16": {"enabled": bf16},
    }
    clash = sorted(set(derived) & set(settings))
    if clash:
        raise EngineError(
            f"deepspeed.{clash[0]} is derived from training.batch_size, training.accumulation and training.precision; "
            f"set those instead"
        )
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2):
        raise EngineError(f"deepspeed.zero_optimization.stage={stage}: stages 0, 1 and 2 are supported")
    return {**settings, **derived}
