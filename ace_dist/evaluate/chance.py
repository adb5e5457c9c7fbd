"""Guessing as a scorer, the row "Random" of the paper's tables: `evaluation.scorer=chance`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ace_dist.concepts import LabelSet
from ace_dist.evaluate.metrics import random_baseline
from ace_dist.evaluate.protocols import Clips, Predict


def build_guesser(seed: int) -> Predict:
    """A function that guesses every clip's class in each label set, all classes alike, in `predictions.json`'s form."""
    rng = np.random.default_rng(seed)

    def guess(clips: Clips, label_sets: Sequence[LabelSet]) -> list[dict[str, Any]]:
        rows = sorted((record.key, label) for record, label in zip(*clips, strict=True))
        classes = len(label_sets[0].labels)
        return [
            {
                "classes": list(labels.labels),
                "ids": [key for key, _ in rows],
                "labels": [label for _, label in rows],
                "predictions": rng.integers(0, classes, len(rows)).tolist(),
                "probabilities": [[round(1 / classes, 6)] * classes] * len(rows),
            }
            for labels in label_sets
        ]

    return guess


def expected_scores(predicted: dict[str, Any]) -> dict[str, float]:
    """Accuracy and macro F1 to expect from guesses on these labels, in percent; the guesses made are no part of it.

    A synonym changes nothing for a guess, so every run of the SRT expects the same and their deviation is 0.
    """
    return random_baseline(predicted["labels"], len(predicted["classes"]))
