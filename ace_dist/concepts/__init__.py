"""Actions, synonym trees, and the labels drawn from them. Knows no tensors and no clips."""

from ace_dist.concepts.actions import Action
from ace_dist.concepts.classes import ClassLists, ClassTable, load_class_table, novel_by_verb_frequency, split_classes
from ace_dist.concepts.labels import (
    FreeLabel,
    LabelSet,
    Policy,
    draw_srt,
    free_labels,
    load_srt,
    root_labels,
    srt_labels,
    words_without_node,
)
from ace_dist.concepts.sampler import ClassRows, ConceptDraw, ConceptSampler, Phrases, label_phrases, shadow_pool
from ace_dist.concepts.trees import SynonymTrees

__all__ = [
    "Action",
    "ClassLists",
    "ClassRows",
    "ClassTable",
    "ConceptDraw",
    "ConceptSampler",
    "FreeLabel",
    "LabelSet",
    "Phrases",
    "Policy",
    "SynonymTrees",
    "draw_srt",
    "free_labels",
    "label_phrases",
    "load_class_table",
    "load_srt",
    "novel_by_verb_frequency",
    "root_labels",
    "shadow_pool",
    "split_classes",
    "srt_labels",
    "words_without_node",
]
