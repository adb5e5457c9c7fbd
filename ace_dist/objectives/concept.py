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
from ace_dist.objectives.text_terms import changed_similarities, concept_margin, pull_to_start
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
    phrases: Tensor | None = None  # int64 [P], those of the sampler; with `method.distil`


class ConceptObjective(nn.Module):
    """L = L_fixed + L_rand (ACE Eq. 9), each a (C+1)-way cross-entropy over averaged cosines (Eq. 8).

    The module holds the encoders, so that a training engine can wrap it whole. The frozen part of the text encoder
    runs here, once for every phrase that the sampler can draw; row i of the cache is phrase i of the sampler.
    """

    shadows_are_sets = False  # whether shadow negatives are laid out as label sets behind the others

    def __init__(self, model: DualEncoder, sampler: ConceptSampler, settings: MethodConfig) -> None:
        super().__init__()
        self.model = model
        self.sampler = sampler
        self.settings = settings
        self.text_features = model.build_text_features(sampler.phrases)
        if tuple(settings.shadow_band) != (0, 1):
            sampler.narrow_shadows(self.shadow_similarities(), *settings.shadow_band)
        text = {name: p for name, p in model.text.named_parameters() if p.requires_grad}
        self.start = {name: p.detach().float().clone() for name, p in text.items()} if settings.l2_sp else {}
        self.start_text_SD = self.start_text() if settings.distil else None

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
        labels = len(parts) if self.shadows_are_sets else len(sets)
        shadowed = len(parts) > labels
        first, last = self.share(len(distinct_P))
        layout = ConceptLayout.build(
            [each.offsets for each in parts[:labels]], rows[:labels],
            draw.shadow_rows.offsets if shadowed else None, rows[-1] if shadowed else None, height=len(distinct_P),
            device=self.text_features.device,
            beside=self.text_features.sentences(distinct_P[min(first, len(distinct_P) - 1) : last]),
        )  # fmt: skip
        phrases = torch.from_numpy(distinct_P).to(layout.offsets.device) if self.settings.distil else None
        return PlacedDraw(layout, tuple(sets), phrases)

    def share(self, phrases: int) -> tuple[int, int]:
        """First and last of the phrases that this rank encodes."""
        if not dist.is_initialized() or not self.model.text.runs_layers:
            return 0, phrases
        size = -(-phrases // dist.get_world_size())
        return dist.get_rank() * size, (dist.get_rank() + 1) * size

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw | PlacedDraw) -> dict[str, Tensor]:
        """Scalar losses of one micro-batch, on the device: "fixed" and "random", less what is switched off, and
        `text_losses`.
        """
        placed = draw if isinstance(draw, PlacedDraw) else self.place(draw)
        video_BD = self.model.encode_video(video_BTCHW)
        table_PD = self.encode(placed)
        with part("loss"):
            losses_R = concept_cross_entropy_sets(
                video_BD, table_PD, placed.layout, labels_B, self.settings.temperature
            )
            text = self.text_losses(table_PD, placed)
        return dict(zip(placed.sets, losses_R.unbind(), strict=True)) | text

    def text_losses(self, table_PD: Tensor, placed: PlacedDraw) -> dict[str, Tensor]:
        """Losses on the text side alone, each times its weight; cosines count over the temperature, as in Eq. 8."""
        settings, losses = self.settings, dict[str, Tensor]()
        if settings.l2_sp:
            trained = {name: p for name, p in self.model.text.named_parameters() if name in self.start}
            losses["l2_sp"] = settings.l2_sp * pull_to_start(trained, self.start)
        if self.start_text_SD is not None:
            start_PD = self.start_text_SD[placed.phrases]
            losses["distil"] = settings.distil * changed_similarities(table_PD, start_PD) / settings.temperature
        if settings.margin:
            layout = placed.layout.to(table_PD.device)
            assert layout.rows is not None and layout.sizes is not None
            sizes = layout.sizes[: layout.set_classes[0]]  # of the first label set
            text_SD = table_PD[layout.rows[: sum(sizes)]]
            losses["margin"] = concept_margin(text_SD, sizes, settings.margin) / settings.temperature
        return losses

    def constants(self) -> list[Tensor]:
        """What the losses read beside parameters and buffers: a copy on another device has to have it there, too."""
        start_text = [] if self.start_text_SD is None else [self.start_text_SD]
        return [*self.text_features.frozen, *self.start.values(), *start_text]

    @torch.no_grad()
    def start_text(self) -> Tensor:
        """Embeddings [S, D] of every phrase of the sampler as the text tower has them before training."""
        return self.text_features.encode(torch.arange(len(self.text_features))).float()

    def shadow_similarities(self) -> list[list[float]]:
        """Of each class, the cosine of each of its wrong labels with its root label before training, as means."""
        text_SD = torch.nn.functional.normalize(self.start_text(), dim=1).cpu()

        def mean(rows: tuple[int, ...]) -> Tensor:
            return torch.nn.functional.normalize(text_SD[list(rows)].mean(0), dim=0)

        fixed = [mean(rows) for rows in self.sampler.root_rows()]
        return [
            [float(mean(rows) @ root) for rows in pool]
            for pool, root in zip(self.sampler.shadow_verbs, fixed, strict=True)
        ]

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
