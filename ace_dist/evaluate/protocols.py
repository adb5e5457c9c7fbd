"""The test: base, novel and the Synonym Robustness Test, from videos that are encoded once (ACE, section 4)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch
from ace_kernels import ConceptLayout
from torch import Tensor

from ace_dist.concepts import Action, LabelSet, Phrases, SynonymTrees, draw_srt, load_srt, root_labels, srt_labels
from ace_dist.config import Config, resolve_path
from ace_dist.data.loader.base import Loader
from ace_dist.data.sampling import TestPlan
from ace_dist.data.shards import ClipRecord
from ace_dist.data.task import Task
from ace_dist.evaluate.metrics import accuracy, fuse_views, harmonic_mean, macro_f1, random_baseline, srt_summary
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.utils.distributed import Ranks

Clips = tuple[list[ClipRecord], list[int]]  # and the class of each
Predict = Callable[[Clips, Sequence[LabelSet]], list[dict[str, Any]]]  # an entry of predictions.json a label set


@dataclass(frozen=True)
class EncodedTest:
    """The views of all test clips: row r of `embeddings` is view `views[r]` of clip `ids[r]`, of class `labels[r]`."""

    ids: list[str]
    views: list[int]
    labels: list[int]
    embeddings: Tensor  # float32 [N, D] on the CPU
    clips: frozenset[str]  # the ids that the split holds


@torch.no_grad()
def encode_test(
    model: DualEncoder,
    loader: Loader,
    clips: Clips,
    config: Config,
    ranks: Ranks,
    on_batch: Callable[[], None] = lambda: None,
) -> EncodedTest:
    """Encode all views of `clips`, each rank its share, gathered on every rank. Collective.

    `on_batch` is called before every batch: a watchdog counts on it.
    """
    plan = TestPlan(*clips, config.dataset.clip, config.loader, config.evaluation.batch_size, ranks.rank, ranks.world)
    model.eval()
    rows: list[tuple[list[str], list[int], list[int], np.ndarray[Any, Any]]] = []
    for batch in loader.stream(plan.batches()):
        on_batch()
        embeddings = model.encode_video(batch.video).float().cpu()
        rows.append((batch.ids, batch.views, batch.labels.tolist(), embeddings.numpy()))
    merged = [row for share in ranks.gather(rows) for row in share]
    return EncodedTest(
        ids=[name for row in merged for name in row[0]],
        views=[view for row in merged for view in row[1]],
        labels=[label for row in merged for label in row[2]],
        embeddings=torch.from_numpy(np.concatenate([row[3] for row in merged])),
        clips=frozenset(record.key for record in clips[0]),
    )


@torch.no_grad()
def encode_phrases(model: DualEncoder, phrases: Sequence[str]) -> Tensor:
    """Text embeddings [S, D] of phrases, float32 on the CPU, not normalised."""
    cache = model.build_text_features(dict.fromkeys(phrases))
    return cache.encode(cache.indices(phrases)).float().cpu()


@torch.no_grad()
def similarity(model: DualEncoder, video_ND: Tensor, label_sets: Sequence[Phrases], temperature: float) -> list[Tensor]:
    """S(I, a) [N, K] of videos with the classes of each label set (ACE Eq. 3). Each distinct phrase is encoded once."""
    flat = [list(chain.from_iterable(phrases)) for phrases in label_sets]
    distinct = list(dict.fromkeys(chain.from_iterable(flat)))
    row = {phrase: index for index, phrase in enumerate(distinct)}
    offsets = [[0, *accumulate(map(len, phrases))] for phrases in label_sets]
    layout = ConceptLayout.build(offsets, [[row[phrase] for phrase in phrases] for phrases in flat], height=len(row))
    scores: list[Tensor] = model.similarity(video_ND, encode_phrases(model, distinct), layout, temperature)
    return scores


def score(
    model: DualEncoder, test: EncodedTest, label_sets: Sequence[LabelSet], config: Config
) -> list[dict[str, Any]]:
    """Classify the test clips among the labels of each set, views fused: an entry of `predictions.json` a set."""
    how = config.evaluation.view_fusion
    sets = [labels.phrases for labels in label_sets]
    rows: dict[str, Any] = {"ids": test.ids, "labels": test.labels, "views": test.views, "expected_ids": test.clips}
    rows |= {"views_per_sample": config.dataset.clip.views, "how": how}
    if how == "embedding_mean":
        fused = [fuse_views(torch.nn.functional.normalize(test.embeddings, dim=1).numpy(), **rows)] * len(sets)
        means = torch.from_numpy(fused[0].values).float()
        logits = similarity(model, means, sets, config.method.temperature)
        probabilities = [values.softmax(1).numpy() for values in logits]
    else:
        logits = similarity(model, test.embeddings, sets, config.method.temperature)
        fused = [fuse_views(values.numpy(), **rows) for values in logits]
        probabilities = [clips.values for clips in fused]
        if how in ("logit_mean", "logit_max"):
            probabilities = [torch.from_numpy(values).softmax(1).numpy() for values in probabilities]
    return [
        {
            "classes": list(labels.labels),
            "ids": list(clips.ids),
            "labels": clips.labels.tolist(),
            "predictions": values.argmax(1).tolist(),
            "probabilities": values.round(6).tolist(),
        }
        for labels, clips, values in zip(label_sets, fused, probabilities, strict=True)
    ]


def srt_label_sets(config: Config, actions: Sequence[Action], trees: SynonymTrees) -> list[LabelSet]:
    """The SRT's label sets of the novel actions: those of `dataset.srt`, or drawn from the trees when it is null."""
    leaves = config.method.leaf_augmentation and config.evaluation.srt_leaves
    if config.dataset.srt is None:
        return srt_labels(actions, draw_srt(actions, trees), trees, leaves, "SRT drawn from the synonym trees")
    path = resolve_path(config.dataset.srt)
    return srt_labels(actions, load_srt(path), trees, leaves, str(path))


def evaluate(config: Config, task: Task, predict: Predict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole protocol: contents of `results.json` (in percent) and of `predictions.json`.

    Base and novel are separate modes, each among its own classes, without shadow negatives. A data set without novel
    actions has `novel`, `hm` and `srt` null; one whose test split shows no base action has `base` null.
    """
    predictions: dict[str, Any] = {"base": None, "novel": None, "srt": []}
    for part, actions in (("base", task.classes.base), ("novel", task.classes.novel)):
        clips = task.test_clips(novel=part == "novel")
        if clips[0]:
            sets = [root_labels(actions, task.trees, config.method.leaf_augmentation)]
            if part == "novel":
                sets += srt_label_sets(config, actions, task.trees)
            predictions[part], *predictions["srt"] = predict(clips, sets)
    rate = expected_scores if config.evaluation.scorer == "chance" else accuracy_and_f1
    base, novel = (rate(predictions[part]) if predictions[part] else None for part in ("base", "novel"))
    results = {
        "method": config.method.name,
        "dataset": config.dataset.name,
        "fold": config.dataset.fold,
        "seed": config.seed,
        "base": base,
        "novel": novel,
        "hm": {name: harmonic_mean(base[name], novel[name]) for name in base} if base and novel else None,
        "srt": srt_summary([rate(run) for run in predictions["srt"]]) if predictions["srt"] else None,
    }
    return results, predictions


def accuracy_and_f1(predicted: dict[str, Any]) -> dict[str, float]:
    labels, guesses = predicted["labels"], predicted["predictions"]
    return {"accuracy": accuracy(labels, guesses), "f1": macro_f1(labels, guesses, len(predicted["classes"]))}


def rehearse(config: Config, task: Task) -> None:
    """Go through the whole protocol with guesses, before training: trees, label sets and classes must all be there."""
    evaluate(config, task, build_guesser(config.seed))


# ------------------------------------------ evaluation.scorer=chance: guessing, the row "Random" of the paper's tables
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
    """What guessing is expected to score on these labels, in percent, whatever it guessed: the same in all SRT runs."""
    return random_baseline(predicted["labels"], len(predicted["classes"]))
