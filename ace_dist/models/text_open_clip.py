"""Text towers of open_clip: CLIP's in any activation, SigLIP's, Perception Encoder's, each with its own tokens.

Shapes: S phrases, L tokens, D width of the tower, E embedding width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ace_dist.config import TextConfig
from ace_dist.models.open_clip import build_text_network, text_cleaning
from ace_dist.models.text import TextParts, TextTower
from ace_dist.models.tokenizer import VOCABULARY, bpe_ids, token_lengths, tokenizer_ids
from ace_dist.utils.errors import ModelError


class TokenEmbeddings(nn.Module):
    """Ids [S,L] -> the input of the first layer [S,L,D]: token and position."""

    def __init__(self, token_embedding: nn.Embedding, positional_embedding: nn.Parameter) -> None:
        super().__init__()
        self.token_embedding = token_embedding
        self.positional_embedding = positional_embedding

    def forward(self, input_ids: Tensor) -> Tensor:
        return cast(Tensor, self.token_embedding(input_ids)) + self.positional_embedding[: input_ids.shape[1]]


class OpenClipTextTower(TextTower):
    """open_clip's text transformer at any size: causal, read at EOS (CLIP, PE-Core), or not, read at an end (SigLIP).

    A causal tower leaves the padding after EOS away, which changes nothing. SigLIP's sees it: every phrase is padded to
    `model.text.context`, as in its training.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        if config.width % config.heads:
            raise ModelError(f"model.text.width={config.width} is no multiple of model.text.heads={config.heads}")
        if config.tokenizer is None and config.vocabulary != VOCABULARY:
            raise ModelError(
                f"model.text.arch={config.arch} has {config.vocabulary} tokens of its own: give their file as "
                f"model.text.tokenizer (`ace weights get` or `import` writes it), or set "
                f"model.text.vocabulary={VOCABULARY} for CLIP's"
            )
        network = build_text_network(config)
        self.embeddings = TokenEmbeddings(network.token_embedding, network.positional_embedding)
        self.layers: nn.ModuleList = network.transformer.resblocks
        self.ln_final: nn.Module = network.ln_final
        self.text_projection = as_linear(network.text_projection)
        self.pool_type: str = network.pool_type
        self.is_causal = network.attn_mask is not None
        self.cleaning = text_cleaning(config.arch)
        self.add_lora()
        self.freeze()

    def tokenize(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and lengths; of a tower that sees the padding, every length is `model.text.context`."""
        config = self.config
        if config.tokenizer is None:
            ids = bpe_ids(phrases, config.context)
            lengths = token_lengths(ids)
            if self.is_causal:
                return ids, lengths
            ids = ids.masked_fill(torch.arange(ids.shape[1]) >= lengths[:, None], 0)  # as open_clip pads CLIP's tokens
            ids = nn.functional.pad(ids, (0, config.context - ids.shape[1]))
        else:
            ids, lengths = tokenizer_ids(config.tokenizer, phrases, config.context, config.vocabulary, self.cleaning)
        return ids, lengths if self.is_causal else torch.full_like(lengths, config.context)

    def run_layer(self, index: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        mask = None
        if self.is_causal:
            mask = hidden.new_full((hidden.shape[1],) * 2, -torch.inf).triu(1)
        return cast(Tensor, self.layers[index](hidden, attn_mask=mask))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The final norm of the token that the tower is read at (the norm is per token, so it may come second)."""
        places: Any = {"first": 0, "last": -1}.get(self.pool_type, lengths - 1)
        return cast(Tensor, self.ln_final(hidden[torch.arange(len(hidden), device=hidden.device), places]))

    @property
    def parts(self) -> TextParts:
        return TextParts(self.embeddings, self.layers, self.ln_final, self.text_projection)


def as_linear(projection: nn.Linear | nn.Parameter) -> nn.Linear:
    """open_clip's projection as a layer; without a bias it is a matrix [D,E] that is multiplied from the right."""
    if isinstance(projection, nn.Linear):
        return projection
    width, embed_dim = projection.shape
    layer = nn.Linear(width, embed_dim, bias=False, device=projection.device)
    layer.weight = nn.Parameter(projection.detach().T.contiguous())
    return layer
