"""Owns the row "Random" of the paper's tables: what guessing scores on a test, from its label counts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ace_dist.evaluate.metrics import random_baseline
from ace_dist.evaluate.protocols import label_sets, summary

if TYPE_CHECKING:
    from ace_dist.concepts import LabelSet
    from ace_dist.config import Config
    from ace_dist.data.shards import ClipRecord
    from ace_dist.data.task import Task


def evaluate_chance(config: Config, task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """`results.json` with the expected scores, and `predictions.json` with one draw of guesses (seed: the run's).

    A synonym changes nothing for a guess, so all runs of the SRT expect the same and their deviation is 0.
    """
    rng = np.random.default_rng(config.seed)
    base, novel = task.test_clips(novel=False), task.test_clips(novel=True)
    predictions: dict[str, Any] = {"base": None, "novel": None, "srt": []}
    if base[0]:
        predictions["base"] = guesses(base, [str(action) for action in task.classes.base], rng)
    if novel[0]:
        predictions["novel"] = guesses(novel, [str(action) for action in task.classes.novel], rng)
        sets: list[LabelSet] = label_sets(config, task.classes.novel, task.trees)
        predictions["srt"] = [guesses(novel, list(labels.labels), rng) for labels in sets]
    return summary(config, predictions, expected_scores), predictions


def guesses(clips: tuple[list[ClipRecord], list[int]], classes: list[str], rng: np.random.Generator) -> dict[str, Any]:
    """One uniform guess a clip, in the format of `predictions.json`."""
    records, labels = clips
    order = sorted(range(len(records)), key=lambda index: records[index].key)
    return {
        "classes": classes,
        "ids": [records[index].key for index in order],
        "labels": [labels[index] for index in order],
        "predictions": rng.integers(0, len(classes), len(order)).tolist(),
        "probabilities": [[round(1 / len(classes), 6)] * len(classes)] * len(order),
    }


def expected_scores(predicted: dict[str, Any]) -> dict[str, float]:
    """Expected accuracy and macro F1 of uniform guesses on these labels, in percent."""
    return random_baseline(predicted["labels"], len(predicted["classes"]))
