"""The cross-entropy over root labels that the image-model baselines and LaViLa are fine-tuned with."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from ace_dist.concepts import ConceptDraw
from ace_dist.objectives.concept import ConceptObjective, PlacedDraw


class LabelObjective(ConceptObjective):
    """-log softmax of the model's similarity (which may learn its temperature), with label smoothing."""

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw | PlacedDraw) -> dict[str, Tensor]:
        scores_BC = self.root_scores(self.model.encode_video(video_BTCHW), draw)
        return {"fixed": cross_entropy(scores_BC, labels_B, label_smoothing=self.settings.label_smoothing)}
