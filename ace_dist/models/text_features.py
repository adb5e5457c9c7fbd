"""The text feature cache: what does not train of every phrase, computed once, so that a step gathers and completes it.

And whole embeddings of phrases, for a model that trains no more.

Shapes: n rows of the cache, E embedding width.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ace_dist.models.text import FrozenText, TextTower
from ace_dist.utils.errors import ModelError
from ace_dist.utils.memory import send

Array = NDArray[np.int64]


class TextFeatureCache:
    """The frozen features of known phrases, and the tower whose trainable tail completes them.

    Exact: `encode` equals the tower's live encoding. Build it after the tower's weights are loaded and on the device
    where it trains; changing the frozen part later makes it stale. Repeated phrases are kept once.
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

    def indices(self, phrases: Sequence[str]) -> Tensor:
        """Rows of phrases, int64 [n] on the CPU. Raises `ModelError`, which names a phrase that the cache lacks."""
        try:
            return torch.tensor([self.positions[phrase] for phrase in phrases], dtype=torch.int64)
        except KeyError as error:
            raise ModelError(
                f"the phrase {error.args[0]!r} is not among the {len(self)} of the text feature cache; add it to the "
                f"labels or to the synonym tree file (dataset.synonyms)"
            ) from None

    def encode(self, rows: Tensor) -> Tensor:
        """Embed phrases by their rows int64 [n] -> [n,E], with gradients; repeated rows are computed once.

        Rows on the CPU are best: finding repeats among rows on a GPU would make the host wait for it.
        """
        distinct, inverse = torch.unique(rows, return_inverse=True)
        if len(distinct) == len(rows):
            return self.encode_distinct(rows)
        return self.encode_distinct(distinct)[send(inverse, self.device)]

    def encode_distinct(self, rows: Tensor) -> Tensor:
        """`encode` for rows without repeats."""
        return self.complete(send(torch.from_numpy(self.sentences(rows.cpu().numpy())), self.device))

    def sentences(self, rows: Array) -> Array:
        """The kept sentences of phrases by their rows: those of all prompts, phrase by phrase."""
        count = len(self.tower.config.prompts)
        return (rows[:, None] * count + np.arange(count)).ravel()

    def complete(self, sentences: Tensor) -> Tensor:
        """The trainable tail on what is kept of sentences, averaged over the prompts."""
        chosen = FrozenText(*(part[sentences] for part in self.frozen))
        return self.tower.over_prompts(self.tower.trainable(chosen))

    @property
    def device(self) -> torch.device:
        return self.frozen.features.device

    @property
    def memory_mib(self) -> float:
        return sum(part.numel() * part.element_size() for part in self.frozen) / 2**20


class PhraseCache:
    """The embeddings [E] of the phrases that were asked for last, at most `most`; threads may share it.

    For a model whose weights do not change: they would make it stale.
    """

    def __init__(self, most: int) -> None:
        self.most, self.lock = most, threading.Lock()
        self.kept: OrderedDict[str, Tensor] = OrderedDict()

    def encode(self, phrases: Sequence[str], encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
        """Embeddings [n, E] of phrases; `encode` is called for the new ones alone, each once."""
        distinct = dict.fromkeys(phrases)
        with self.lock:
            found = {phrase: self.kept[phrase] for phrase in distinct if phrase in self.kept}
        if new := [phrase for phrase in distinct if phrase not in found]:
            found |= {phrase: row.clone() for phrase, row in zip(new, encode(new), strict=True)}
        with self.lock:
            for phrase in distinct:
                self.kept[phrase] = found[phrase]
                self.kept.move_to_end(phrase)
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)
        return torch.stack([found[phrase] for phrase in phrases])
