"""CLIP's text transformer, plain and with learned prompt tokens.

Shapes: S phrases, L tokens, D width of the tower, E embedding width, K prompt tokens.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ace_dist.config import TextConfig
from ace_dist.models.text import FrozenText, TextParts, TextTower
from ace_dist.models.tokenizer import CONTEXT_LENGTH, EOS, VOCABULARY, bpe_ids, token_lengths
from ace_dist.utils.errors import ModelError

PROMPT_STD = 0.02  # of learned prompt tokens at the start (ViFi-CLIP)


class ClipTextTower(TextTower):
    """CLIP's text transformer at any width, on transformers' modules; parameter names are Hugging Face's own."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        if config.width % config.heads:
            raise ModelError(f"model.text.width={config.width} is no multiple of model.text.heads={config.heads}")
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection  # here: the import takes seconds

        shape = CLIPTextConfig(
            vocab_size=VOCABULARY, max_position_embeddings=CONTEXT_LENGTH, hidden_size=config.width,
            intermediate_size=int(config.width * config.mlp_ratio), num_hidden_layers=config.depth,
            num_attention_heads=config.heads, projection_dim=config.embed_dim, hidden_act="quick_gelu",
            bos_token_id=EOS - 1, eos_token_id=EOS, pad_token_id=EOS, attn_implementation="sdpa",
        )  # fmt: skip
        model = CLIPTextModelWithProjection(shape)
        self.text_model: Any = model.text_model
        self.text_projection: nn.Linear = model.text_projection
        self.add_lora()
        self.freeze()

    def tokenize(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids = bpe_ids(phrases)
        return ids, token_lengths(ids)

    def run_layer(self, index: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Causal, so what follows EOS changes nothing before it and `lengths` is not needed."""
        return cast(Tensor, self.text_model.encoder.layers[index](hidden, None, is_causal=True))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The EOS token through the final layer norm (the norm is per token, so it may come second)."""
        eos = hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]
        return cast(Tensor, self.text_model.final_layer_norm(eos))

    @property
    def parts(self) -> TextParts:
        model = self.text_model
        return TextParts(model.embeddings, model.encoder.layers, model.final_layer_norm, self.text_projection)


class PromptedClipTextTower(ClipTextTower):
    """CLIP's text transformer with learned tokens between BOS and the phrase; nothing else of its layers trains.

    K tokens are learned for each of the first `prompt_depth` layers and take the place of the layer's own there
    (ViFi-CLIP's deep prompts).
    """

    fresh = ("prompts",)  # no weight file has them

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        if config.trained_layers:
            raise ModelError("model.text.prompt_tokens keeps the layers frozen: set model.text.trained_layers=0")
        shape = (min(config.prompt_depth, config.depth), config.prompt_tokens, config.width)
        self.prompts = nn.Parameter(torch.randn(shape) * PROMPT_STD)

    def tokenize(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """CLIP's tokens with room for the learned ones after BOS. Raises `ModelError` when that is too long."""
        ids, _ = super().tokenize(phrases)
        if ids.shape[1] + self.config.prompt_tokens > CONTEXT_LENGTH:
            raise ModelError(
                f"a phrase of {ids.shape[1]} CLIP tokens leaves no room for model.text.prompt_tokens="
                f"{self.config.prompt_tokens}: {CONTEXT_LENGTH} in all; shorten the longest label or take fewer tokens"
            )
        room = ids.new_zeros(len(ids), self.config.prompt_tokens)
        ids = torch.cat([ids[:, :1], room, ids[:, 1:]], dim=1)
        return ids, token_lengths(ids)

    def frozen_modules(self) -> list[nn.Module]:
        """The token embeddings: learned prompts take positions, and pass all layers, at every step."""
        return [self.text_model.embeddings.token_embedding]

    def frozen_features(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Input embeddings [S,L,D], as every layer sees the prompts."""
        return self.embed(ids)

    def trainable(self, frozen: FrozenText) -> Tensor:
        """Run every layer with its prompts: -> [S,E]."""
        hidden, lengths = frozen
        hidden = hidden.to(self.prompts.dtype)
        positions = self.text_model.embeddings.position_embedding.weight[1 : 1 + self.config.prompt_tokens]
        for index in range(self.config.depth):
            if index < len(self.prompts):
                learned = self.prompts[index] + positions if index == 0 else self.prompts[index]
                parts = [hidden[:, :1], learned.expand(len(hidden), -1, -1), hidden[:, 1 + len(learned) :]]
                hidden = torch.cat(parts, dim=1)
            hidden = self.run_layer(index, hidden, lengths)
        return self.project(self.pool(hidden, lengths))
