"""What the explorer knows: a finished run, its test clips, and how each word votes for a clip. No page, no server.

Shapes: V views of a clip, T frames, S phrases, D width.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ace_dist.classifier import Classifier, choose_device
from ace_dist.concepts import LabelSet
from ace_dist.concepts.actions import normalise
from ace_dist.concepts.labels import known_verb
from ace_dist.data.build.isolation import run_alone
from ace_dist.data.build.single_video import LONGEST_S, TooLongError
from ace_dist.data.loader import build_test_loader
from ace_dist.data.loader.single_video import read_clip
from ace_dist.data.run_inputs import run_config
from ace_dist.data.sampling import TestPlan
from ace_dist.data.shards import ShardFiles
from ace_dist.data.task import load_run_task
from ace_dist.evaluate.palette import method_name
from ace_dist.evaluate.protocols import mean_cosines, srt_label_sets
from ace_dist.models.text_features import PhraseCache
from ace_dist.tools.explorer.pictures import playable, still
from ace_dist.utils.errors import UserError

UPLOAD_S = 120.0  # reading a video of a minute takes seconds; one on which FFmpeg hangs takes for ever
MOST_LABELS = 200  # typed ones, or as many as the run has classes
MOST_PHRASES = 3000  # of all labels together, or as many as stand for the run's classes; a CPU encodes 200 a second
LONGEST_PHRASE = 200  # characters; the text encoder reads about 70 words
KEPT_CLIPS = 32  # encoded clips that stay in memory, so that changing a word does not decode again
KEPT_STILLS = 1000  # of the gallery, 3 kB each
PRESET = 24  # labels that the page begins with, at most: each costs the text encoder time
FLOOR_CLIPS = 40  # base clips whose cosines say what is usual
FLOOR_SHARE = 0.05  # of them lie below the floor


@dataclass(frozen=True, slots=True)
class TestClip:
    """A clip of the run's test split; `base`: its action is a base action."""

    id: str
    action: str
    base: bool


@dataclass(frozen=True)
class Clip:
    """An encoded clip: embeddings [V, D] on the CPU, the frames of its middle view, uint8 [T, H, W, 3], and a film of
    it that browsers play (WebM)."""

    embeddings: Tensor
    frames: npt.NDArray[np.uint8]
    film: bytes


@dataclass(frozen=True, slots=True)
class LabelVotes:
    """A label's probability, and the cosine of the clip with each phrase that votes for it (mean over the views)."""

    label: str
    probability: float
    votes: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Look:
    """What the model says of a clip: its labels, most probable first.

    `fits`: whether any of them does, by the calibration (None without one). `cosine`: of the best label, and `floor`:
    what 95 % of the base clips reach with their own label (None while it is not known). `unknown`: labels whose verb
    no synonym tree knows.
    """

    labels: tuple[LabelVotes, ...]
    fits: bool | None
    cosine: float
    floor: float | None
    unknown: tuple[str, ...]

    @property
    def is_none(self) -> bool:
        return self.fits is False or (self.floor is not None and self.cosine < self.floor)


class Explorer:
    """A finished run, ready for questions. Raises `UserError` naming the file that is missing."""

    def __init__(self, run: Path, device: str = "cpu", shards: str | None = None) -> None:
        self.run, self.device = run, choose_device(device)
        self.classifier = Classifier.from_run(run, device)
        self.config = run_config(run, shards)
        self.task = load_run_task(run, self.config)
        self.records = {}
        self.tests: list[TestClip] = []
        for base, classes in ((True, self.task.classes.base), (False, self.task.classes.novel)):
            for record, label in zip(*self.task.test_clips(novel=not base), strict=True):
                self.records[record.key] = record
                self.tests.append(TestClip(record.key, str(classes[label]), base))
        own = self.classifier.labels([*dict.fromkeys(sum(self.splits().values(), ()))], policy="alone")
        self.most_phrases = max(MOST_PHRASES, sum(len(label.phrases) for label in own))
        self.classifier.model.phrase_cache = PhraseCache(2 * self.most_phrases)  # of a question and of the one before
        self.encoded_test_clip = lru_cache(KEPT_CLIPS)(self.encode_test_clip)
        self.still = lru_cache(KEPT_STILLS)(self.read_still)
        self.files = ShardFiles(self.task.shards.folder)
        self.floor: float | None = None
        self.title = f"{method_name(self.config.method.name)} on {self.config.dataset.name}"
        self.name = f"{run.resolve().name} ({self.title})"

    def synonyms(self, labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The phrases that stand for each typed label: its tree's, or itself alone, for the user to change.

        Raises `UserError` for fewer than two labels, one that stands there twice, and more than fit.
        """
        self.check_labels([normalise(label) for label in labels])
        return {label.label: label.phrases for label in self.classifier.labels(labels, policy="alone")}

    def splits(self) -> dict[bool, tuple[str, ...]]:
        """The labels among which clips of base (`True`) and of novel actions are tested: those of their split.

        Of both where a split has one alone, which would be no choice.
        """
        base, novel = (tuple(map(str, part)) for part in (self.task.classes.base, self.task.classes.novel))
        return {True: base if len(base) > 1 else base + novel, False: novel if len(novel) > 1 else base + novel}

    def preset(self, base: bool, action: str | None) -> tuple[str, ...]:
        """The labels that the page offers for a clip: of its split as many as can be read, its own among them."""
        labels = self.splits()[base]
        if len(labels) <= PRESET:
            return labels
        others = [label for label in labels if label != action]
        chosen = {*others[: PRESET - 1], action or others[PRESET - 1]}
        return tuple(label for label in labels if label in chosen)

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
        loader = build_test_loader(normalised, self.device)
        batches = list(loader.stream(plan.batches()))
        loader.close()
        return self.encode(torch.cat([batch.video for batch in batches]), self.files.read(self.records[key]))

    def read_still(self, key: str) -> bytes:
        """The middle frame of a test clip, as JPEG."""
        return run_alone(UPLOAD_S, still, self.files.read(self.records[key]))

    def uploaded(self, path: str | Path) -> Clip:
        """A user's own video, cut and encoded as a test clip. Raises `UserError`, without the file's folder, for a file
        that is no video."""
        name = Path(path).name
        try:
            clip = read_clip(path, self.config, None, None, timeout_s=UPLOAD_S)
            return self.encode(clip.video, clip.stored)
        except TooLongError:
            raise UserError(
                f"{name} is too long for one action: cut out the part that shows it, at most {LONGEST_S:.0f} s, and "
                f"upload that"
            ) from None
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from None

    def encode(self, video_VTCHW: Tensor, stored: bytes) -> Clip:
        """Normalised views of one clip, and its bytes -> embeddings, the middle view's frames, and a film."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.loader.mean, self.config.loader.std))
        pixels = (video_VTCHW[len(video_VTCHW) // 2].float().cpu() * std + mean).clamp(0, 1) * 255
        frames = pixels.round().byte().permute(0, 2, 3, 1).numpy()
        return Clip(self.classifier.encode(video_VTCHW), frames, run_alone(UPLOAD_S, playable, stored))

    def look(self, clip: Clip, words: Mapping[str, Sequence[str]]) -> Look:
        """Labels, most probable first, each the mean over its phrases (ACE Eq. 3), and every phrase's vote.

        Raises `UserError` for labels and phrases that cannot be compared, or are more than fit.
        """
        self.check_labels([*words])
        self.check_phrases(words)
        phrases = tuple(tuple(group) for group in words.values())
        (row,) = self.classifier.probabilities(clip.embeddings, [LabelSet(tuple(words), phrases)])
        votes = self.votes(clip.embeddings, [phrase for group in phrases for phrase in group])
        labels = [
            LabelVotes(label, probability, tuple((phrase, votes[phrase]) for phrase in group))
            for label, group, probability in zip(words, phrases, row, strict=True)
        ]
        means_1K = self.cosines(clip, phrases)
        fits = self.classifier.calibration.fits(clip.embeddings.double().mean(0, keepdim=True).numpy(), means_1K)
        unknown = tuple(label for label in words if known_verb(label, self.task.trees) is None)
        ranked = tuple(sorted(labels, key=lambda label: -label.probability))
        return Look(ranked, fits, float(means_1K.max()), self.floor, unknown)

    def votes(self, embeddings_ND: Tensor, phrases: Sequence[str]) -> dict[str, float]:
        """Phrase -> its mean cosine with some embeddings."""
        (cosines_NS,) = mean_cosines(self.classifier.model, embeddings_ND, [tuple((phrase,) for phrase in phrases)])
        return dict(zip(phrases, cosines_NS.mean(0).tolist(), strict=True))

    def cosines(self, clip: Clip, phrases: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
        """The clip's mean cosines [1, K] with classes (Eq. 3, without temperature), mean over its views."""
        groups = tuple(tuple(group) for group in phrases)
        (cosines_VK,) = mean_cosines(self.classifier.model, clip.embeddings, [groups])
        return np.asarray(cosines_VK.double().mean(0, keepdim=True).numpy())

    def measure_floor(self, ended: threading.Event | None = None) -> None:
        """`floor`: the cosine that base clips of the test split reach with their own label, but for a share.

        It stops without one once the page has `ended`.
        """
        base = [test for test in self.tests if test.base]
        labels = self.classifier.labels(self.splits()[True], policy="alone")
        words = {label.label: label.phrases for label in labels}
        found = []
        for test in base[:: max(1, len(base) // FLOOR_CLIPS)][:FLOOR_CLIPS]:
            if ended is not None and ended.is_set():
                return
            found.append(float(self.cosines(self.encode_test_clip(test.id), [words[test.action]])[0, 0]))
        if found:
            self.floor = float(np.quantile(found, FLOOR_SHARE))

    def robustness(self, clip: Clip, base: bool) -> tuple[list[list[tuple[str, float]]], list[str]]:
        """The Synonym Robustness Test of one clip among base or novel actions: a row of (label, probability) a label
        set, and the actions, one a column. Both are empty where there is no such action."""
        actions = self.task.classes.base if base else self.task.classes.novel
        if not actions:
            return [], []
        sets = srt_label_sets(self.config, "base" if base else "novel", actions, self.task.trees)
        rows = self.classifier.probabilities(clip.embeddings, sets)
        runs = [list(zip(labels.labels, row, strict=True)) for labels, row in zip(sets, rows, strict=True)]
        return runs, [str(action) for action in actions]


def check_length(phrases: Sequence[str]) -> None:
    """Raises `UserError` for a phrase that is longer than fits."""
    if long := [phrase for phrase in phrases if len(phrase) > LONGEST_PHRASE]:
        raise UserError(f"{long[0][:40]!r}... has {len(long[0])} characters: write at most {LONGEST_PHRASE}")
