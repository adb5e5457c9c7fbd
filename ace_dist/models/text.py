"""What all text towers share: a frozen part, run once for a phrase, and a trainable tail, run every step.

Shapes: S phrases, L tokens, D width of the tower, E embedding width. Token and position embeddings never train, so with
every layer training the frozen part is the embedding lookup.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ace_dist.config import TextConfig
from ace_dist.models.lora import add_lora, trains_by
from ace_dist.utils.errors import ModelError
from ace_dist.utils.memory import trim_heap

CHUNK = 256  # phrases that the frozen part encodes at a time


class FrozenText(NamedTuple):
    """What does not train of S phrases.

    `features` are embeddings [S,E] when nothing trains, pooled features [S,D] when the projection alone trains, and
    hidden states [S,L,D] below the first trained layer otherwise. `lengths` int64 [S] counts tokens, BOS to EOS.
    """

    features: Tensor
    lengths: Tensor


class TextParts(NamedTuple):
    """The modules of a text tower, from the phrase to its embedding."""

    embeddings: nn.Module
    layers: nn.ModuleList
    norm: nn.Module | None  # after the layers, trained with them
    projection: nn.Module


class TextTower(nn.Module, ABC):
    """A text encoder: `trainable(frozen(phrases))` are the embeddings [S,E], not unit length.

    A subclass says how it tokenises and pools, and names its `parts`. The last `trained_layers` layers train
    with the norm after them (with `lora_rank` updates of these layers alone), and the projection with
    `train_projection`. No tower uses dropout, so an embedding does not depend on the mode, the batch or the rank.
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

    def embed(self, ids: Tensor) -> Tensor:
        """Input of the first layer, [S,L,D]."""
        return cast(Tensor, self.parts.embeddings(input_ids=ids))

    @abstractmethod
    def run_layer(self, index: int, hidden: Tensor, lengths: Tensor) -> Tensor:
        """One layer, [S,L,D] -> [S,L,D]."""

    @abstractmethod
    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[S,L,D] -> [S,D], the final norm included."""

    @property
    @abstractmethod
    def parts(self) -> TextParts: ...

    def project(self, pooled: Tensor) -> Tensor:
        """[S,D] -> [S,E]."""
        return cast(Tensor, self.parts.projection(pooled))

    def frozen_modules(self) -> list[nn.Module]:
        """The modules that `frozen` alone uses: no step needs them once the phrases are known."""
        parts = self.parts
        modules = [parts.embeddings, *parts.layers[: self.first_trained]]
        if not self.config.trained_layers:
            modules += [parts.norm] if parts.norm is not None else []
            modules += [] if self.config.train_projection else [parts.projection]
        return modules

    @property
    def runs_layers(self) -> bool:
        """Whether `trainable` runs layers, and not the projection alone."""
        return bool(self.config.trained_layers or self.config.prompt_tokens)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def add_lora(self) -> None:
        """Give the layers that train the updates of `model.text.lora_rank`, if there are any."""
        add_lora(self.parts.layers[self.first_trained :], self.config)

    def freeze(self) -> None:
        """Set `requires_grad` of every parameter from the configuration."""
        parts = self.parts
        self.requires_grad_(False)
        for name, parameter in parts.layers[self.first_trained :].named_parameters():
            parameter.requires_grad_(trains_by(self.config, name))
        if parts.norm is not None:
            parts.norm.requires_grad_(self.config.trained_layers > 0 and not self.config.lora_rank)
        parts.projection.requires_grad_(self.config.train_projection)

    def release(self, stored: Callable[[str], Tensor]) -> None:
        """Free the weights that only `frozen` uses. When it needs them again, it reads them by name from `stored`.

        The parameters keep shape, type and device, and hold NaN, so that any other use shows.
        """
        self.stored = stored
        for parameter in self.released_parameters().values():
            parameter.data = parameter.new_full((), torch.nan).expand(parameter.shape)
        trim_heap()

    def released_parameters(self) -> dict[str, nn.Parameter]:
        frozen = {parameter for module in self.frozen_modules() for parameter in module.parameters()}
        return {name: parameter for name, parameter in self.named_parameters() if parameter in frozen}

    @contextmanager
    def whole(self) -> Iterator[None]:
        if self.stored is None:
            yield
            return
        for name, parameter in self.released_parameters().items():
            parameter.data = self.stored(name).to(parameter.device, parameter.dtype, copy=True)
        try:
            yield
        finally:
            self.release(self.stored)

    @torch.no_grad()
    def frozen(self, phrases: Sequence[str]) -> FrozenText:
        """Run the part that does not train, in chunks of phrases of like length, on the tower's device."""
        ids, lengths = self.tokenize(phrases)
        order = lengths.argsort(stable=True)
        chunks = []
        with self.whole():
            for rows in torch.split(order, CHUNK):
                longest = int(lengths[rows].max())
                features = self.frozen_features(ids[rows, :longest].to(self.device), lengths[rows].to(self.device))
                if features.dim() == 3:
                    features = nn.functional.pad(features, (0, 0, 0, ids.shape[1] - longest))
                chunks.append(features)
        return FrozenText(torch.cat(chunks)[order.argsort().to(self.device)], lengths.to(self.device))

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
        features = features.to(next(self.parameters()).dtype)  # an engine may have cast the tower since
        if not self.config.trained_layers:
            return self.project(features) if self.config.train_projection else features
        for index in range(self.first_trained, self.config.depth):
            features = self.run_layer(index, features, lengths)
        return self.project(self.pool(features, lengths))

    def forward(self, phrases: Sequence[str]) -> Tensor:
        """Encode S phrases without a cache: -> [S,E]."""
        return self.over_prompts(self.trainable(self.frozen(self.sentences(phrases))))

    def sentences(self, phrases: Sequence[str]) -> list[str]:
        """Each phrase in each of the P prompts, a phrase's sentences side by side."""
        return [prompt.replace("{}", phrase) for phrase in phrases for prompt in self.config.prompts]

    def over_prompts(self, sentences: Tensor) -> Tensor:
        """Embeddings [S*P,E] of `sentences` -> [S,E], their mean before any normalisation (as ProcedureVRL's)."""
        count = len(self.config.prompts)
        return sentences if count == 1 else sentences.unflatten(0, (-1, count)).mean(1)
