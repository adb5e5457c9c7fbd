"""What the explorer knows: a finished run, its test clips, and how each word votes for a clip. No page, no server.

Shapes: V views of a clip, T frames, S phrases, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_dist.concepts import LabelSet
from ace_dist.data.loader import build_loader
from ace_dist.data.loader.single_video import read_clip
from ace_dist.data.run_inputs import run_config
from ace_dist.data.sampling import TestPlan
from ace_dist.data.task import load_run_task
from ace_dist.evaluate.classifier import Classifier
from ace_dist.evaluate.protocols import encode_phrases, srt_label_sets
from ace_dist.utils.errors import UserError

UPLOAD_S = 120.0  # reading a video of a minute takes seconds; one on which FFmpeg hangs takes for ever
KEPT_CLIPS = 32  # encoded clips that stay in memory, so that changing a word does not decode again


@dataclass(frozen=True, slots=True)
class TestClip:
    """A clip of the run's test split; `base`: its action is a base action."""

    id: str
    action: str
    base: bool


@dataclass(frozen=True)
class Clip:
    """An encoded clip: embeddings [V, D] on the CPU, and the frames of its middle view, uint8 [T, H, W, 3]."""

    embeddings: Tensor
    frames: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelVotes:
    """A label's probability, and the cosine of the clip with each phrase that votes for it (mean over the views)."""

    label: str
    probability: float
    votes: tuple[tuple[str, float], ...]


class Explorer:
    """A finished run, ready for questions. Raises `UserError` naming the file that is missing."""

    def __init__(self, run: Path, device: str = "cpu", shards: str | None = None) -> None:
        self.run, self.device = run, torch.device(device)
        self.classifier = Classifier.from_run(run, device)
        self.config = run_config(run, shards)
        self.task = load_run_task(run, self.config)
        self.records = {}
        self.tests: list[TestClip] = []
        for base, classes in ((True, self.task.classes.base), (False, self.task.classes.novel)):
            for record, label in zip(*self.task.test_clips(novel=not base), strict=True):
                self.records[record.key] = record
                self.tests.append(TestClip(record.key, str(classes[label]), base))
        self.encoded_test_clip = lru_cache(KEPT_CLIPS)(self.encode_test_clip)

    def synonyms(self, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The phrases that stand for each typed label: its tree's, or itself alone, for the user to change.

        Raises `LabelError`.
        """
        return {label.label: label.phrases for label in self.classifier.labels(labels, policy="alone")}

    def test_clip(self, key: str) -> Clip:
        """A clip of the test split, decoded and encoded as in the run's evaluation."""
        if key not in self.records:
            raise UserError(f"the test split has no clip {key!r}; choose one of the list")
        return self.encoded_test_clip(key)

    def encode_test_clip(self, key: str) -> Clip:
        plan = TestPlan([self.records[key]], [0], self.config.dataset.clip, self.config.loader, batch_size=16)
        normalised = replace(self.config, loader=replace(self.config.loader, dtype="float32"))
        loader = build_loader(normalised, self.device)
        batches = list(loader.stream(plan.batches()))
        loader.close()
        return self.encode(torch.cat([batch.video for batch in batches]))

    def uploaded(self, path: str | Path) -> Clip:
        """A user's own video, cut and encoded as a test clip. Raises `UserError`, without the file's folder, for a file
        that is no video."""
        try:
            return self.encode(read_clip(path, self.config, None, None, timeout_s=UPLOAD_S).video)
        except UserError as error:
            raise UserError(str(error).replace(str(path), Path(path).name)) from None

    def encode(self, video_VTCHW: Tensor) -> Clip:
        """Normalised views of one clip -> embeddings and the middle view's frames."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.loader.mean, self.config.loader.std))
        pixels = (video_VTCHW[len(video_VTCHW) // 2].float().cpu() * std + mean).clamp(0, 1) * 255
        frames = pixels.round().byte().permute(0, 2, 3, 1).numpy()
        return Clip(self.classifier.encode(video_VTCHW), frames)

    def look(self, clip: Clip, words: Mapping[str, Sequence[str]]) -> list[LabelVotes]:
        """Labels, most probable first, each the mean over its phrases (ACE Eq. 3), and every phrase's vote.

        Raises `UserError` for fewer than two labels, a label without a phrase, or a phrase of two labels.
        """
        if len(words) < 2:
            raise UserError("give at least two labels, one a line: a probability is a choice between labels")
        first: dict[str, str] = {}  # phrase -> the label that it votes for
        for label, group in words.items():
            if not group:
                raise UserError(f"{label!r} has no word left: tick or add at least one synonym")
            for phrase in group:
                if (other := first.setdefault(phrase, label)) != label:
                    raise UserError(f"{phrase!r} votes for both {other!r} and {label!r}: remove it from one of them")
        phrases = tuple(tuple(group) for group in words.values())
        (row,) = self.classifier.probabilities(clip.embeddings, [LabelSet(tuple(words), phrases)])
        text = encode_phrases(self.classifier.model, [phrase for group in phrases for phrase in group])
        unit = torch.nn.functional.normalize
        cosines = (unit(clip.embeddings, dim=1) @ unit(text, dim=1).T).mean(0).split([*map(len, phrases)])
        labels = [
            LabelVotes(label, probability, tuple(zip(group, votes.tolist(), strict=True)))
            for label, group, probability, votes in zip(words, phrases, row, cosines, strict=True)
        ]
        return sorted(labels, key=lambda label: -label.probability)

    def robustness(self, clip: Clip) -> list[list[tuple[str, float]]]:
        """The runs of the Synonym Robustness Test on one clip: per run, (label, probability) in class order."""
        if not self.task.classes.novel:
            return []
        sets = srt_label_sets(self.config, "novel", self.task.classes.novel, self.task.trees)
        rows = self.classifier.probabilities(clip.embeddings, sets)
        return [list(zip(labels.labels, row, strict=True)) for labels, row in zip(sets, rows, strict=True)]
