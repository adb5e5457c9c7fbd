"""ProcVLR, ACE's one-to-one baseline: the same video encoder on root labels alone, the text tower frozen."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ace_dist.config import Config

__all__ = ["prepare"]


def prepare(config: Config) -> Config:
    """Switch off everything that is ACE's: drawn synonyms, shadow negatives, leaf averaging, the trained projection."""
    method = replace(
        config.method, leaf_augmentation=False, shadow_negatives=False, random_labels=False, fixed_labels=True
    )
    text = replace(config.model.text, trained_layers=0, train_projection=False)
    return replace(config, method=method, model=replace(config.model, text=text))
