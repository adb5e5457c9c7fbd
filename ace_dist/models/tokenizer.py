"""Tokens of text towers: CLIP's byte pairs by open_clip's tokenizer, others by a file of Hugging Face's tokenizers."""

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ace_dist.config import resolve_path
from ace_dist.utils.errors import ModelError, UserError

CONTEXT_LENGTH = 77  # tokens, BOS and EOS included (CLIP)
EOS = 49407  # also the largest id, and the padding of Hugging Face's CLIP
VOCABULARY = 49408


def bpe_ids(phrases: Sequence[str], context: int = CONTEXT_LENGTH) -> Tensor:
    """CLIP's token ids int64 [S,L]: BOS, tokens, EOS, then EOS up to the longest phrase.

    Text is fixed, unescaped, lower-cased and its white space joined, as CLIP does. Cutting the padding is exact, as
    CLIP's mask is causal and it reads the first EOS. Raises `ModelError` for a phrase of more than `context` tokens.
    """
    bpe = load_bpe()
    rows = [[bpe.sot_token_id, *bpe.encode(phrase), bpe.eot_token_id] for phrase in phrases]
    check_lengths(phrases, map(len, rows), context, "CLIP tokens")
    longest = max(map(len, rows), default=0)
    return torch.tensor([row + [EOS] * (longest - len(row)) for row in rows], dtype=torch.int64)


def check_lengths(phrases: Sequence[str], lengths: Any, context: int, unit: str) -> None:
    for phrase, length in zip(phrases, lengths, strict=True):
        if length > context:
            raise ModelError(
                f"the phrase {phrase!r} has {length} {unit}, more than {context}; shorten the label or its synonym"
            )


def token_lengths(ids: Tensor) -> Tensor:
    """Tokens up to and with the first EOS, int64 [S], of ids [S,L]."""
    return (ids == EOS).int().argmax(1) + 1


def tokenizer_ids(
    path: str, phrases: Sequence[str], context: int, vocabulary: int, cleaning: str
) -> tuple[Tensor, Tensor]:
    """Ids int64 [S,context] by the tokenizer in a file, padded as it says, and how many of each are no padding.

    `cleaning` is open_clip's name of what is done to a text before. Raises `ModelError` for a phrase of more than
    `context` tokens, and for a tokenizer of another size than the tower's `vocabulary`.
    """
    tokenizer, padding = load_tokenizer(path)
    if (size := tokenizer.get_vocab_size()) > vocabulary:
        raise ModelError(
            f"{path} (model.text.tokenizer) has {size} tokens and the text tower {vocabulary} "
            f"(model.text.vocabulary): it is another model's tokenizer"
        )
    clean = open_clip_tokens().get_clean_fn(cleaning)
    encoded = tokenizer.encode_batch([clean(phrase) for phrase in phrases])
    lengths = [len(each.ids) for each in encoded]
    check_lengths(phrases, lengths, context, "tokens")
    rows = []
    for each in encoded:
        rest = [padding["pad_id"]] * (context - len(each.ids))
        rows.append(rest + each.ids if padding["direction"] == "left" else each.ids + rest)
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64)


@lru_cache
def load_tokenizer(path: str) -> tuple[Any, dict[str, Any]]:
    """A `tokenizers.Tokenizer` that neither pads nor cuts, and what its file says of padding.

    Raises `ModelError` when the file is missing, of another format, or does not say how texts are padded.
    """
    from tokenizers import Tokenizer

    file = resolve_path(path)
    if not file.is_file():
        raise ModelError(f"{file} does not exist (model.text.tokenizer); `ace models` says where it comes from")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{file} (model.text.tokenizer) is not a tokenizer.json of Hugging Face: {error}") from error
    padding = tokenizer.padding
    if padding is None:
        raise ModelError(
            f"{file} (model.text.tokenizer) does not say how texts are padded; `ace weights import model=NAME "
            f"source=FOLDER` makes a file that does, out of the tokenizer's folder"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, padding


@lru_cache
def load_bpe() -> Any:
    """CLIP's tokenizer of open_clip."""
    return open_clip_tokens().SimpleTokenizer()


@lru_cache
def open_clip_tokens() -> Any:
    """open_clip's tokenizers from their file alone: importing the package imports its models too: seconds."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise UserError("CLIP's vocabulary comes with open_clip, which is missing: pip install open_clip_torch")
    path = Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("ace_dist_open_clip_tokenizer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
