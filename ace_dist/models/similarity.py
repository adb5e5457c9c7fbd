"""How videos are compared with labels: S(I, a) of ACE Eq. 3, with a learned temperature, and BIKE's spotting.

Shapes: B clips, T frames, S phrases, C classes, A attributes, D width of the shared space.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from ace_kernels import ConceptLayout, concept_similarity_sets
from torch import Tensor, nn
from torch.nn.functional import normalize

from ace_dist.config import SimilarityConfig, resolve_path
from ace_dist.models.text import TextTower
from ace_dist.utils.errors import ModelError
from ace_dist.utils.reading import why_no_file

START_BIAS = -10.0  # of a sigmoid loss, when no weights say another (SigLIP, algorithm 1)
LOGIT_SCALE, LOGIT_BIAS = "similarity.logit_scale", "similarity.logit_bias"  # in files of open_clip's image side
SPOTTING_TEMPERATURE = 0.01  # of the softmax over frames (BIKE)


class Similarity(nn.Module):
    """S(I, a) of several label sets: the mean cosine of a video with the phrases of a class, over the temperature.

    With `learn_temperature` the factor exp(log_scale), 1 at the start, is learned (CLIP's logit scale), with `bias` a
    summand. Their shape is [1] because DeepSpeed takes no tensor without a dimension.
    """

    def __init__(self, settings: SimilarityConfig) -> None:
        super().__init__()
        self.settings = settings
        self.log_scale = nn.Parameter(torch.zeros(1)) if settings.learn_temperature else None
        self.bias = nn.Parameter(torch.full((1,), START_BIAS)) if settings.bias else None

    def forward(self, video: Tensor, table_PD: Tensor, layout: ConceptLayout, temperature: float) -> list[Tensor]:
        """Scores [B,C] of each label set of the layout, whose phrases are rows of the table."""
        return self.scale(self.cosines(video, table_PD, layout, temperature))

    def cosines(self, video: Tensor, table_PD: Tensor, layout: ConceptLayout, temperature: float = 1.0) -> list[Tensor]:
        """Mean cosines [B,C] of each label set, over the temperature: without the learned scale and bias."""
        return concept_similarity_sets(video, table_PD, layout, temperature)

    def learned_temperature(self, temperature: float) -> float:
        """What a softmax over scores divides `cosines` by: `temperature` over the learned scale."""
        return temperature if self.log_scale is None else temperature / float(self.log_scale.detach().exp())

    def scale(self, scores: Sequence[Tensor]) -> list[Tensor]:
        if self.log_scale is None:
            return list(scores)
        scores = [values * self.log_scale.to(values).exp() for values in scores]
        return scores if self.bias is None else [values + self.bias.to(values) for values in scores]

    @torch.no_grad()
    def start_at(self, logits: Mapping[str, Tensor], temperature: float) -> None:
        """Begin with the scale and bias of an image-text model's logits, where those are learned.

        The factor stands beside 1/`temperature`, so both together are the model's scale.
        """
        if self.bias is None or self.log_scale is None or not logits.keys() >= {LOGIT_SCALE, LOGIT_BIAS}:
            return
        self.log_scale.copy_(logits[LOGIT_SCALE] + math.log(temperature))
        self.bias.copy_(logits[LOGIT_BIAS])

    def logits(self, temperature: float) -> dict[str, Tensor]:
        """The scale and bias as a file of weights has them, for `start_at`; nothing where they are not learned."""
        if self.bias is None or self.log_scale is None:
            return {}
        return {LOGIT_SCALE: self.log_scale - math.log(temperature), LOGIT_BIAS: self.bias}


class Spotting(Similarity):
    """BIKE: a video is pooled anew for each phrase, frames weighed by their likeness to it; attributes vote beside.

    Video embeddings are those of the frames, [B,T,D]. The attribute branch takes the `top` attributes nearest to the
    video's mean, and compares the mean of their text embeddings with the phrase; `attribute_share` is its weight.
    """

    attributes: Tensor  # unit text embeddings [A,D], a constant: the text tower is frozen

    def __init__(self, settings: SimilarityConfig, width: int) -> None:
        super().__init__(settings)
        self.words = read_attributes(settings.attributes)
        self.register_buffer("attributes", torch.zeros(len(self.words), width))

    @torch.no_grad()
    def embed_attributes(self, tower: TextTower) -> None:
        if self.words:
            self.attributes.copy_(normalize(tower(self.words).float(), dim=1))

    def cosines(self, video: Tensor, table_PD: Tensor, layout: ConceptLayout, temperature: float = 1.0) -> list[Tensor]:
        frames, table = normalize(video.float(), dim=2), normalize(table_PD.float(), dim=1)
        likeness = torch.einsum("btd,pd->bpt", frames, table)
        pooled = torch.einsum("bpt,btd->bpd", (likeness / SPOTTING_TEMPERATURE).softmax(2), frames)
        pooled = normalize(pooled, dim=2) if self.settings.normalise_pooled else pooled
        cosines_BP = torch.einsum("bpd,pd->bp", pooled, table)
        if self.words:
            share, attributes = self.settings.attribute_share, self.attributes.to(frames)
            nearest = (frames.mean(1) @ attributes.T).topk(min(self.settings.top, len(attributes)), dim=1).indices
            said_BD = normalize(attributes[nearest].mean(1), dim=1)
            cosines_BP = (1 - share) * cosines_BP + share * said_BD @ table.T
        layout = layout.to(cosines_BP.device)
        assert layout.rows is not None and layout.sizes is not None
        groups = cosines_BP[:, layout.rows].split(layout.sizes, dim=1)
        scores_BN = torch.stack([group.mean(1) for group in groups], dim=1) / temperature
        return list(scores_BN.split(layout.set_classes, dim=1))


def read_attributes(path: str | None) -> list[str]:
    """Attributes of a text file, one a line, `#` starts a comment. Raises `ModelError` naming the file."""
    if path is None:
        return []
    file = resolve_path(path)
    if not file.is_file():
        raise ModelError(f"{file} {why_no_file(file)} (model.similarity.attributes); give a text file, or null")
    lines = [line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    words = list(dict.fromkeys(line for line in lines if line))
    if not words:
        raise ModelError(f"{file} (model.similarity.attributes) holds no attribute")
    return words
