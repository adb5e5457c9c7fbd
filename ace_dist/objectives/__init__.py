"""What differs between methods: which parts train, what the labels look like, which objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ace_dist.concepts import Action, ConceptSampler, SynonymTrees
from ace_dist.objectives import ace, bike, chance, lavila, procvlr, text4vis, vifi_ft, vifi_pr
from ace_dist.objectives.concept import ConceptObjective, total_loss
from ace_dist.objectives.method import Method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ace_dist.config import Config
    from ace_dist.models.dual_encoder import DualEncoder

__all__ = ["METHODS", "ConceptObjective", "build_objective", "prepare", "total_loss"]


METHODS: dict[str, Method] = {
    "ace": ace.METHOD,
    "procvlr": procvlr.METHOD,
    "vifi_ft": vifi_ft.METHOD,
    "vifi_pr": vifi_pr.METHOD,
    "bike": bike.METHOD,
    "text4vis": text4vis.METHOD,
    "lavila": lavila.METHOD,
    "random": chance.METHOD,
}


def prepare(config: Config) -> Config:
    """The configuration as the chosen method trains it; called once, before anything is built."""
    return METHODS[config.method.name].prepare(config)


def build_objective(
    config: Config, model: DualEncoder, actions: Sequence[Action], trees: SynonymTrees
) -> ConceptObjective:
    """The objective of a prepared configuration over the seen `actions`, in class order."""
    sampler = ConceptSampler(
        actions,
        trees,
        config.seed,
        leaf_augmentation=config.method.leaf_augmentation,
        shadow_negatives=config.method.shadow_negatives,
        exclude_real_classes=config.method.exclude_real_classes,
        independent_draws=config.method.independent_draws,
    )
    objective = METHODS[config.method.name].objective
    return objective(model, model.build_text_features(sampler.reachable()), sampler, config.method)
