"""The concept objective of ACE and its plain baseline: labels of a step in, losses out (ACE Eq. 3 to 9).

Shapes: B clips, T frames, D width, P distinct phrases, R label sets.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from ace_kernels import concept_cross_entropy_sets
from torch import Tensor, nn

from ace_dist.concepts import ClassRows, ConceptDraw, ConceptSampler
from ace_dist.config import MethodConfig
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.utils.distributed import gather_rows
from ace_dist.utils.parts import part


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

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> dict[str, Tensor]:
        """Scalar losses of one micro-batch, on the device: "fixed" and "random", less what is switched off."""
        video_BD = self.model.encode_video(video_BTCHW)
        sets = {"fixed": draw.fixed_rows} if self.settings.fixed_labels else {}
        if self.settings.random_labels:
            sets["random"] = draw.random_rows
        shadow = [draw.shadow_rows] if self.settings.shadow_negatives else []
        table_PD, rows = self.encode([*sets.values(), *shadow])
        with part("loss"):
            losses_R = concept_cross_entropy_sets(
                video_BD,
                table_PD,
                [torch.tensor(label_set.offsets) for label_set in sets.values()],
                labels_B,
                self.settings.temperature,
                shadow_offsets=torch.tensor(draw.shadow_rows.offsets) if shadow else None,
                set_rows=rows[: len(sets)],
                shadow_rows=rows[-1] if shadow else None,
            )
        return dict(zip(sets, losses_R.unbind(), strict=True))

    def root_scores(self, video: Tensor, draw: ConceptDraw) -> Tensor:
        """The model's scores [B,C] of video embeddings against the draw's fixed labels."""
        table_PD, rows = self.encode([draw.fixed_rows])
        offsets = [torch.tensor(draw.fixed_rows.offsets)]
        with part("loss"):
            scores_BC: Tensor = self.model.similarity(video, table_PD, offsets, self.settings.temperature, rows)[0]
        return scores_BC.float()

    @part("text")
    def encode(self, label_sets: Sequence[ClassRows]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Embeddings [P, D] of the distinct phrases of several label sets, and for each set the rows of its phrases.

        A phrase of several sets or classes passes the trainable tail once; the kernels read its row in place. Where
        text layers run at every step, each rank encodes its share of the phrases: all ranks draw the same ones, and the
        gradients of all ranks' losses reach the rank that encoded a phrase, so their mean is that without sharing.
        """
        distinct_P, rows = torch.tensor([row for each in label_sets for row in each.rows]).unique(return_inverse=True)
        rows_of_sets = rows.split([len(each.rows) for each in label_sets])
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks == 1 or not self.model.text.runs_layers:
            return self.text_features.encode_distinct(distinct_P), rows_of_sets
        count = len(distinct_P)
        share = -(-count // ranks)
        first = dist.get_rank() * share
        text = self.text_features.encode_distinct(distinct_P[min(first, count - 1) : first + share])
        if len(text) < share:  # all ranks gather as many rows: the last one is repeated
            text = text[torch.arange(share, device=text.device).clamp(max=len(text) - 1)]
        return gather_rows(text)[:count], rows_of_sets


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """L = L_fixed + L_rand (ACE Eq. 9): the sum of an objective's losses, in their order."""
    return reduce(torch.add, losses.values())
