"""Random: nothing trains, every class is guessed equally often; the expected scores follow from the label counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ace_dist.objectives.method import Method, root_labels_only

if TYPE_CHECKING:
    from ace_dist.config import Config


def prepare(config: Config) -> Config:
    """No step, no weights."""
    plain = root_labels_only(config)
    return replace(plain, training=replace(plain.training, max_steps=0), model=replace(plain.model, init="random"))


METHOD = Method(prepare=prepare)
