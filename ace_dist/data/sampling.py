"""Which clips and frames a step or a test reads, which clips validate, and how a run recognises its clips.

- `ClipRequest` says what to decode; `TrainPlan` and `TestPlan` say which rank reads what, when. A plan is a pure
  function of the seed and the step.
- `held_out_groups`: whole people, cameras or places of the training split that validate and do not train.
- `claim_clips` proves that a continued run reads the very clips it began with. Which clips a step shows is a function
  of (seed, step) over the list of training clips; one more clip in it would silently give every later step others.

Legend: T frames of a clip, B clips of a global batch.
"""

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ace_dist.config import ClipConfig, EvaluationConfig, LoaderConfig
from ace_dist.data.shards import ClipRecord
from ace_dist.utils.errors import DataError
from ace_dist.utils.files import write_json
from ace_dist.utils.reading import read_json

HOLDOUT_KEY = (0, 0, 1)  # longer than the keys of clips and crops under the same seed, so it is a draw of its own
# What decides a training clip's pixels and label; not where its bytes lie, so that shards may be moved or packed anew.
IDENTITY = ("key", "sha256", "frames", "fps", "segment_start_s", "segment_end_s")


@dataclass(frozen=True)
class ClipRequest:
    """One clip to decode: which stored frames, resized to which short side, cropped where.

    `crop_x` and `crop_y` place the crop: 0 is the left or top edge, 1 the right or bottom one, 0.5 the centre.
    """

    record: ClipRecord
    frames: tuple[int, ...]
    short_side: int
    crop: int
    crop_x: float
    crop_y: float
    flip: bool
    label: int
    view: int


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Height and width with the shorter one brought to `short_side`, the other rounded to the nearest integer."""
    if height <= width:
        return short_side, max(short_side, math.floor(width * short_side / height + 0.5))
    return max(short_side, math.floor(height * short_side / width + 0.5)), short_side


def crop_box(request: ClipRequest) -> tuple[int, int, int, int]:
    """Height and width to resize the stored frame to, then top and left of the crop in it, in pixels."""
    height, width = scaled_size(request.record.height, request.record.width, request.short_side)
    assert request.crop <= request.short_side
    top = math.floor(request.crop_y * (height - request.crop) + 0.5)
    left = math.floor(request.crop_x * (width - request.crop) + 0.5)
    return height, width, top, left


def stored_frames(record: ClipRecord, times_s: Iterable[float]) -> tuple[int, ...]:
    """The stored frames nearest to times in seconds of the stored clip, clamped to it."""
    nearest = (math.floor(time * record.fps + 0.5) for time in times_s)
    return tuple(min(max(index, 0), record.frames - 1) for index in nearest)


def window_frames(record: ClipRecord, start_s: float, clip: ClipConfig) -> tuple[int, ...]:
    """Stored frames nearest to the T sampling times of the window that starts at `start_s`, clamped to the clip.

    Sampling times are the centres of T equal parts of the window, so a window about `m` has frame k at
    m + (k - (T-1)/2) * seconds / T.
    """
    return stored_frames(record, (start_s + (k + 0.5) * clip.seconds / clip.frames for k in range(clip.frames)))


def segment_frames(record: ClipRecord, places: Sequence[float]) -> tuple[int, ...]:
    """A stored frame of each of T equal parts of the action; place 0 is the beginning of a part, 1 its end.

    As ViFi-CLIP, BIKE and Text4Vis sample (after TSN): at random places in training, in the middle in a test.
    """
    length = record.segment_end_s - record.segment_start_s
    times = (record.segment_start_s + (k + place) * length / len(places) for k, place in enumerate(places))
    return stored_frames(record, times)


def train_frames(record: ClipRecord, clip: ClipConfig) -> tuple[int, ...]:
    """Stored frames of the window of `clip.seconds` centred on the segment's middle (ACE, implementation details).

    With `clip.sampling=segments` the middle of each part of the segment.
    """
    if clip.sampling == "segments":
        return segment_frames(record, [0.5] * clip.frames)
    middle = (record.segment_start_s + record.segment_end_s) / 2
    return window_frames(record, middle - clip.seconds / 2, clip)


def view_starts(record: ClipRecord, clip: ClipConfig) -> list[float]:
    """Start of each test view in seconds of the stored clip.

    View k starts at a + (L - w) k / (views - 1): the first at the segment's start, the last ending at its end. With
    `clip.view_spacing=slowfast` it is k / views, as in SlowFast's code and in ProcedureVRL's, which has it from there:
    the end of a long segment is not seen. A segment shorter than the window is expanded about its middle, and a
    single view is centred.
    """
    length = record.segment_end_s - record.segment_start_s
    middle = (record.segment_start_s + record.segment_end_s) / 2
    if length < clip.seconds or clip.views == 1:
        return [middle - clip.seconds / 2] * clip.views
    parts = clip.views if clip.view_spacing == "slowfast" else clip.views - 1
    span = length - clip.seconds
    return [record.segment_start_s + span * k / parts for k in range(clip.views)]


def view_frames(record: ClipRecord, clip: ClipConfig) -> list[tuple[int, ...]]:
    """Stored frames of each test view; with `clip.sampling=segments` views lie between each other in all parts."""
    if clip.sampling == "segments":
        return [segment_frames(record, [(v + 0.5) / clip.views] * clip.frames) for v in range(clip.views)]
    return [window_frames(record, start, clip) for start in view_starts(record, clip)]


def coinciding_views(records: Sequence[ClipRecord], clip: ClipConfig) -> int:
    """How many clips show the same frames in two or more of their test views (their segments are too short)."""
    return sum(len(set(view_frames(record, clip))) < clip.views for record in records)


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(count) that depends on `key` alone.

    Made from the generator's raw bits: numpy promises that these never change between versions, and does not promise
    it of `Generator.permutation`.
    """
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(bits, kind="stable").astype(np.int64)


def uniforms(count: int, *key: int) -> list[float]:
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return [float(value) for value in (bits >> np.uint64(11)) * 2.0**-53]


def check_plan(records: Sequence[ClipRecord], labels: Sequence[int], rank: int, world: int, split: str) -> None:
    assert len(records) == len(labels) and 0 <= rank < world
    if not records:
        raise DataError(f"no {split} clip to read: check the split column of dataset.annotations and dataset.novel")


def centred(
    record: ClipRecord, frames: tuple[int, ...], loader: LoaderConfig, label: int, view: int = 0
) -> ClipRequest:
    """A centre crop at the short side of the test, not flipped."""
    side, crop = loader.test_short_side, loader.crop
    return ClipRequest(record, frames, side, crop, crop_x=0.5, crop_y=0.5, flip=False, label=label, view=view)


class TrainPlan:
    """The endless stream of training clips: per-epoch permutations, end to end, so that no clip is ever dropped.

    Position p of the stream is clip p mod N of the permutation of epoch p // N; step s is positions sB to (s+1)B - 1,
    of which each rank takes its contiguous share. Neither the order nor a clip's augmentation depends on `world`.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        labels: Sequence[int],
        clip: ClipConfig,
        loader: LoaderConfig,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_plan(records, labels, rank, world, "training")
        if batch_size % world:
            raise DataError(f"training.batch_size={batch_size} cannot be shared equally by {world} ranks")
        self.records, self.labels = list(records), list(labels)
        self.frames = [train_frames(record, clip) for record in records]
        self.parts = clip.frames if clip.sampling == "segments" else 0
        self.loader, self.batch_size, self.seed = loader, batch_size, seed
        self.rank, self.share = rank, batch_size // world
        self.order = functools.lru_cache(maxsize=2)(functools.partial(permutation, len(records), seed))  # of an epoch

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every clip has been shown at least once."""
        return math.ceil(len(self.records) / self.batch_size)

    def requests(self, step: int) -> list[ClipRequest]:
        first = step * self.batch_size + self.rank * self.share
        return [self.request(position) for position in range(first, first + self.share)]

    def request(self, position: int) -> ClipRequest:
        epoch, place = divmod(position, len(self.records))
        index = int(self.order(epoch)[place])
        request = centred(self.records[index], self.frames[index], self.loader, self.labels[index])
        if not self.loader.augment:
            return request
        side, crop_x, crop_y, flip, *places = uniforms(4 + self.parts, self.seed, epoch, place)
        if places:
            request = replace(request, frames=segment_frames(request.record, places))
        low, high = self.loader.short_side_min, self.loader.short_side_max
        short_side = low + math.floor(side * (high - low + 1))
        return replace(request, short_side=short_side, crop_x=crop_x, crop_y=crop_y, flip=flip < self.loader.flip)


class TestPlan:
    """Every test view of every clip exactly once over all ranks, nothing padded; the views of a clip stay together."""

    __test__ = False  # not a test class, whatever pytest makes of its name

    def __init__(
        self,
        records: Sequence[ClipRecord],
        labels: Sequence[int],
        clip: ClipConfig,
        loader: LoaderConfig,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_plan(records, labels, rank, world, "test")
        first, last = (len(records) * share // world for share in (rank, rank + 1))
        self.records, self.labels = list(records[first:last]), list(labels[first:last])
        self.clip, self.loader, self.batch_size = clip, loader, batch_size

    def batches(self) -> list[list[ClipRequest]]:
        """This rank's requests in batches of at most `batch_size`; ranks may have unequal numbers of them."""
        requests = [
            centred(record, frames, self.loader, label, view)
            for record, label in zip(self.records, self.labels, strict=True)
            for view, frames in enumerate(view_frames(record, self.clip))
        ]
        return [requests[i : i + self.batch_size] for i in range(0, len(requests), self.batch_size)]


def held_out_groups(
    records: Sequence[ClipRecord], labels: Sequence[int], settings: EvaluationConfig, seed: int
) -> frozenset[str]:
    """Groups of these training clips that validate: `evaluation.validation_groups`, or drawn for `validation_share`.

    None when `evaluation.every_steps` is 0. A draw depends on `seed` and the names of the groups alone; it leaves out a
    group that is the last with training clips of a class. Raises `DataError` when there is nothing to hold out.
    """
    if not settings.every_steps:
        return frozenset()
    groups = sorted({record.group for record in records})
    if len(groups) < 2:
        raise DataError(
            f"evaluation.every_steps={settings.every_steps} holds out whole groups of training clips, but all of them "
            f"are of one group ({groups[0] if groups else ''!r}): fill the group column of dataset.annotations (who, "
            f"which camera, which place) and build the shards again, or set evaluation.every_steps=0"
        )
    shown = {group: Counter[int]() for group in groups}
    for record, label in zip(records, labels, strict=True):
        shown[record.group][label] += 1
    left = Counter(labels)
    if settings.validation_groups:
        return check_chosen_groups(settings.validation_groups, shown, left)
    count = max(1, round(settings.validation_share * len(groups)))
    held: list[str] = []
    for index in permutation(len(groups), seed, *HOLDOUT_KEY):
        own = shown[groups[index]]
        if len(held) < count and all(left[label] > clips for label, clips in own.items()):
            held.append(groups[index])
            left -= own
    if not held:
        raise DataError(
            f"evaluation.validation_share={settings.validation_share:g} finds no group to hold out: each of the "
            f"{len(groups)} groups of training clips is the only one with some action; set evaluation.every_steps=0, "
            f"or film these actions with more people"
        )
    return frozenset(held)


def check_chosen_groups(names: Sequence[str], shown: Mapping[str, Counter[int]], left: Counter[int]) -> frozenset[str]:
    """The named groups, if they are groups of training clips and leave clips of every class to train on."""
    if unknown := sorted(set(names) - set(shown)):
        raise DataError(
            f"evaluation.validation_groups lists {', '.join(map(repr, unknown))}; the groups of the training clips are "
            f"{', '.join(shown)}"
        )
    for name in set(names):
        left.subtract(shown[name])
    if gone := sum(count <= 0 for count in left.values()):
        raise DataError(
            f"evaluation.validation_groups={list(names)} hold all training clips of {gone} actions; hold out fewer or "
            f"other groups of {', '.join(shown)}"
        )
    return frozenset(names)


def describe_clips(records: Sequence[ClipRecord], labels: Sequence[int]) -> dict[str, Any]:
    """Number of clips, digest of all in order, and of each shard's: what `clips.json` says."""
    lines: list[str] = []
    shards: dict[str, list[str]] = {}
    for record, label in zip(records, labels, strict=True):
        lines.append(json.dumps([*(getattr(record, name) for name in IDENTITY), label]))
        shards.setdefault(record.shard, []).append(lines[-1])
    return {
        "clips": len(lines),
        "sha256": digest(lines),
        "shards": {name: {"clips": len(part), "sha256": digest(part)} for name, part in shards.items()},
    }


def digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def claim_clips(run_dir: Path, shards_dir: str, records: Sequence[ClipRecord], labels: Sequence[int]) -> None:
    """Write `clips.json` into a new run folder; in one that is continued compare with it.

    Raises `DataError` naming the first shards whose training clips or labels differ, and the setting.
    """
    path, clips = run_dir / "clips.json", describe_clips(records, labels)
    if not path.is_file():
        write_json(path, clips)
        return
    before = read_clips(path)
    if before["sha256"] != clips["sha256"]:
        raise DataError(
            f"dataset.shards={shards_dir} holds other training clips than run {run_dir} began with: "
            f"{'; '.join(differences(before, clips))}. Continue with the shards it began with, or choose another "
            "folder for the run: run=..."
        )


def read_clips(path: Path) -> dict[str, Any]:
    """`clips.json` of a run. Raises `DataError` when it is damaged."""
    try:
        clips: dict[str, Any] = read_json(path, DataError)
        (
            int(clips["clips"]),
            str(clips["sha256"]),
            [(part["clips"], part["sha256"]) for part in clips["shards"].values()],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({type(error).__name__}: {error}); delete it if dataset.shards holds the clips that "
            "the run began with, or choose another folder for the run: run=..."
        ) from error
    return clips


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, which shards differ, at most four."""
    changes = []
    for name in sorted({*before["shards"], *now["shards"]}):
        old, new = before["shards"].get(name), now["shards"].get(name)
        if old is None or new is None:
            state = "is new" if old is None else "is gone"
            changes.append(f"{name} {state} ({(old or new)['clips']} clips)")
        elif old["clips"] != new["clips"]:
            changes.append(f"{name} had {old['clips']} clips, has {new['clips']}")
        elif old["sha256"] != new["sha256"]:
            changes.append(f"{name} has other clips or labels")
    more = [f"and {len(changes) - 4} more shards"] if len(changes) > 4 else []
    return [*changes[:4], *more] or ["the same clips in another order"]
