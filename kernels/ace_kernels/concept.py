"""Owns the public operators: concept similarity (ACE Eq. 3) and its cross-entropy (Eq. 8), for one or many label sets.

Shapes: B videos, S phrases, P rows of a phrase table, C classes, R label sets, D embedding width. Phrases are grouped
by class: class c owns the positions `offsets[c]:offsets[c + 1]`. Without `rows` position s is row s of the text table;
with `rows` [S] it is row `rows[s]`, read in place: the gathered [S, D] matrix is never stored, and the gradient comes
back in the shape of the table, zero in rows that no class uses.

By linearity the mean of cosines over the K_c phrases of a class is one dot product with the mean of unit vectors,
`S(v, c) = (1/τ) v̂ · m_c` with `m_c = (1/K_c) Σ_k t̂_ck`. The B×S matrix is never formed. `m_c` is *not* normalised
again: that would be another loss (the class whose phrases agree would lose its advantage).

All arithmetic is float32 (float64 when an input is) whatever the input or autocast says; logits and losses come back
in that type. A zero vector has no direction: its unit vector is defined as zero, so its cosine with anything is zero,
and its gradient as zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ace_kernels import operators
from ace_kernels.checks import KernelInputError, Table, check_labels, check_table


def concept_similarity(
    video_BD: Tensor, text_SD: Tensor, class_offsets: Tensor, temperature: float, rows: Tensor | None = None
) -> Tensor:
    """Similarity of every video with every class, averaged over the phrases of the class (ACE Eq. 3).

    Args:
        video_BD: un-normalised video embeddings, [B, D], floating point.
        text_SD: un-normalised phrase embeddings, [S, D], rows grouped by class; [P, D] in any order with `rows`.
        class_offsets: [C+1] integers rising from 0 to S. On the CPU they are checked at once; on a GPU by assertions
            of the kernel.
        temperature: τ, greater than 0.
        rows: [S] integers, the row of `text_SD` of every position.

    Returns:
        [B, C] float32 logits `mean_k cos(video_b, text_ck) / temperature` (float64 for float64 input).

    Raises:
        EmptyClass: a class owns no row.
        KernelInputError: widths differ, offsets do not rise from 0 to S, rows or labels out of range, τ not positive.
    """
    check_table(video_BD, Table(text_SD, rows, class_offsets), temperature)
    return operators.similarity(video_BD, text_SD, rows, class_offsets, temperature)


def concept_similarity_sets(
    video_BD: Tensor,
    text_PD: Tensor,
    set_offsets: Sequence[Tensor],
    temperature: float,
    set_rows: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """`concept_similarity` for R label sets over one table of phrases, in one launch (the SRT: ten runs).

    Args:
        video_BD: [B, D] video embeddings.
        text_PD: [P, D] phrase embeddings.
        set_offsets: for every set its [C_r+1] offsets, each rising from 0.
        temperature: τ, greater than 0.
        set_rows: for every set the rows of `text_PD` of its positions. Without it the sets lie one after the other in
            the table.

    Returns:
        R views [B, C_r] of one matrix of logits.
    """
    offsets, rows = join_sets(set_offsets, set_rows)
    logits = concept_similarity(video_BD, text_PD, offsets, temperature, rows)
    return list(logits.split([part.numel() - 1 for part in set_offsets], 1))


def concept_cross_entropy(
    video_BD: Tensor,
    text_SD: Tensor,
    class_offsets: Tensor,
    labels_B: Tensor,
    temperature: float,
    shadow_text_SD: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
    rows: Tensor | None = None,
    shadow_rows: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over C classes, or over C+1 with the shadow negative of each video's own class (ACE Eq. 8).

    Args:
        video_BD: [B, D] video embeddings.
        text_SD: [S, D] phrase embeddings, rows grouped by class; [P, D] in any order with `rows`.
        class_offsets: [C+1] integers rising from 0 to S.
        labels_B: [B] class indices in [0, C). Checked on the device, without a host sync.
        temperature: τ, greater than 0.
        shadow_text_SD: [S2, D] phrases of the shadow negatives, grouped by class. `None` leaves C classes, unless
            `shadow_rows` picks the shadow negatives from `text_SD` too.
        shadow_offsets: [C+1] offsets of the shadow phrases. Every class needs one or more.
        rows: [S] integers, the row of `text_SD` of every position.
        shadow_rows: [S2] integers, the row of `shadow_text_SD` (of `text_SD` when that is `None`).

    Returns:
        Scalar float32 (float64 for float64 input): `-1/B Σ_n log P(n, a, a⁻)`.

    Raises:
        EmptyClass, KernelInputError: as in `concept_similarity`, and when only one shadow argument is given.
    """
    losses = concept_cross_entropy_sets(
        video_BD,
        text_SD,
        [class_offsets],
        labels_B,
        temperature,
        shadow_text_SD,
        shadow_offsets,
        None if rows is None else [rows],
        shadow_rows,
    )
    return losses.view(())  # not losses[0]: the backward of an index fills and copies


def concept_cross_entropy_sets(
    video_BD: Tensor,
    text_PD: Tensor,
    set_offsets: Sequence[Tensor],
    labels_B: Tensor,
    temperature: float,
    shadow_text_SD: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
    set_rows: Sequence[Tensor] | None = None,
    shadow_rows: Tensor | None = None,
) -> Tensor:
    """`concept_cross_entropy` under R label sets that share videos, labels and shadow negatives, at the cost of one.

    `losses.sum()` over the fixed and the random labels of a step is the whole of ACE Eq. 9. Arguments as in
    `concept_cross_entropy` and `concept_similarity_sets`; every set has the same C classes.

    Returns:
        [R] losses.
    """
    if not set_offsets or len({part.numel() for part in set_offsets}) != 1:
        raise KernelInputError(f"every set needs the same C+1 offsets, got {[part.numel() for part in set_offsets]}")
    offsets, rows = join_sets(set_offsets, set_rows)
    check_table(video_BD, Table(text_PD, rows, offsets), temperature)
    check_labels(labels_B, video_BD)
    if (shadow_text_SD is None and shadow_rows is None) != (shadow_offsets is None):
        raise KernelInputError("shadow_text (or shadow_rows) and shadow_offsets must be given together")
    if shadow_offsets is not None:
        if shadow_offsets.numel() != set_offsets[0].numel():
            raise KernelInputError(
                f"shadow_offsets describes {shadow_offsets.numel() - 1} classes, "
                f"class_offsets {set_offsets[0].numel() - 1}"
            )
        if shadow_text_SD is not None:
            check_table(video_BD, Table(shadow_text_SD, shadow_rows, shadow_offsets, "shadow_text"), temperature)
        else:  # classes of the same table, after those of the sets
            if rows is None:
                raise KernelInputError("shadow_rows without shadow_text needs rows too: both index into text")
            assert shadow_rows is not None
            offsets, rows = join_sets([offsets, shadow_offsets], [rows, shadow_rows])
            shadow_offsets = shadow_rows = None
            return operators.cross_entropy(
                video_BD, text_PD, rows, offsets, None, None, None, labels_B, len(set_offsets), True, temperature
            )
    return operators.cross_entropy(
        video_BD,
        text_PD,
        rows,
        offsets,
        shadow_text_SD,
        shadow_rows,
        shadow_offsets,
        labels_B,
        len(set_offsets),
        shadow_offsets is not None,
        temperature,
    )


def join_sets(set_offsets: Sequence[Tensor], set_rows: Sequence[Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """Offsets and rows of several label sets as those of one set with all their classes. Reads no value."""
    if not set_offsets or (set_rows is not None and len(set_rows) != len(set_offsets)):
        raise KernelInputError(f"{len(set_offsets)} sets of offsets need as many sets of rows, and one at least")
    if len(set_offsets) == 1:
        return set_offsets[0], None if set_rows is None else set_rows[0]
    parts, base = [set_offsets[0]], set_offsets[0][-1]
    for part in set_offsets[1:]:
        parts.append(part[1:] + base)
        base = base + part[-1]
    return torch.cat(parts), None if set_rows is None else torch.cat(list(set_rows))
