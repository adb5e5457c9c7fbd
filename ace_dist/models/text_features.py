"""The text feature cache: what does not train of every phrase, computed once, so a step encodes text by a gather."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ace_dist.models.text import FrozenText, TextTower
from ace_dist.utils.errors import ModelError
from ace_dist.utils.transfer import send


class TextFeatureCache:
    """The frozen features of known phrases, and the tower whose trainable tail completes them.

    Exact, not an approximation: `encode` equals the tower's live encoding. Build it after the tower's weights are
    loaded and on the device where it trains; changing the frozen part later makes it stale. Repeated phrases are kept
    once.
    """

    def __init__(self, tower: TextTower, phrases: Iterable[str]) -> None:
        self.tower = tower
        self.phrases = tuple(dict.fromkeys(phrases))
        if not self.phrases:
            raise ModelError("there is no phrase to encode; check the labels and the synonym tree file")
        self.positions = {phrase: index for index, phrase in enumerate(self.phrases)}
        self.frozen: FrozenText = tower.frozen(tower.sentences(self.phrases))

    def __len__(self) -> int:
        return len(self.phrases)

    def __contains__(self, phrase: str) -> bool:
        return phrase in self.positions

    def index(self, phrase: str) -> int:
        """Row of a phrase. Raises `ModelError`, which names it."""
        try:
            return self.positions[phrase]
        except KeyError:
            raise ModelError(
                f"the phrase {phrase!r} is not among the {len(self)} of the text feature cache; add it to the labels "
                "or to the synonym tree file (dataset.synonyms)"
            ) from None

    def indices(self, phrases: Sequence[str]) -> Tensor:
        """Rows of several phrases, int64 [n] on the CPU."""
        return torch.tensor([self.index(phrase) for phrase in phrases], dtype=torch.int64)

    def encode(self, indices: Tensor) -> Tensor:
        """Embed the phrases at `indices` int64 [n] -> [n,E], with gradients to what trains of the tower.

        A row that is asked for several times is computed once. Indices on the CPU are best: finding repeats among
        indices on a GPU would make the host wait for it.
        """
        rows, inverse = torch.unique(indices, return_inverse=True)
        if len(rows) == len(indices):
            return self.embed(indices)
        return self.embed(rows)[send(inverse, self.device)]

    def embed(self, rows: Tensor) -> Tensor:
        """The trainable tail on distinct phrases int64 [n] -> [n,E]."""
        count = len(self.tower.config.prompts)
        sentences = (rows[:, None] * count + torch.arange(count, device=rows.device)).flatten()
        return self.tower.over_prompts(self.tower.trainable(self.frozen.rows(send(sentences, self.device))))

    def to(self, device: torch.device | str) -> TextFeatureCache:
        """Move the features (in place), as `nn.Module.to` does; the tower is moved by its owner."""
        self.frozen = self.frozen.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.frozen.features.device

    @property
    def memory_mib(self) -> float:
        """Memory of the features, in MiB."""
        return sum(part.numel() * part.element_size() for part in self.frozen) / 2**20
