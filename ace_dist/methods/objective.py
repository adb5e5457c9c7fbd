"""The concept objective shared by ACE and its plain baseline: labels of a step in, losses out (ACE Eq. 3 to 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ace_kernels import concept_cross_entropy
from torch import Tensor, nn

from ace_dist.concepts import ConceptDraw, ConceptSampler, Phrases

if TYPE_CHECKING:
    from ace_dist.config import MethodConfig
    from ace_dist.models.dual_encoder import DualEncoder
    from ace_dist.models.phrase_bank import PhraseBank

__all__ = ["ConceptObjective", "Losses", "offsets_of"]


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalar losses of one micro-batch, on the device. `fixed` or `random` is None when switched off."""

    total: Tensor
    fixed: Tensor | None
    random: Tensor | None


class ConceptObjective(nn.Module):
    """L = L_fixed + L_rand (ACE Eq. 9), each a (C+1)-way cross-entropy over averaged cosines (Eq. 8).

    The module owns the encoders, so that a training engine can wrap it whole.

    Shapes: video [B, T, 3, H, W], labels [B].
    """

    def __init__(self, model: DualEncoder, bank: PhraseBank, sampler: ConceptSampler, settings: MethodConfig) -> None:
        super().__init__()
        self.model = model
        self.bank = bank
        self.sampler = sampler
        self.settings = settings

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> Losses:
        """Losses of one micro-batch under the labels of its global step."""
        video_BD = self.model.encode_video(video_BTCHW)
        wanted = {"fixed": self.settings.fixed_labels, "random": self.settings.random_labels}
        parts = {name: getattr(draw, name) for name, on in wanted.items() if on}
        if self.settings.shadow_negatives:
            parts["shadow"] = draw.shadow
        text = self.encode(list(parts.values()))
        encoded = dict(zip(parts, text, strict=True))
        shadow = encoded.pop("shadow", (None, None))
        losses = {
            name: concept_cross_entropy(
                video_BD, text_SD, offsets, labels_B, self.settings.temperature, shadow[0], shadow[1]
            )
            for name, (text_SD, offsets) in encoded.items()
        }
        return Losses(torch.stack(list(losses.values())).sum(), losses.get("fixed"), losses.get("random"))

    def encode(self, label_sets: list[Phrases]) -> list[tuple[Tensor, Tensor]]:
        """Embeddings [S, D] and class offsets [C+1] of several label sets, through one pass of the trainable tail."""
        indices = [[self.bank.index(p) for group in phrases for p in group] for phrases in label_sets]
        rows = self.bank.encode(torch.tensor([i for part in indices for i in part]))
        split = rows.split([len(part) for part in indices])
        return [(text_SD, offsets_of(phrases)) for text_SD, phrases in zip(split, label_sets, strict=True)]


def offsets_of(phrases: Phrases) -> Tensor:
    """Class offsets [C+1] of phrases grouped by class, on the CPU."""
    return torch.tensor([0, *(len(group) for group in phrases)]).cumsum(0)
