"""Actions, synonym trees, and the labels drawn from them. Knows no tensors and no clips."""

from ace_dist.concepts.actions import Action, ActionError
from ace_dist.concepts.labels import FreeLabel, LabelError, LabelSet, free_labels, load_srt, root_labels, srt_labels
from ace_dist.concepts.sampler import (
    ConceptDraw,
    ConceptSampler,
    EmptyShadowPool,
    Phrases,
    label_phrases,
    shadow_pool,
)
from ace_dist.concepts.trees import MissingTree, SynonymTrees, TreeError

__all__ = [
    "Action",
    "ActionError",
    "ConceptDraw",
    "ConceptSampler",
    "EmptyShadowPool",
    "FreeLabel",
    "LabelError",
    "LabelSet",
    "MissingTree",
    "Phrases",
    "SynonymTrees",
    "TreeError",
    "free_labels",
    "label_phrases",
    "load_srt",
    "root_labels",
    "shadow_pool",
    "srt_labels",
]
