"""CLIP's byte-pair tokens: open_clip's tokenizer, padded to the longest phrase of the call instead of to 77."""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ace_dist.utils.errors import ModelError, UserError

CONTEXT_LENGTH = 77  # tokens, BOS and EOS included (CLIP)
EOS = 49407  # also the largest id, and the padding of Hugging Face's CLIP
VOCABULARY = 49408


def bpe_ids(phrases: Sequence[str]) -> Tensor:
    """CLIP's token ids int64 [S,L]: BOS, tokens, EOS, then EOS up to the longest phrase.

    Text is fixed, unescaped, lower-cased and its white space joined, as CLIP does. Cutting the padding is exact, as
    CLIP's mask is causal and it reads the first EOS. Raises `ModelError` for a phrase of more than 77 tokens.
    """
    bpe = load_bpe()
    rows = [[bpe.sot_token_id, *bpe.encode(phrase), bpe.eot_token_id] for phrase in phrases]
    for phrase, row in zip(phrases, rows, strict=True):
        if len(row) > CONTEXT_LENGTH:
            raise ModelError(
                f"the phrase {phrase!r} has {len(row)} CLIP tokens, more than {CONTEXT_LENGTH}; shorten the label "
                "or its synonym"
            )
    longest = max(map(len, rows), default=0)
    return torch.tensor([row + [EOS] * (longest - len(row)) for row in rows], dtype=torch.int64)


def token_lengths(ids: Tensor) -> Tensor:
    """Tokens up to and with the first EOS, int64 [S], of ids [S,L]."""
    return (ids == EOS).int().argmax(1) + 1


@lru_cache
def load_bpe() -> Any:
    """open_clip's tokenizer from its file alone: importing the package imports its models too, which takes seconds."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise UserError("CLIP's vocabulary comes with open_clip, which is missing: pip install open_clip_torch")
    path = Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("ace_dist_open_clip_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()
