"""Chooses, on people of the training alone, when no label fits and how scores become a timeline.

On long videos whose segments are labelled: rejection and temperature are fitted (`rejection`), then the parameters of
each decoder are those with the best F1@50 on these videos, and the decoder is the best of them. On shards, which hold
trimmed clips alone, there is no background to learn from: rejection looks at the best label's cosine, and the decoder
keeps its defaults.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ace_dist.segment.decoders import DecoderConfig, build_decoder
from ace_dist.segment.embed import EmbeddedVideo
from ace_dist.segment.labelled import LabelledVideo
from ace_dist.segment.metrics import SegmentCounts, segment_counts, segment_f1
from ace_dist.segment.rejection import Floats, LabelledWindows, Rejection, fit_rejection
from ace_dist.segment.segmenter import FLOOR, Calibration

CHOSEN_BY = "f1@50"
GRID: dict[str, dict[str, tuple[Any, ...]]] = {
    "argmax": {"median_s": (0.0, 1.0, 1.5, 2.5, 4.0)},
    "viterbi": {"minimum_s": (0.5, 1.0, 1.5, 2.5), "switch_cost": (0.5, 1.0, 2.0, 4.0, 8.0)},
    "transport": {"radius_s": (0.75, 1.5, 3.0), "structure": (0.3, 0.4, 0.5, 0.6), "balance": (0.02, 0.05, 0.1)},
}


@dataclass(frozen=True)
class ScoredVideo:
    """An embedded video with its truth and the similarities [N, K] of its windows to the base labels."""

    truth: LabelledVideo
    embedded: EmbeddedVideo
    cosines: Floats


def labelled_windows(videos: Sequence[ScoredVideo], labels: Sequence[str]) -> LabelledWindows:
    """All windows but those that show an action which is none of `labels`."""
    rows: list[tuple[Floats, Floats, list[int], str]] = []
    for video in videos:
        shown = video.truth.window_labels(video.embedded.start_s, video.embedded.stride_s, len(video.cosines))
        kept = [i for i, label in enumerate(shown) if label is None or label in labels]
        places = [-1 if shown[i] is None else labels.index(shown[i] or "") for i in kept]
        rows.append((video.embedded.embeddings[kept].astype(float), video.cosines[kept], places, video.truth.group))
    return LabelledWindows(
        np.concatenate([row[0] for row in rows]),
        np.concatenate([row[1] for row in rows]),
        np.array([label for row in rows for label in row[2]], np.int64),
        np.array([row[3] for row in rows for _ in row[2]]),
    )


def calibrate_on_videos(
    videos: Sequence[ScoredVideo], labels: Sequence[str], temperature: float, error_rate: float
) -> tuple[Calibration, dict[str, Any]]:
    """The calibration, and what was measured while choosing it. `temperature` of the model."""
    rejection, known = fit_rejection(labelled_windows(videos, labels), error_rate, temperature)
    judged = [judged_windows(video, labels, rejection, temperature) for video in videos]
    stride_s = videos[0].embedded.stride_s
    best: dict[str, tuple[float, DecoderConfig]] = {}
    for name, choices in GRID.items():
        tried = (
            replace(DecoderConfig(name), **dict(zip(choices, values, strict=True)))
            for values in itertools.product(*choices.values())
        )
        scored = [(score_decoder(config, stride_s, judged, labels), config) for config in tried]
        best[name] = max(scored, key=lambda entry: entry[0])
    chosen = max(best.values(), key=lambda entry: entry[0])[1]
    # Each decoder keeps its own best parameters, so that a user may name another one.
    merged = DecoderConfig(
        chosen.name, **{field: getattr(best[name][1], field) for name, choices in GRID.items() for field in choices}
    )
    known |= {"chosen_by": CHOSEN_BY, "decoders": {name: round(score, 2) for name, (score, _) in best.items()}}
    known |= {"videos": len(videos)}
    return Calibration(merged, rejection), known


def judged_windows(
    video: ScoredVideo, labels: Sequence[str], rejection: Rejection, temperature: float
) -> tuple[Floats, list[str | None]]:
    """What a decoder sees of a video's windows, and their true labels."""
    scores = rejection.log_probabilities(video.embedded.embeddings.astype(float), video.cosines, temperature)
    truth = video.truth.window_labels(video.embedded.start_s, video.embedded.stride_s, len(scores))
    return np.maximum(scores, FLOOR), [label if label in labels else None for label in truth]


def score_decoder(
    config: DecoderConfig, stride_s: float, videos: Sequence[tuple[Floats, list[str | None]]], labels: Sequence[str]
) -> float:
    """F1@50 of windows, in percent, of `videos`: log-probabilities [N, K + 1] and true labels of each."""
    decode, counts = build_decoder(config, stride_s), SegmentCounts()
    for scores, truth in videos:
        found = [[*labels, None][k] for k in decode(scores).tolist()]
        counts += segment_counts(found, truth, 0.5)
    return segment_f1(counts)
