"""Fused operators of Action Concept Enhancement: the averaged cosine similarity, the (C+1)-way loss, short attention.

Depends on torch (and, for the fused kernels, triton) alone; knows rows and class offsets, not actions.
"""

from ace_kernels.backend import KernelInputError, choose
from ace_kernels.concept import (
    concept_cross_entropy,
    concept_cross_entropy_sets,
    concept_similarity,
    concept_similarity_sets,
)
from ace_kernels.concept_layout import ConceptLayout
from ace_kernels.short_attention import (
    temporal_attention,
    temporal_attention_packed,
    temporal_attention_unsupported_reason,
)

__all__ = [
    "ConceptLayout",
    "KernelInputError",
    "choose",
    "concept_cross_entropy",
    "concept_cross_entropy_sets",
    "concept_similarity",
    "concept_similarity_sets",
    "temporal_attention",
    "temporal_attention_packed",
    "temporal_attention_unsupported_reason",
]

RENAMED = {
    "EmptyClass": "KernelInputError",
    "KernelChoiceError": "KernelInputError",
    "temporal_attention_obstacle": "temporal_attention_unsupported_reason",
}


def __getattr__(name: str) -> object:
    """A name of the last release answers with its new one."""
    if name in RENAMED:
        raise AttributeError(f"ace_kernels.{name} is now ace_kernels.{RENAMED[name]}")
    raise AttributeError(f"module 'ace_kernels' has no attribute {name!r}")
