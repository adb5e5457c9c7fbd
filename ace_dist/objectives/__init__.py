"""The objectives, each returns named losses: concept (ACE Eq. 8 and 9), sigmoid (SigLIP's), label, and BIKE's."""

from collections.abc import Sequence

from ace_dist.concepts import Action, ConceptSampler, SynonymTrees
from ace_dist.config import Config
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.objectives.bike import SymmetricObjective
from ace_dist.objectives.concept import ConceptObjective, PlacedDraw, total_loss
from ace_dist.objectives.label import LabelObjective
from ace_dist.objectives.sigmoid import SigmoidObjective
from ace_dist.utils.console import say_once

__all__ = ["ConceptObjective", "PlacedDraw", "build_objective", "total_loss"]


OBJECTIVES = {"concept": ConceptObjective, "label": LabelObjective, "bike": SymmetricObjective}  # method.objective
OBJECTIVES["sigmoid"] = SigmoidObjective


def build_objective(
    config: Config, model: DualEncoder, actions: Sequence[Action], trees: SynonymTrees, novel: Sequence[Action] = ()
) -> ConceptObjective:
    """The objective that `method.objective` names over the base `actions`, in class order.

    The labels of `novel` actions are known only to be left out (`method.exclude_novel_labels`).
    """
    sampler = ConceptSampler(
        actions,
        trees,
        config.seed,
        leaf_augmentation=config.method.leaf_augmentation,
        shadow_negatives=config.method.shadow_negatives,
        exclude_real_classes=config.method.exclude_real_classes,
        independent_draws=config.method.independent_draws,
        unread=[str(action) for action in novel] if config.method.exclude_novel_labels else (),
    )
    if wrong := sampler.wrong_objects:
        more = f" and {len(wrong) - 1} more actions" if len(wrong) > 1 else ""
        say_once(
            f"no wrong verb (Eq. 6) is left for {str(wrong[0])!r}{more}: shadow negatives take the object of another "
            "action instead, which the paper does not do (docs/concepts.md)"
        )
    return OBJECTIVES[config.method.objective](model, sampler, config.method)
