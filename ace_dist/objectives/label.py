"""The cross-entropy over root labels that the image-model baselines and LaViLa are fine-tuned with."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ace_dist.concepts import ConceptDraw
from ace_dist.objectives.concept import ConceptObjective
from ace_dist.utils.parts import part


class LabelObjective(ConceptObjective):
    """-log softmax of the model's similarity (which may learn its temperature), with label smoothing."""

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> dict[str, Tensor]:
        """Loss of one micro-batch; the draw's fixed labels alone are used."""
        video = self.model.encode_video(video_BTCHW)
        table_PD, rows = self.encode([draw.fixed_rows])
        offsets = [torch.tensor(draw.fixed_rows.offsets)]
        with part("loss"):
            (scores_BC,) = self.model.similarity(video, table_PD, offsets, self.settings.temperature, rows)
        loss = cross_entropy(scores_BC.float(), labels_B, label_smoothing=self.settings.label_smoothing)
        return {"fixed": loss}
