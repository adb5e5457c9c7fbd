"""Fused operators of Action Concept Enhancement: the averaged cosine similarity, the (C+1)-way loss, short attention.

Depends on torch (and, for the fused kernels, triton) alone; knows rows and class offsets, not actions.
"""

from ace_kernels.checks import EmptyClass, KernelInputError
from ace_kernels.choice import KernelChoiceError
from ace_kernels.concept import (
    concept_cross_entropy,
    concept_cross_entropy_sets,
    concept_similarity,
    concept_similarity_sets,
)
from ace_kernels.temporal_attention import (
    temporal_attention,
    temporal_attention_obstacle,
    temporal_attention_packed,
)

__all__ = [
    "EmptyClass",
    "KernelChoiceError",
    "KernelInputError",
    "concept_cross_entropy",
    "concept_cross_entropy_sets",
    "concept_similarity",
    "concept_similarity_sets",
    "temporal_attention",
    "temporal_attention_obstacle",
    "temporal_attention_packed",
]
