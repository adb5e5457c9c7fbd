"""BIKE: frames weighed by each label's words, attributes beside them, and a symmetric loss within the global batch.

Shapes: B clips of this rank, N of all ranks, T frames, D width, C classes.
"""

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from ace_dist.concepts import ConceptDraw
from ace_dist.objectives.concept import ConceptObjective, PlacedDraw
from ace_dist.utils.distributed import gather_rows


class SymmetricObjective(ConceptObjective):
    """Mean of both directions' KL divergence from soft targets: clips of one class share their texts equally."""

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw | PlacedDraw) -> dict[str, Tensor]:
        """Loss over a micro-batch of all ranks together: it depends on the number of micro-batches, not of ranks."""
        video_NTD = gather_rows(self.model.encode_video(video_BTCHW))
        labels_N = gather_rows(labels_B)
        return {"fixed": symmetric_kl(self.root_scores(video_NTD, draw)[:, labels_N], labels_N)}


def symmetric_kl(scores_NN: Tensor, labels_N: Tensor) -> Tensor:
    """Scores of clip i with the text of clip j; targets are uniform over the clips of one class."""
    same = (labels_N[:, None] == labels_N[None, :]).to(scores_NN.dtype)
    target = same / same.sum(1, keepdim=True)
    directions = (scores_NN.log_softmax(1), scores_NN.T.log_softmax(1))
    losses = [kl_div(log_probability, target, reduction="batchmean") for log_probability in directions]
    return torch.stack(losses).mean()
