"""The concept objective shared by ACE and its plain baseline: labels of a step in, losses out (ACE Eq. 3 to 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from ace_kernels import concept_cross_entropy_sets
from torch import Tensor, nn

from ace_dist.concepts import ConceptDraw, ConceptSampler, Phrases
from ace_dist.utils.distributed import gathered

if TYPE_CHECKING:
    from ace_dist.config import MethodConfig
    from ace_dist.models.dual_encoder import DualEncoder
    from ace_dist.models.text_features import TextFeatureCache


class ConceptObjective(nn.Module):
    """L = L_fixed + L_rand (ACE Eq. 9), each a (C+1)-way cross-entropy over averaged cosines (Eq. 8).

    The module owns the encoders, so that a training engine can wrap it whole.

    Shapes: video [B, T, 3, H, W], labels [B].
    """

    def __init__(
        self, model: DualEncoder, text_features: TextFeatureCache, sampler: ConceptSampler, settings: MethodConfig
    ) -> None:
        super().__init__()
        self.model = model
        self.text_features = text_features
        self.sampler = sampler
        self.settings = settings

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> dict[str, Tensor]:
        """Scalar losses of one micro-batch, on the device: "fixed" and "random", less what is switched off."""
        video_BD = self.model.encode_video(video_BTCHW)
        wanted = {"fixed": self.settings.fixed_labels, "random": self.settings.random_labels}
        sets = {name: getattr(draw, name) for name, on in wanted.items() if on}
        shadow = [draw.shadow] if self.settings.shadow_negatives else []
        table_PD, rows = self.encode([*sets.values(), *shadow])
        losses_R = concept_cross_entropy_sets(
            video_BD,
            table_PD,
            [offsets_of(phrases) for phrases in sets.values()],
            labels_B,
            self.settings.temperature,
            shadow_offsets=offsets_of(draw.shadow) if shadow else None,
            set_rows=rows[: len(sets)],
            shadow_rows=rows[-1] if shadow else None,
        )
        return dict(zip(sets, losses_R.unbind(), strict=True))

    def encode(self, label_sets: Sequence[Phrases]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Embeddings [P, D] of the distinct phrases of several label sets, and for each set the rows of its phrases.

        A phrase of several sets or classes passes the trainable tail once; the kernels read its row in place.
        """
        indices = [
            self.text_features.indices([phrase for group in phrases for phrase in group]) for phrases in label_sets
        ]
        distinct_P, rows = torch.cat(indices).unique(return_inverse=True)
        return self.embed(distinct_P), rows.split([len(part) for part in indices])

    def embed(self, phrases_P: Tensor) -> Tensor:
        """Embeddings [P, D] of rows of the cache. Where text layers run at every step, each rank encodes its share.

        All ranks ask for the same phrases, since they draw the same labels. The gradients of all ranks' losses reach
        the rank that encoded a phrase, so their mean over ranks is what it is without sharing.
        """
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks == 1 or not self.model.text.runs_layers:
            return self.text_features.encode(phrases_P)
        count = len(phrases_P)
        share = -(-count // ranks)
        own = torch.arange(share) + dist.get_rank() * share
        return gathered(self.text_features.encode(phrases_P[own.clamp(max=count - 1)]))[:count]


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """What a step descends: the sum of an objective's losses, in their order."""
    return reduce(torch.add, losses.values())


def offsets_of(phrases: Phrases) -> Tensor:
    """Class offsets [C+1] of phrases grouped by class, on the CPU."""
    return torch.tensor([0, *(len(group) for group in phrases)]).cumsum(0)
