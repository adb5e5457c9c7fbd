"""Protects the contrastive loss of the pretraining, and that its settings are read or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ace_dist.training.pretraining import PretrainError, info_nce, read_settings


def test_info_nce_against_loops() -> None:
    """Each direction: minus the mean log-probability of the positives, equal sentences counting as positives."""
    rng = np.random.default_rng()
    video, text = rng.normal(size=(7, 5)), rng.normal(size=(7, 5))
    codes = rng.integers(0, 4, 7)
    unit_v = video / np.linalg.norm(video, axis=1, keepdims=True)
    unit_t = text / np.linalg.norm(text, axis=1, keepdims=True)
    total = 0.0
    for scores in (unit_v @ unit_t.T / 0.07, unit_t @ unit_v.T / 0.07):
        for i in range(7):
            log_p = scores[i] - np.log(np.exp(scores[i]).sum())
            total -= np.mean([log_p[j] for j in range(7) if codes[j] == codes[i]]) / 7
    found = info_nce(torch.from_numpy(video), torch.from_numpy(text), codes.astype(np.int64), 0.07)
    assert float(found) == pytest.approx(total / 2, rel=1e-5)


def test_settings_are_split_from_those_of_the_configuration() -> None:
    settings, rest = read_settings(["pretrain.steps=7", "dataset.world.seed=3", "pretrain.lr=0.5"])
    assert (settings.steps, settings.lr, rest) == (7, 0.5, ["dataset.world.seed=3"])


@pytest.mark.parametrize("argument", ["pretrain.stepz=7", "pretrain.temperature=0"])
def test_bad_settings_are_named(argument: str) -> None:
    with pytest.raises(PretrainError, match=argument.partition("=")[0].removeprefix("pretrain.")):
        read_settings([argument])
