"""The test of timelines: base, novel and mixed labels, other words, rejection and deviations, for every decoder.

Labels of a set that a video shows count; all else of the video is "none of these", also actions of other sets.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ace_dist.concepts import LabelSet
from ace_dist.config import did_you_mean
from ace_dist.segment.decoders import NAMES, DecoderConfig
from ace_dist.segment.embed import EmbeddedVideo
from ace_dist.segment.labelled import LabelledVideo
from ace_dist.segment.metrics import (
    auroc,
    edit_score,
    fpr_at_95,
    precision_recall,
    segment_counts,
    timeline_scores,
)
from ace_dist.segment.procedure import Procedure
from ace_dist.segment.rejection import Floats
from ace_dist.segment.segmenter import Calibration, decode
from ace_dist.utils.errors import LabelError

METRIC_FPS = 10.0  # frames a second at which timelines are compared
TABLE = ("accuracy", "edit", "f1@10", "f1@50")
TRAINING_FREE = Calibration(DecoderConfig("transport"))  # as arXiv 2602.21406: nothing is fitted
METRICS = ("accuracy", "accuracy_without_background", "edit", "f1@10", "f1@25", "f1@50")


@dataclass(frozen=True)
class TimelineTest:
    """Videos with their truth, and a model: `similarities` gives the [N, K] of each video's windows to a label set."""

    videos: Sequence[tuple[LabelledVideo, EmbeddedVideo]]
    similarities: Callable[[Sequence[EmbeddedVideo], LabelSet], list[Floats]]
    calibration: Calibration
    temperature: float

    def evaluate(self, sets: Mapping[str, Sequence[LabelSet]], procedures: Mapping[str, Procedure]) -> dict[str, Any]:
        """`timelines.json`. The first label set of each part ("base", "novel", "mixed") holds the true labels.

        Without a video that shows one of a part's labels, its `rejection` and `accuracy_without_background` are None.
        The others name the same actions in other words: mean and standard deviation (ddof 0) over them, as in the SRT.
        """
        found: dict[str, Any] = {}
        embedded = [video for _, video in self.videos]
        for part, (roots, *others) in sets.items():
            cosines = [self.similarities(embedded, words) for words in (roots, *others)]
            ways = {name: self.calibration.with_decoder(name) for name in NAMES}
            alone = LabelSet(roots.labels, tuple((label,) for label in roots.labels))
            found[part] = {
                "actions": len(roots.labels),
                "rejection": self.rejection(cosines[0], roots),
                "decoders": {name: self.in_all_words(cosines, roots, way) for name, way in ways.items()},
                "without_rejection": {
                    name: self.scores(cosines[0], roots, way.without_rejection()) for name, way in ways.items()
                },
                "training_free": self.scores(self.similarities(embedded, alone), roots, TRAINING_FREE),
            }
            if procedures and part == [*sets][-1]:  # which holds all labels
                found["deviations"] = self.deviations(cosines[0], roots, procedures)
        return found

    def in_all_words(
        self, cosines: Sequence[Sequence[Floats]], roots: LabelSet, calibration: Calibration
    ) -> dict[str, Any]:
        """`scores` by the true labels' similarities, the first ones, and under `other_words` by those to others."""
        true, *others = (self.scores(of_videos, roots, calibration) for of_videos in cosines)
        if others:
            true["other_words"] = mean_and_spread(others) | {"videos": [run["videos"] for run in others]}
        return true

    def scores(self, cosines: Sequence[Floats], roots: LabelSet, calibration: Calibration) -> dict[str, Any]:
        """Of timelines found by similarities to some words, and told in the true labels.

        `videos`: of each its edit score, and segments hit, falsely found and missed at F1@50, to draw samples from.
        """
        predicted, truth = [], []
        for (video, embedded), table_NK in zip(self.videos, cosines, strict=True):
            timeline = decode(embedded, roots.labels, table_NK, calibration, self.temperature)
            shown = video.frame_labels(embedded.start_s, embedded.end_s, METRIC_FPS)
            truth.append([label if label in roots.labels else None for label in shown])
            predicted.append(timeline.frame_labels(len(shown), METRIC_FPS))
        pairs = [*zip(predicted, truth, strict=True)]
        videos = [[edit_score(*pair), *astuple(segment_counts(*pair, 0.5))] for pair in pairs]
        scores = timeline_scores(predicted, truth)
        return {name: None if math.isnan(score) else score for name, score in scores.items()} | {"videos": videos}

    def rejection(self, cosines: Sequence[Floats], labels: LabelSet) -> dict[str, Any] | None:
        """How well windows of these labels are told from pauses, and from actions that are none of the labels.

        None where no video shows one of these labels.
        """
        parts: dict[str, list[float]] = {"known": [], "pause": [], "other": []}
        for (video, embedded), table_NK in zip(self.videos, cosines, strict=True):
            values = self.calibration.rejection.scores(embedded.embeddings.astype(float), table_NK).tolist()
            shown = video.window_labels(embedded.start_s, embedded.stride_s, len(values))
            for label, score in zip(shown, values, strict=True):
                parts["pause" if label is None else "known" if label in labels.labels else "other"].append(score)
        threshold, known = self.calibration.rejection.threshold, parts["known"]
        if not known:
            return None
        found: dict[str, Any] = {"known_rejected": 100.0 * float(np.mean(np.array(known) < threshold))}
        for name, scores in ((name, parts[name]) for name in ("pause", "other") if parts[name]):
            rejected = 100.0 * float(np.mean(np.array(scores) < threshold))
            found[name] = {"auroc": auroc(known, scores), "fpr95": fpr_at_95(known, scores), "rejected": rejected}
        return found

    def deviations(
        self, cosines: Sequence[Floats], labels: LabelSet, procedures: Mapping[str, Procedure]
    ) -> dict[str, Any]:
        """Precision and recall of the deviations from each video's procedure: (kind, label) of all videos together.

        By every decoder without a look at the procedure, and under `procedure` by Viterbi that follows its order.
        """
        ways = {name: (self.calibration.with_decoder(name), False) for name in NAMES}
        ways["procedure"] = self.calibration.with_decoder("viterbi"), True
        return {name: self.deviations_found(cosines, labels, procedures, *way) for name, way in ways.items()}

    def deviations_found(
        self,
        cosines: Sequence[Floats],
        labels: LabelSet,
        procedures: Mapping[str, Procedure],
        calibration: Calibration,
        follow: bool,
    ) -> dict[str, Any]:
        """`videos`: of each how many deviations were found, are true, and are both."""
        predicted, truth, videos = [], [], []
        for (video, embedded), table_NK in zip(self.videos, cosines, strict=True):
            if procedure := procedures.get(video.path.stem):
                order = procedure if follow else None
                timeline = decode(embedded, labels.labels, table_NK, calibration, self.temperature, order)
                found, true = (
                    [(each.kind, each.label) for each in procedure.deviations(spans)]
                    for spans in (timeline.spans, video.spans)
                )
                videos.append([len(found), len(true), (Counter(found) & Counter(true)).total()])
                predicted += [(video.path.stem, *each) for each in found]
                truth += [(video.path.stem, *each) for each in true]
        precision, recall = precision_recall(predicted, truth)
        found_and_true = {"found": len(predicted), "true": len(truth)}
        return {"precision": precision, "recall": recall, **found_and_true, "videos": videos}


def table(results: Mapping[str, Any]) -> str:
    """A line for each set of labels and decoder; what stands behind a slash is the mean under other words."""
    lines = [f"{'labels':7} {'decoder':10}" + "".join(f"{name.replace('accuracy', 'acc'):>16}" for name in TABLE)]
    for part in ("base", "novel", "mixed"):
        for decoder, scores in results.get(part, {"decoders": {}})["decoders"].items():
            other = scores.get("other_words")
            cells = [f"{scores[name]:.1f}" + (f" / {other[name]['mean']:.1f}" if other else "") for name in TABLE]
            lines.append(f"{part:7} {decoder:10}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def mean_and_spread(runs: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Of each score over `runs`; None for a score that none of them has."""
    table = {name: [score for run in runs if (score := run[name]) is not None] for name in METRICS}
    return {
        name: {"mean": float(np.mean(row)), "std": float(np.std(row))} if row else {"mean": None, "std": None}
        for name, row in table.items()
    }


def load_procedures(folder: Path) -> dict[str, Procedure]:
    """The procedure of each video of a folder that has NAME.json or NAME.yaml with its steps."""
    files = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in (".json", ".yaml", ".yml")]
    if not files:
        why = "holds no NAME.yaml or NAME.json" if folder.is_dir() else "is no folder"
        raise LabelError(f"procedures={folder} {why}; name the folder with the steps of each video")
    found: dict[str, Path] = {}
    for path in files:
        if path.stem in found:
            raise LabelError(f"procedures={folder}: {found[path.stem].name} and {path.name} are of one video; keep one")
        found[path.stem] = path
    return {name: Procedure.load(path) for name, path in found.items()}


def check_procedures(procedures: Mapping[str, Procedure], videos: Sequence[str], labels: Sequence[str]) -> None:
    """Say which of the tested videos, names without an ending, have no procedure.

    Raises `LabelError` when none has one, and for a step that is none of the run's `labels`.
    """
    without = [name for name in videos if name not in procedures]
    others = [name for name in procedures if name not in videos]
    if len(without) == len(videos):
        raise LabelError(
            f"procedures= has no file of a tested video; files: {shortened(others)}; videos: {shortened(videos)}"
        )
    if without:
        print(f"without a procedure: {shortened(without)}; files of no tested video: {shortened(others)}", flush=True)
    for name in set(videos) & set(procedures):
        for step in procedures[name].labels:
            if step not in labels:
                raise LabelError(
                    f"{procedures[name].source}: step {step!r} is none of the run's actions"
                    f"{did_you_mean(step, labels)}; a test needs steps that the run knows"
                )


def shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
