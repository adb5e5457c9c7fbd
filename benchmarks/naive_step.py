"""Algorithm 1 of the paper written plainly on Hugging Face's models: the baseline of `bench_step.py`, and a reference.

Every phrase of every label set is tokenised to CLIP's 77 tokens and passes the whole text transformer at each step; the
similarities with all phrases are formed [B, S], divided by τ, averaged over each class, and joined by the shadow's.
Parameters that do not train have `requires_grad` off, as anyone would set it. Stochastic depth is left out: the model's
configuration takes whole numbers alone for its rate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    TimesformerConfig,
    TimesformerForVideoClassification,
)

from ace_dist.concepts import ConceptDraw, Phrases
from ace_dist.config import MethodConfig
from ace_dist.models.convert.layouts import convert
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.text_clip import ClipTextTower
from ace_dist.models.timesformer import TimeSformer
from ace_dist.models.tokenizer import CONTEXT_LENGTH, EOS, VOCABULARY, bpe_ids
from ace_dist.models.video import resize_times


class NaiveVideo(nn.Module):
    """Hugging Face's TimeSformer with a linear head, with the weights and the trained parts of one of ours."""

    def __init__(self, ours: TimeSformer, frames: int) -> None:
        super().__init__()
        c = ours.config
        self.network = TimesformerForVideoClassification(
            TimesformerConfig(
                image_size=c.image_size,
                patch_size=c.patch,
                num_frames=frames,
                hidden_size=c.width,
                num_hidden_layers=c.depth,
                num_attention_heads=c.heads,
                intermediate_size=int(c.width * c.mlp_ratio),
                num_labels=c.embed_dim,
            )
        )
        theirs = dict(self.network.named_parameters())
        values = ours.state_dict()
        values["time_embed"] = resize_times(values["time_embed"], frames, c.time_embed_resize)
        trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad}
        for name, parameter in convert(theirs, "hf_timesformer", "timesformer").state.items():
            parameter.data.copy_(values[name])
            parameter.requires_grad_(name in trained)

    def forward(self, video_BTCHW: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, E]."""
        embedding: Tensor = self.network(video_BTCHW).logits
        return embedding


class NaiveText(nn.Module):
    """Hugging Face's CLIP text model on phrases padded to 77 tokens (or to the longest), with our tower's weights."""

    def __init__(self, ours: ClipTextTower, padded: bool = True) -> None:
        super().__init__()
        c = ours.config
        self.padded = padded
        self.clip = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=VOCABULARY,
                max_position_embeddings=CONTEXT_LENGTH,
                hidden_size=c.width,
                intermediate_size=int(c.width * c.mlp_ratio),
                num_hidden_layers=c.depth,
                num_attention_heads=c.heads,
                projection_dim=c.embed_dim,
                bos_token_id=EOS - 1,
                eos_token_id=EOS,
                pad_token_id=EOS,
            )
        )
        self.clip.load_state_dict(ours.state_dict(), strict=True)
        trains = dict(ours.named_parameters())
        for name, parameter in self.clip.named_parameters():
            parameter.requires_grad_(trains[name].requires_grad)

    def forward(self, phrases: list[str]) -> Tensor:
        """Phrases -> [S, E]."""
        ids = bpe_ids(phrases)
        ids = functional.pad(ids, (0, CONTEXT_LENGTH - ids.shape[1]), value=EOS) if self.padded else ids
        embeddings: Tensor = self.clip(input_ids=ids.to(self.clip.device)).text_embeds
        return embeddings


def naive_similarity(video_BD: Tensor, text_SD: Tensor, phrases: Phrases, temperature: float) -> Tensor:
    """ACE Eq. 3 through the [B, S] matrix of cosines."""
    cosines = functional.normalize(video_BD, dim=1) @ functional.normalize(text_SD, dim=1).T
    return torch.stack([part.mean(1) for part in (cosines / temperature).split([len(g) for g in phrases], 1)], 1)


def naive_loss(
    video_BD: Tensor, encoded: dict[str, Tensor], draw: ConceptDraw, labels_B: Tensor, settings: MethodConfig
) -> Tensor:
    """ACE Eq. 8 and 9: fixed and random labels, each with the shadow negative of a video's own class."""
    logits = {
        name: naive_similarity(video_BD, text_SD, getattr(draw, name), settings.temperature)
        for name, text_SD in encoded.items()
    }
    shadow = logits.pop("shadow").gather(1, labels_B[:, None])
    return sum(
        (functional.cross_entropy(torch.cat([part, shadow], 1), labels_B) for part in logits.values()),
        start=video_BD.new_zeros(()),
    )


class NaiveStep(nn.Module):
    """One forward pass of Algorithm 1 with the weights of a dual encoder: video, labels and drawn phrases -> loss."""

    def __init__(self, model: DualEncoder, frames: int, settings: MethodConfig, padded: bool = True) -> None:
        super().__init__()
        assert isinstance(model.text, ClipTextTower)
        self.video, self.text = NaiveVideo(model.video, frames), NaiveText(model.text, padded)
        self.settings = settings

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> Tensor:
        """The loss of Eq. 9, a scalar."""
        encoded = {
            name: self.text([phrase for group in getattr(draw, name) for phrase in group])
            for name in ("fixed", "random", "shadow")
        }
        return naive_loss(self.video(video_BTCHW), encoded, draw, labels_B, self.settings)
