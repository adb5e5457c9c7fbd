"""Algorithm 1 of the paper written plainly on the library's models: the baseline of `bench_step.py`, and a reference.

The paper's encoders are Hugging Face's, the others open_clip's.

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
from ace_dist.models.frames import FrameTower
from ace_dist.models.open_clip import build_image_network, build_text_network
from ace_dist.models.text_clip import ClipTextTower
from ace_dist.models.text_open_clip import OpenClipTextTower
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


class LibraryVideo(nn.Module):
    """open_clip's image tower on every frame, and their mean, with the weights and the trained parts of one of ours."""

    def __init__(self, ours: FrameTower) -> None:
        super().__init__()
        self.network = build_image_network(ours.config)
        copy_parameters(ours.visual, self.network)

    def forward(self, video_BTCHW: Tensor) -> Tensor:
        """[B, T, 3, H, W] -> [B, E]."""
        network = self.network["trunk"] if isinstance(self.network, nn.ModuleDict) else self.network
        frames: Tensor = network(video_BTCHW.flatten(0, 1))
        return frames.unflatten(0, (len(video_BTCHW), -1)).mean(1)


class LibraryText(nn.Module):
    """open_clip's text tower on phrases padded to its context, with the weights and trained parts of one of ours."""

    def __init__(self, ours: OpenClipTextTower) -> None:
        super().__init__()
        self.network = network = build_text_network(ours.config)
        self.tokenize, self.context = ours.tokenize, ours.config.context
        network.positional_embedding.data.copy_(ours.embeddings.positional_embedding)
        network.positional_embedding.requires_grad_(False)
        copy_parameters(ours.embeddings.token_embedding, network.token_embedding)
        copy_parameters(ours.layers, network.transformer.resblocks)
        copy_parameters(ours.ln_final, network.ln_final)
        if isinstance(network.text_projection, nn.Linear):
            copy_parameters(ours.text_projection, network.text_projection)
        else:
            network.text_projection.data.copy_(ours.text_projection.weight.T)

    def forward(self, phrases: list[str]) -> Tensor:
        """Phrases -> [S, E]."""
        ids, lengths = self.tokenize(phrases)
        ids = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], 0)
        ids = functional.pad(ids, (0, self.context - ids.shape[1]))
        embeddings: Tensor = self.network(ids.to(self.network.positional_embedding.device))
        return embeddings


def copy_parameters(ours: nn.Module, theirs: nn.Module) -> None:
    """Weights, and which of them train."""
    theirs.load_state_dict(ours.state_dict())
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.requires_grad_(own.requires_grad)


class NaiveStep(nn.Module):
    """One forward pass of Algorithm 1 with the weights of a dual encoder: video, labels and drawn phrases -> loss."""

    def __init__(self, model: DualEncoder, frames: int, settings: MethodConfig, padded: bool = True) -> None:
        super().__init__()
        self.video: nn.Module
        self.text: nn.Module
        if isinstance(model.text, OpenClipTextTower):
            self.video, self.text = LibraryVideo(model.video), LibraryText(model.text)
        else:
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
