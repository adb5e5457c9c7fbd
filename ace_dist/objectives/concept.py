"""The concept objective of ACE and its plain baseline: labels of a step in, losses out (ACE Eq. 3 to 9).

Shapes: B clips, T frames, D width, P distinct phrases, R label sets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.distributed as dist
from ace_kernels import ConceptLayout, concept_cross_entropy_sets
from torch import Tensor, nn

from ace_dist.concepts import ConceptDraw, ConceptSampler
from ace_dist.config import MethodConfig
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.utils.distributed import gather_rows
from ace_dist.utils.parts import part


@dataclass(frozen=True, slots=True)
class PlacedDraw:
    """The labels of a step as integers on the device, the same for all its micro-batches.

    `layout` says which of the distinct phrases make the classes of `sets`. Beside it are the sentences of these phrases
    in the text feature cache, on several ranks those of this rank's share.
    """

    layout: ConceptLayout
    sets: tuple[str, ...]


class ConceptObjective(nn.Module):
    """L = L_fixed + L_rand (ACE Eq. 9), each a (C+1)-way cross-entropy over averaged cosines (Eq. 8).

    The module holds the encoders, so that a training engine can wrap it whole. The frozen part of the text encoder
    runs here, once for every phrase that the sampler can draw; row i of the cache is phrase i of the sampler.
    """

    def __init__(self, model: DualEncoder, sampler: ConceptSampler, settings: MethodConfig) -> None:
        super().__init__()
        self.model = model
        self.sampler = sampler
        self.settings = settings
        self.text_features = model.build_text_features(sampler.phrases)

    def place(self, draw: ConceptDraw) -> PlacedDraw:
        """Find what a draw repeats, and send its integers to the device in one copy, without waiting for it.

        Where text layers run at every step, each rank encodes its share of the phrases: all ranks draw the same ones.
        """
        sets = {"fixed": draw.fixed_rows} if self.settings.fixed_labels else {}
        if self.settings.random_labels:
            sets["random"] = draw.random_rows
        parts = [*sets.values(), *([draw.shadow_rows] if self.settings.shadow_negatives else [])]
        distinct_P, index = np.unique(np.concatenate([each.rows for each in parts]), return_inverse=True)
        rows = np.split(index, np.cumsum([len(each.rows) for each in parts])[:-1])
        shadowed = len(parts) > len(sets)
        first, last = self.share(len(distinct_P))
        layout = ConceptLayout.build(
            [each.offsets for each in sets.values()], rows[: len(sets)],
            draw.shadow_rows.offsets if shadowed else None, rows[-1] if shadowed else None, height=len(distinct_P),
            device=self.text_features.device,
            beside=self.text_features.sentences(distinct_P[min(first, len(distinct_P) - 1) : last]),
        )  # fmt: skip
        return PlacedDraw(layout, tuple(sets))

    def share(self, phrases: int) -> tuple[int, int]:
        """First and last of the phrases that this rank encodes."""
        if not dist.is_initialized() or not self.model.text.runs_layers:
            return 0, phrases
        size = -(-phrases // dist.get_world_size())
        return dist.get_rank() * size, (dist.get_rank() + 1) * size

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw | PlacedDraw) -> dict[str, Tensor]:
        """Scalar losses of one micro-batch, on the device: "fixed" and "random", less what is switched off."""
        placed = draw if isinstance(draw, PlacedDraw) else self.place(draw)
        video_BD = self.model.encode_video(video_BTCHW)
        table_PD = self.encode(placed)
        with part("loss"):
            losses_R = concept_cross_entropy_sets(
                video_BD, table_PD, placed.layout, labels_B, self.settings.temperature
            )
        return dict(zip(placed.sets, losses_R.unbind(), strict=True))

    def root_scores(self, video: Tensor, draw: ConceptDraw | PlacedDraw) -> Tensor:
        """The model's scores [B,C] of video embeddings against the draw's fixed labels."""
        placed = draw if isinstance(draw, PlacedDraw) else self.place(draw)
        table_PD = self.encode(placed)
        with part("loss"):
            scores_BC: Tensor = self.model.similarity(video, table_PD, placed.layout, self.settings.temperature)[0]
        return scores_BC.float()

    @part("text")
    def encode(self, placed: PlacedDraw) -> Tensor:
        """Embeddings [P, D] of the distinct phrases of a draw.

        A phrase of several sets or classes passes the trainable tail once; the kernels read its row in place. Where
        ranks share the phrases, the gradients of all ranks' losses reach the rank that encoded a phrase, so their mean
        is that without sharing.
        """
        text, phrases = self.text_features.complete(placed.layout.beside), placed.layout.height
        first, last = self.share(phrases)
        if last - first == phrases:
            return text
        if len(text) < last - first:  # all ranks gather as many rows: the last one is repeated
            text = text[torch.arange(last - first, device=text.device).clamp(max=len(text) - 1)]
        return gather_rows(text)[:phrases]


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """L = L_fixed + L_rand (ACE Eq. 9): the sum of an objective's losses, in their order."""
    return reduce(torch.add, losses.values())
