"""What the explorer knows: a finished run, its test clips, and how each word votes for a clip. No page, no server.

Shapes: V views of a clip, T frames, S phrases, D width.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_dist.classifier import Classifier
from ace_dist.concepts import LabelSet
from ace_dist.concepts.actions import normalise
from ace_dist.data.build.single_video import LONGEST_S, TooLongError
from ace_dist.data.loader import build_loader
from ace_dist.data.loader.single_video import read_clip
from ace_dist.data.run_inputs import run_config
from ace_dist.data.sampling import TestPlan
from ace_dist.data.task import load_run_task
from ace_dist.evaluate.protocols import encode_phrases, srt_label_sets
from ace_dist.utils.errors import UserError

UPLOAD_S = 120.0  # reading a video of a minute takes seconds; one on which FFmpeg hangs takes for ever
MOST_LABELS = 200  # typed ones, or as many as the run has classes
MOST_PHRASES = 3000  # of all labels together, or as many as stand for the run's classes; a CPU encodes 200 a second
LONGEST_PHRASE = 200  # characters; the text encoder reads about 70 words
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
        own = self.classifier.labels([*dict.fromkeys(sum(self.presets().values(), ()))], policy="alone")
        self.most_phrases = max(MOST_PHRASES, sum(len(label.phrases) for label in own))
        self.encoded_test_clip = lru_cache(KEPT_CLIPS)(self.encode_test_clip)

    def synonyms(self, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The phrases that stand for each typed label: its tree's, or itself alone, for the user to change.

        Raises `UserError` for fewer than two labels, one that stands there twice, and more than fit.
        """
        self.check_labels([normalise(label) for label in labels])
        return {label.label: label.phrases for label in self.classifier.labels(labels, policy="alone")}

    def presets(self) -> dict[bool, tuple[str, ...]]:
        """The labels that the page offers for clips of base (`True`) and of novel actions: those of their split."""
        base, novel = (tuple(map(str, part)) for part in (self.task.classes.base, self.task.classes.novel))
        return {True: base if len(base) > 1 else base + novel, False: novel if len(novel) > 1 else base + novel}

    def check_labels(self, labels: Sequence[str]) -> None:
        """Raises `UserError` for fewer than two labels, one that stands there twice, and more or longer than fit."""
        if len(labels) < 2:
            raise UserError("write at least two labels, one a line: a probability is a choice between labels")
        most = max(MOST_LABELS, len(self.task.classes.base) + len(self.task.classes.novel))
        if len(labels) > most:
            raise UserError(f"{len(labels)} labels are more than the {most} that this page compares: remove some")
        check_length(labels)
        if twice := [label for label, count in Counter(labels).items() if count > 1]:
            raise UserError(f"{twice[0]!r} stands there twice: write each label once")

    def check_phrases(self, words: Mapping[str, Sequence[str]]) -> None:
        """Raises `UserError` for a label without a phrase, and for more or longer ones than fit."""
        phrases = [phrase for group in words.values() for phrase in group]
        if len(phrases) > self.most_phrases:
            raise UserError(f"{len(phrases)} phrases are more than {self.most_phrases}: remove labels or untick words")
        check_length(phrases)
        if empty := [label for label, group in words.items() if not group]:
            raise UserError(f"{empty[0]!r} has no word left: tick or add at least one synonym")

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
        name = Path(path).name
        try:
            return self.encode(read_clip(path, self.config, None, None, timeout_s=UPLOAD_S).video)
        except TooLongError:
            raise UserError(
                f"{name} is too long for one action: cut out the part that shows it, at most {LONGEST_S:.0f} s, and "
                f"upload that"
            ) from None
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None

    def encode(self, video_VTCHW: Tensor) -> Clip:
        """Normalised views of one clip -> embeddings and the middle view's frames."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.loader.mean, self.config.loader.std))
        pixels = (video_VTCHW[len(video_VTCHW) // 2].float().cpu() * std + mean).clamp(0, 1) * 255
        frames = pixels.round().byte().permute(0, 2, 3, 1).numpy()
        return Clip(self.classifier.encode(video_VTCHW), frames)

    def look(self, clip: Clip, words: Mapping[str, Sequence[str]]) -> list[LabelVotes]:
        """Labels, most probable first, each the mean over its phrases (ACE Eq. 3), and every phrase's vote.

        Raises `UserError` for labels and phrases that cannot be compared, or are more than fit.
        """
        self.check_labels([*words])
        self.check_phrases(words)
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


def check_length(phrases: Sequence[str]) -> None:
    """Raises `UserError` for a phrase that is longer than fits."""
    if long := [phrase for phrase in phrases if len(phrase) > LONGEST_PHRASE]:
        raise UserError(f"{long[0][:40]!r}... has {len(long[0])} characters: write at most {LONGEST_PHRASE}")
