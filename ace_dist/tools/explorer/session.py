"""Owns what the explorer knows: a finished run, its test clips, and how each word votes for a clip. No page, no server.

Shapes: V views of a clip, T frames, S phrases, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_dist.concepts import LabelSet, free_labels
from ace_dist.config import read_config
from ace_dist.data.loader import build_loader
from ace_dist.data.loader.single_video import clip_of_video
from ace_dist.data.sampling import TestPlan
from ace_dist.data.task import load_task
from ace_dist.evaluate.classifier import Classifier
from ace_dist.evaluate.protocols import EncodedTest, encode_phrases, score, srt_label_sets
from ace_dist.utils.errors import UserError

UPLOAD_S = 120.0  # reading a video of a minute takes seconds; one on which FFmpeg hangs takes for ever
KEPT_CLIPS = 32  # encoded clips that stay in memory, so that changing a word does not decode again


@dataclass(frozen=True, slots=True)
class TestClip:
    """A clip of the run's test split."""

    id: str
    action: str
    base: bool


@dataclass(frozen=True)
class Clip:
    """An encoded clip: unit embeddings [V, D] on the CPU, and the frames of its middle view, uint8 [T, H, W, 3]."""

    embeddings: Tensor
    frames: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelLook:
    """A label's probability, and the cosine of the clip with each phrase that votes for it (mean over the views)."""

    label: str
    probability: float
    votes: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Look:
    """What the model sees in a clip among some labels, most probable first."""

    labels: tuple[LabelLook, ...]


class Explorer:
    """A finished run, ready for questions. Raises `UserError` naming the file that is missing."""

    def __init__(self, run_dir: Path, device: str = "cpu") -> None:
        self.run_dir = run_dir
        self.classifier = Classifier.from_run(run_dir, device)
        self.config = read_config(run_dir)
        self.device = torch.device(device)
        self.task = load_task(self.config)
        self.records = {}
        self.tests: list[TestClip] = []
        for base in (True, False):
            classes = self.task.classes.base if base else self.task.classes.novel
            for record, label in zip(*self.task.test_clips(novel=not base), strict=True):
                self.records[record.key] = record
                self.tests.append(TestClip(record.key, str(classes[label]), base))
        self.kept: OrderedDict[str, Clip] = OrderedDict()

    def default_labels(self) -> list[str]:
        """The novel actions; where the data set has none, the base ones."""
        return [str(action) for action in (self.task.classes.novel or self.task.classes.base)]

    def synonyms(self, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The phrases that stand for each typed label: its tree's, or itself alone. Raises `LabelError`."""
        trees = self.classifier.trees if self.config.method.leaf_augmentation else None
        return {label.label: label.phrases for label in free_labels(labels, trees)}

    def test_clip(self, key: str) -> Clip:
        """A clip of the test split, decoded and encoded as in the run's evaluation."""
        if key not in self.records:
            raise UserError(f"the test split has no clip {key!r}; choose one of the list")
        if key not in self.kept:
            plan = TestPlan([self.records[key]], [0], self.config.dataset.clip, self.config.loader, batch_size=16)
            shown = replace(self.config, loader=replace(self.config.loader, dtype="float32"))
            loader = build_loader(shown, self.device)
            batches = list(loader.stream(plan.batches()))
            loader.close()
            self.keep(key, self.encode(torch.cat([batch.video for batch in batches])))
        return self.kept[key]

    def uploaded(self, path: str | Path) -> Clip:
        """A video of the user's own, cut and encoded as a test clip. Raises `DataError` for a file that is no video."""
        return self.encode(clip_of_video(path, self.config, None, None, timeout_s=UPLOAD_S).video)

    def keep(self, key: str, clip: Clip) -> None:
        """Remember an encoded clip, forgetting the oldest."""
        self.kept[key] = clip
        while len(self.kept) > KEPT_CLIPS:
            self.kept.popitem(last=False)

    @torch.no_grad()
    def encode(self, video_VTCHW: Tensor) -> Clip:
        """Normalised views of one clip -> embeddings and the middle view's frames."""
        model = self.classifier.model
        parameter = next(model.video.parameters())
        rows = model.encode_video(video_VTCHW.to(parameter)).float().cpu()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.loader.mean, self.config.loader.std))
        pixels = (video_VTCHW[len(video_VTCHW) // 2].float().cpu() * std + mean).clamp(0, 1) * 255
        return Clip(rows, pixels.round().byte().permute(0, 2, 3, 1).numpy())

    def look(self, clip: Clip, words: Mapping[str, Sequence[str]]) -> Look:
        """Probabilities of labels, each the mean over its phrases (ACE Eq. 3), and every phrase's vote.

        Raises `UserError` for fewer than two labels, a label without a phrase, or a phrase of two labels.
        """
        check_words(words)
        phrases = tuple(tuple(group) for group in words.values())
        (row,) = self.probabilities(clip, [LabelSet(tuple(words), phrases)])
        text = torch.nn.functional.normalize(
            encode_phrases(self.classifier.model, [phrase for group in phrases for phrase in group]), dim=1
        )
        cosines = (torch.nn.functional.normalize(clip.embeddings, dim=1) @ text.T).mean(0).split([*map(len, phrases)])
        looks = [
            LabelLook(label, probability, tuple(zip(group, votes.tolist(), strict=True)))
            for (label, group), probability, votes in zip(words.items(), row, cosines, strict=True)
        ]
        return Look(tuple(sorted(looks, key=lambda look: -look.probability)))

    def robustness(self, clip: Clip) -> list[list[tuple[str, float]]]:
        """The runs of the Synonym Robustness Test on one clip: per run, (label, probability) in class order."""
        novel = self.task.classes.novel
        if not novel:
            return []
        sets = srt_label_sets(self.config, novel, self.task.trees)
        rows = self.probabilities(clip, sets)
        return [list(zip(labels.labels, row, strict=True)) for labels, row in zip(sets, rows, strict=True)]

    def probabilities(self, clip: Clip, sets: Sequence[LabelSet]) -> list[list[float]]:
        """Probabilities of a clip among each label set, its views fused as in the run's evaluation."""
        views = len(clip.embeddings)
        test = EncodedTest(["clip"] * views, list(range(views)), [0] * views, clip.embeddings, frozenset({"clip"}))
        scored = score(self.classifier.model, test, sets, self.config)
        return [part["probabilities"][0] for part in scored]


def check_words(words: Mapping[str, Sequence[str]]) -> None:
    """Refuse what has no answer; each message says what to change."""
    if len(words) < 2:
        raise UserError("give at least two labels, one a line: a probability is a choice between labels")
    for label, phrases in words.items():
        if not phrases:
            raise UserError(f"{label!r} has no word left: tick or add at least one synonym")
    owner: dict[str, str] = {}
    for label, phrases in words.items():
        for phrase in phrases:
            if owner.setdefault(phrase, label) != label:
                raise UserError(
                    f"{phrase!r} votes for both {owner[phrase]!r} and {label!r}: remove it from one of them"
                )
