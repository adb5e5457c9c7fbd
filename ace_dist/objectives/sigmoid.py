"""SigLIP's sigmoid loss (Zhai et al. 2023) in the form that ACE needs: on actions with synonyms, and with shadows.

Shapes: B clips, C classes, D width.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from ace_dist.concepts import ConceptDraw
from ace_dist.objectives.concept import ConceptObjective, PlacedDraw
from ace_dist.utils.parts import part


class SigmoidObjective(ConceptObjective):
    """Each clip is asked of every action alone whether it shows it, for fixed and for drawn labels.

        z_bc = s · S(I_b, c) + t          S: mean cosine over the synonyms of action c, over τ (ACE Eq. 3)
        L    = - 1/B Σ_b [ Σ_c log σ(y_bc z_bc) + log σ(-z'_b) ]

    y_bc is +1 for the action c of clip b and -1 for all others; z'_b is the score of the shadow negative of the clip's
    own action (Eq. 6, 7), which Eq. 8 adds as well, and falls away without shadow negatives. Scale s and bias t are
    learned (`model.similarity`). Neither term knows of other clips, so the loss does not depend on the batch.
    """

    shadows_are_sets = True

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw | PlacedDraw) -> dict[str, Tensor]:
        placed = draw if isinstance(draw, PlacedDraw) else self.place(draw)
        video_BD = self.model.encode_video(video_BTCHW)
        table_PD = self.encode(placed)
        with part("loss"):
            scores = self.model.similarity(video_BD, table_PD, placed.layout, self.settings.temperature)
            shadow_BC = scores[len(placed.sets)] if self.settings.shadow_negatives else None
            sets = zip(placed.sets, scores, strict=False)  # behind the sets stand the shadows
            return {name: sigmoid_loss(scores_BC, labels_B, shadow_BC) for name, scores_BC in sets}


def sigmoid_loss(scores_BC: Tensor, labels_B: Tensor, shadow_BC: Tensor | None) -> Tensor:
    """The loss above of scores z [B,C] and of the shadows' [B,C], of which each clip's own one counts."""
    signs_BC = 2 * one_hot(labels_B, scores_BC.shape[1]) - 1
    losses_B = -logsigmoid(signs_BC * scores_BC).sum(1)
    if shadow_BC is not None:
        losses_B = losses_B - logsigmoid(-shadow_BC.gather(1, labels_B[:, None])[:, 0])
    return losses_B.mean()
