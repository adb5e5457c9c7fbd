"""Fused operators of Action Concept Enhancement: the averaged cosine similarity and the (C+1)-way loss on it.

Depends on torch (and, for the fused kernels, triton) alone; knows rows and class offsets, not actions.
"""

from ace_kernels.concept import EmptyClass, KernelInputError, concept_cross_entropy, concept_similarity

__all__ = ["EmptyClass", "KernelInputError", "concept_cross_entropy", "concept_similarity"]
