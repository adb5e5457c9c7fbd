"""Concept similarity (ACE Eq. 3) and its cross-entropy (Eq. 8): argument checks and the plain-torch implementation.

Shapes: B videos, S phrases, C classes, D embedding width. Rows of `text_SD` are grouped by class: class c owns the
rows `offsets[c]:offsets[c + 1]`.

By linearity the mean of cosines over the K_c phrases of a class is one dot product with the mean of unit vectors,
`S(v, c) = (1/τ) v̂ · m_c` with `m_c = (1/K_c) Σ_k t̂_ck`. The B×S matrix is never formed. `m_c` is *not* normalised
again: that would be another loss (the class whose phrases agree would lose its advantage).

All arithmetic is float32 (float64 for float64 input) whatever the input or autocast says; logits and losses come
back in that type. A zero vector has no direction: its unit vector is defined as zero, so its cosine with anything is
zero, and its gradient as zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EmptyClass", "KernelInputError", "concept_cross_entropy", "concept_similarity"]


class KernelInputError(ValueError):
    """Arguments whose shapes, types or offsets do not fit together."""


class EmptyClass(KernelInputError):
    """A class without a phrase: its mean does not exist."""


def concept_similarity(video_BD: Tensor, text_SD: Tensor, class_offsets: Tensor, temperature: float) -> Tensor:
    """Similarity of every video with every class, averaged over the phrases of the class (ACE Eq. 3).

    Args:
        video_BD: un-normalised video embeddings, [B, D], floating point.
        text_SD: un-normalised phrase embeddings, [S, D], rows grouped by class.
        class_offsets: [C+1] integers rising from 0 to S; on the CPU, so that their check does not wait for a GPU.
        temperature: τ, greater than 0.

    Returns:
        [B, C] float32 logits `mean_k cos(video_b, text_ck) / temperature` (float64 for float64 input).

    Raises:
        EmptyClass: a class owns no row.
        KernelInputError: widths differ, offsets do not rise from 0 to S, or τ is not positive.
    """
    check_pair(video_BD, text_SD, class_offsets, temperature, "text")
    with torch.autocast(video_BD.device.type, enabled=False):
        return unit_rows(video_BD) @ prototypes(text_SD, class_offsets).T / temperature


def concept_cross_entropy(
    video_BD: Tensor,
    text_SD: Tensor,
    class_offsets: Tensor,
    labels_B: Tensor,
    temperature: float,
    shadow_text_SD: Tensor | None = None,
    shadow_offsets: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy over C classes, or over C+1 with the shadow negative of each video's own class (ACE Eq. 8).

    Args:
        video_BD: [B, D] video embeddings.
        text_SD: [S, D] phrase embeddings, rows grouped by class.
        class_offsets: [C+1] integers rising from 0 to S.
        labels_B: [B] class indices in [0, C). Checked on the device, without a host sync.
        temperature: τ, greater than 0.
        shadow_text_SD: [S2, D] phrases of the shadow negatives, grouped by class; `None` leaves C classes.
        shadow_offsets: [C+1] offsets into `shadow_text_SD`. Every class needs one row or more.

    Returns:
        Scalar float32 (float64 for float64 input): `-1/B Σ_n log P(n, a, a⁻)`.

    Raises:
        EmptyClass, KernelInputError: as in `concept_similarity`, and when only one shadow argument is given.
    """
    check_pair(video_BD, text_SD, class_offsets, temperature, "text")
    check_labels(labels_B, video_BD, class_offsets)
    if (shadow_text_SD is None) != (shadow_offsets is None):
        raise KernelInputError("shadow_text and shadow_offsets must be given together")
    with torch.autocast(video_BD.device.type, enabled=False):
        unit_video_BD = unit_rows(video_BD)
        logits = unit_video_BD @ prototypes(text_SD, class_offsets).T / temperature
        if shadow_text_SD is not None and shadow_offsets is not None:
            check_pair(video_BD, shadow_text_SD, shadow_offsets, temperature, "shadow_text")
            if shadow_offsets.numel() != class_offsets.numel():
                raise KernelInputError(
                    f"shadow_offsets describes {shadow_offsets.numel() - 1} classes, "
                    f"class_offsets {class_offsets.numel() - 1}"
                )
            own_shadow_BD = prototypes(shadow_text_SD, shadow_offsets)[labels_B]
            shadow_B1 = (unit_video_BD * own_shadow_BD).sum(1, keepdim=True) / temperature
            logits = torch.cat([logits, shadow_B1], 1)
        return torch.nn.functional.cross_entropy(logits, labels_B.long())


def unit_rows(rows_ND: Tensor) -> Tensor:
    """Rows divided by their length, in float32 or better; zero rows stay zero and pass no gradient."""
    wide = rows_ND.to(torch.promote_types(rows_ND.dtype, torch.float32))
    # Scaling by the largest entry first keeps the squares of tiny and huge rows inside the range of float32.
    peak = wide.detach().abs().amax(1, keepdim=True)
    scaled = wide / torch.where(peak > 0, peak, 1)
    square = (scaled * scaled).sum(1, keepdim=True)
    return scaled * torch.where(square > 0, square.clamp_min(torch.finfo(wide.dtype).tiny).rsqrt(), 0)


def prototypes(text_SD: Tensor, offsets: Tensor) -> Tensor:
    """Class means of unit rows, `m_c` [C, D]; each class weighs 1 whatever its number of rows.

    `mean` sums in a cascade. An `index_add` would be one call for ragged classes too, but it sums one row after the
    other: over 1,000 equal phrases it was wrong by 1e-5, 0.001 in a logit at τ = 0.01.
    """
    unit_SD = unit_rows(text_SD)
    counts: list[int] = offsets.diff().tolist()
    if len(set(counts)) == 1:
        return unit_SD.view(len(counts), counts[0], -1).mean(1)
    return torch.stack([rows.mean(0) for rows in unit_SD.split(counts)])


def check_pair(video_BD: Tensor, text_SD: Tensor, offsets: Tensor, temperature: float, name: str) -> None:
    """Shapes and types of one video/text pair; offsets on the CPU are checked by value."""
    if not temperature > 0:
        raise KernelInputError(f"temperature must be greater than 0, got {temperature}")
    for label, rows in (("video", video_BD), (name, text_SD)):
        if rows.ndim != 2 or not rows.is_floating_point():
            raise KernelInputError(f"{label} must be a floating-point matrix, got {rows.dtype} {list(rows.shape)}")
    if video_BD.shape[1] != text_SD.shape[1]:
        raise KernelInputError(f"video has width {video_BD.shape[1]}, {name} has width {text_SD.shape[1]}")
    if offsets.ndim != 1 or offsets.numel() < 2 or offsets.is_floating_point() or offsets.dtype == torch.bool:
        raise KernelInputError(f"offsets of {name} must be C+1 integers, got {offsets.dtype} {list(offsets.shape)}")
    counts = offsets.diff()
    if bool((counts < 0).any()) or int(offsets[0]) != 0 or int(offsets[-1]) != text_SD.shape[0]:
        raise KernelInputError(
            f"offsets of {name} must rise from 0 to {text_SD.shape[0]}, got {offsets.tolist()[:8]}..."
        )
    if bool((counts == 0).any()):
        raise EmptyClass(f"class {int((counts == 0).nonzero()[0])} has no row in {name}")


def check_labels(labels_B: Tensor, video_BD: Tensor, offsets: Tensor) -> None:
    """One integer label a video; values are asserted on the device so that a GPU is not made to wait."""
    if labels_B.shape != video_BD.shape[:1] or labels_B.dtype not in (torch.int64, torch.int32):
        raise KernelInputError(
            f"labels must be {video_BD.shape[0]} integers, got {labels_B.dtype} {list(labels_B.shape)}"
        )
    inside = ((labels_B >= 0) & (labels_B < offsets.numel() - 1)).all()
    if labels_B.device.type == "cpu":
        if not bool(inside):
            raise KernelInputError(f"labels must lie in [0, {offsets.numel() - 1}), got {labels_B.tolist()[:8]}...")
    else:
        torch._assert_async(inside, f"a label lies outside [0, {offsets.numel() - 1})")
