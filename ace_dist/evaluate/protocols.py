"""The test: base, novel, both together, and the Synonym Robustness Test, from videos encoded once (ACE, section 4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, cast

import numpy as np
import torch
from ace_kernels import ConceptLayout
from torch import Tensor

from ace_dist.concepts import (
    Action,
    LabelSet,
    Phrases,
    Policy,
    SynonymTrees,
    draw_srt,
    load_srt,
    root_labels,
    srt_labels,
    words_without_node,
)
from ace_dist.config import Config, resolve_path
from ace_dist.data.loader.base import Loader
from ace_dist.data.sampling import TestPlan
from ace_dist.data.shards import ClipRecord
from ace_dist.data.task import Task
from ace_dist.evaluate.caveats import chance_scores, guessing, intervals, mean_of_both, result_notes
from ace_dist.evaluate.metrics import accuracy, bias_curve, fuse_views, macro_f1, srt_summary
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.utils.console import say_once
from ace_dist.utils.distributed import Ranks

Clips = tuple[list[ClipRecord], list[int]]  # and the class of each
Predict = Callable[[Clips, Sequence[LabelSet]], list[dict[str, Any]]]  # an entry of predictions.json a label set
WITHOUT_NODE = "evaluation.labels_without_node"
MEANING: Mapping[Policy, str] = {
    "alone": "these labels stand alone beside averaged ones",
    "wordnet": "these labels are averaged over the synonyms of makers.json, or of WordNet",
    "all_alone_when_any_is": "every label beside them stands alone too",
}


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
    """Text embeddings [S, D] of phrases, float32 on the CPU, not normalised; `phrase_cache` has those of before."""

    def encode(phrases: Sequence[str]) -> Tensor:
        features = model.build_text_features(dict.fromkeys(phrases))
        return features.encode(features.indices(phrases)).float().cpu()

    return model.phrase_cache.encode(phrases, encode) if model.phrase_cache else encode(phrases)


@torch.no_grad()
def similarity(model: DualEncoder, video_ND: Tensor, label_sets: Sequence[Phrases], temperature: float) -> list[Tensor]:
    """S(I, a) [N, K] of videos with the classes of each label set (ACE Eq. 3). Each distinct phrase is encoded once."""
    text_SD, layout = encode_label_sets(model, label_sets)
    scores: list[Tensor] = model.similarity(video_ND, text_SD, layout, temperature)
    return scores


@torch.no_grad()
def mean_cosines(model: DualEncoder, video_ND: Tensor, label_sets: Sequence[Phrases]) -> list[Tensor]:
    """`similarity` without temperature, learned scale and bias."""
    text_SD, layout = encode_label_sets(model, label_sets)
    return model.similarity.cosines(video_ND, text_SD, layout)


def encode_label_sets(model: DualEncoder, label_sets: Sequence[Phrases]) -> tuple[Tensor, ConceptLayout]:
    """The embeddings [S, D] of all phrases of the label sets, and which of them make up each class."""
    flat = [list(chain.from_iterable(phrases)) for phrases in label_sets]
    distinct = list(dict.fromkeys(chain.from_iterable(flat)))
    row = {phrase: index for index, phrase in enumerate(distinct)}
    offsets = [[0, *accumulate(map(len, phrases))] for phrases in label_sets]
    layout = ConceptLayout.build(offsets, [[row[phrase] for phrase in phrases] for phrases in flat], height=len(row))
    return encode_phrases(model, distinct), layout


def score(
    model: DualEncoder, test: EncodedTest, label_sets: Sequence[LabelSet], config: Config
) -> list[dict[str, Any]]:
    """Classify the test clips among the labels of each set, views fused: an entry of `predictions.json` a set.

    Its probabilities are an array [N, K] that is not rounded.
    """
    how = config.evaluation.view_fusion
    sets = [labels.phrases for labels in label_sets]
    rows: dict[str, Any] = {"ids": test.ids, "labels": test.labels, "views": test.views, "expected_ids": test.clips}
    rows |= {"views_per_sample": config.dataset.clip.views, "how": how}
    if how == "embedding_mean":
        fused = [fuse_views(torch.nn.functional.normalize(test.embeddings, dim=1).numpy(), **rows)] * len(sets)
        means = torch.from_numpy(fused[0].values).float()
        logits = similarity(model, means, sets, config.method.temperature)
        probabilities = [values.double().softmax(1).numpy() for values in logits]
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
            "probabilities": values,
        }
        for labels, clips, values in zip(label_sets, fused, probabilities, strict=True)
    ]


def srt_label_sets(config: Config, part: str, actions: Sequence[Action], trees: SynonymTrees) -> list[LabelSet]:
    """The SRT's label sets of the base or the novel actions: those of their file, or drawn from the trees without one.

    A verb without a node is said once, with what `evaluation.labels_without_node` makes of it.
    """
    leaves = config.method.leaf_augmentation and config.evaluation.srt_leaves
    policy = cast(Policy, config.evaluation.labels_without_node)
    setting = "dataset.srt_base" if part == "base" else "dataset.srt"
    file = config.dataset.srt_base if part == "base" else config.dataset.srt
    runs = draw_srt(actions, trees, seed=config.evaluation.srt_seed) if file is None else load_srt(resolve_path(file))
    source = f"{setting}={file or 'null, drawn from the trees'}"
    if leaves and (unknown := words_without_node(actions, runs, trees, source)):
        words = ", ".join(f"{word} in run {' '.join(map(str, numbers))}" for word, numbers in unknown.items())
        say_once(f"{source}: {trees.source} has no node for {words}; {MEANING[policy]} ({WITHOUT_NODE}={policy})")
    return srt_labels(actions, runs, trees, leaves, source, policy)


def evaluate(config: Config, task: Task, predict: Predict) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole protocol: contents of `results.json` (in percent) and of `predictions.json`.

    Base and novel are separate modes, each among its own classes, without shadow negatives, and each under the label
    sets of its SRT; `gzsl` is both among all classes. A data set without novel actions has `novel`, `hm`, `srt` and
    `gzsl` null; one whose test split shows no base action has `base`, `srt_base`, `hm` and `gzsl` null. What guessing
    scores stands under `chance`, the accuracies' intervals under `interval`, and what speaks against the scores in
    `notes`; there are no intervals and notes of `evaluation.scorer=chance` itself.
    """
    classes, leaves = task.classes, config.method.leaf_augmentation
    everything = [root_labels((*classes.base, *classes.novel), task.trees, leaves)]
    predictions: dict[str, Any] = {"base": None, "novel": None, "srt": [], "srt_base": [], "gzsl": {}}
    groups: dict[str, str] = {}
    for part, actions, srt in (("base", classes.base, "srt_base"), ("novel", classes.novel, "srt")):
        clips = task.test_clips(novel=part == "novel")
        groups |= {record.key: record.group for record in clips[0]}
        if clips[0]:
            sets = [root_labels(actions, task.trees, leaves), *srt_label_sets(config, part, actions, task.trees)]
            predictions[part], *predictions[srt], predictions["gzsl"][part] = predict(clips, sets + everything)
    if len(predictions["gzsl"]) < 2:
        predictions["gzsl"] = None
    else:  # the labels of novel clips count from the first novel class
        novel = predictions["gzsl"]["novel"]
        novel["labels"] = [label + len(classes.base) for label in novel["labels"]]
    results = summary(config, predictions, len(classes.base))
    predictions["groups"] = groups
    results |= {"chance": chance_scores(predictions), "interval": None, "notes": []}
    if config.evaluation.scorer != "chance":  # whose scores are expectations
        results["interval"] = intervals(predictions, groups)
        results["notes"] = result_notes(predictions, results)
    for entry in entries(predictions):
        entry["probabilities"] = np.asarray(entry["probabilities"]).round(6).tolist()
    return results, predictions


def summary(config: Config, predictions: dict[str, Any], base_classes: int) -> dict[str, Any]:
    """`results.json` of the predictions."""
    chance = config.evaluation.scorer == "chance"
    rate = guessing if chance else accuracy_and_f1
    base, novel = (rate(predictions[part]) if predictions[part] else None for part in ("base", "novel"))
    srt, srt_base = (
        srt_summary([rate(run) for run in predictions[name]]) if predictions[name] else None
        for name in ("srt", "srt_base")
    )
    gzsl = None
    if together := predictions["gzsl"]:
        parts = {part: rate(entry) for part, entry in together.items()}
        scores = {part: log_scores(entry) for part, entry in together.items()}
        curve = None if chance else bias_curve(scores["base"], scores["novel"], base_classes)
        gzsl = {**parts, "hm": mean_of_both(*parts.values()), "curve": curve}
    return {
        "method": config.method.name,
        "dataset": config.dataset.name,
        "fold": config.dataset.fold,
        "seed": config.seed,
        "base": base,
        "novel": novel,
        "hm": mean_of_both(base, novel) if base and novel else None,
        "srt": srt,
        "srt_base": srt_base,
        "gzsl": gzsl,
    }


def log_scores(entry: dict[str, Any]) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Logarithms of the fused probabilities [N, K], of one view S up to a constant of the clip, and the labels [N]."""
    return np.log(np.maximum(np.asarray(entry["probabilities"], np.float64), 1e-300)), entry["labels"]


def entries(predictions: dict[str, Any]) -> list[dict[str, Any]]:
    """Every entry of `predictions.json` that there is."""
    together = list((predictions["gzsl"] or {}).values())
    parts = [predictions[part] for part in ("base", "novel") if predictions[part]]
    return [*parts, *predictions["srt"], *predictions["srt_base"], *together]


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
        return [
            {
                "classes": list(labels.labels),
                "ids": [key for key, _ in rows],
                "labels": [label for _, label in rows],
                "predictions": rng.integers(0, len(labels.labels), len(rows)).tolist(),
                "probabilities": np.full((len(rows), len(labels.labels)), 1 / len(labels.labels)),
            }
            for labels in label_sets
        ]

    return guess
