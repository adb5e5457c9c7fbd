"""Owns what a method is to the rest: how it changes the configuration, and which objective it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ace_dist.objectives.concept import ConceptObjective

if TYPE_CHECKING:
    from ace_dist.config import Config


class Method(NamedTuple):
    """One method: `prepare` is called once, before anything is built."""

    prepare: Callable[[Config], Config]
    objective: type[ConceptObjective] = ConceptObjective


def root_labels_only(config: Config) -> Config:
    """Without anything that is ACE's in the labels: no drawn synonyms, no shadow negatives, no leaf averaging."""
    plain = {"leaf_augmentation": False, "shadow_negatives": False, "random_labels": False, "fixed_labels": True}
    return replace(config, method=replace(config.method, **plain))  # type: ignore[arg-type]


def with_text_frozen(config: Config) -> Config:
    """Without training any layer of the text tower, or its projection."""
    text = replace(config.model.text, trained_layers=0, train_projection=False)
    return replace(config, model=replace(config.model, text=text))
