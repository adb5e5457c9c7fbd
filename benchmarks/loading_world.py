"""Clips to measure loading with: photographs panned under a moving patch and sensor noise, encoded as our builder does.

A benchmark of decoders needs pictures that cost what real ones cost; rendered or random frames are far too cheap or too
dear. The two photographs come with scikit-learn. `Case` says what a shard folder holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from torch.nn.functional import interpolate

from ace_dist.concepts import Action, load_class_table
from ace_dist.config import ClipConfig, DatasetConfig, EncodingConfig, load_config, resolve_path
from ace_dist.data.build.shards import Build
from ace_dist.data.segments import RawClip, Reader, Segment
from ace_dist.data.shards import ShardSet

MARGIN_S = 0.25
# The paper's clips (ACE, implementation details): frames and seconds, at the rate that makes the stride whole.
SHAPES = {"ata": (30, 3.0, 30.0), "ikea": (25, 2.0, 25.0), "gtea": (15, 1.0, 15.0)}
QUALITY = {"vp9": 30, "mjpeg": 5, "h264": 23}


@dataclass(frozen=True)
class Case:
    """One kind of shard: whose clips, in which codec, how large, with key frames how far apart."""

    dataset: str
    codec: str
    short_side: int = 256
    gop: int = 8
    fps: float | None = None  # None: the rate of the camera

    @property
    def clip(self) -> ClipConfig:
        frames, seconds, _ = SHAPES[self.dataset]
        return ClipConfig(frames, seconds)

    @property
    def name(self) -> str:
        return f"{self.dataset}_{self.codec}_{self.short_side}_gop{self.gop}" + (
            f"_{self.fps:g}fps" if self.fps else ""
        )


@dataclass(frozen=True)
class Photographs(Reader):
    """Pans over photographs, 16:9, one segment a clip that lasts as long as the training window."""

    count: int
    seconds: float
    fps: float
    short_side: int
    actions: tuple[Action, ...]

    def segments(self) -> list[Segment]:
        end = MARGIN_S + self.seconds
        actions = [self.actions[i % len(self.actions)] for i in range(self.count)]
        return [
            Segment(f"clip{i:03d}", "", MARGIN_S, end, action.verb, action.object, "train")
            for i, action in enumerate(actions)
        ]

    def read(self, segment: Segment, start_s: float, end_s: float) -> RawClip:
        rng = np.random.default_rng(int(segment.id[4:]))
        height, width = self.short_side, self.short_side * 16 // 9 // 2 * 2
        photo = photograph(int(segment.id[4:]) % 2, round(1.3 * height), round(1.3 * width))
        noise = rng.integers(-2, 3, (2 * height, 2 * width, 1), dtype=np.int16)
        count = round((self.seconds + 2 * MARGIN_S) * self.fps)
        frames = np.empty((count, height, width, 3), np.uint8)
        reach, side = 0.13 * height, height // 4
        for index in range(count):
            t = index / self.fps
            y, x = (
                round(float(v)) for v in (0.15 * height + reach * np.sin(t), 0.15 * width + reach * np.cos(0.7 * t))
            )
            picture = photo[y : y + height, x : x + width].copy()
            py, px = (int(v) for v in (height * (0.3 + 0.2 * np.sin(2 * t)), width * (0.4 + 0.2 * np.cos(2 * t))))
            picture[py : py + side, px : px + side] = photo[:side, :side]
            oy, ox = rng.integers(0, (height, width))
            frames[index] = np.clip(picture + noise[oy : oy + height, ox : ox + width], 0, 255)
        return RawClip(frames, self.fps, 0.0)


def photograph(which: int, height: int, width: int) -> NDArray[np.int16]:
    """A photograph of scikit-learn, resized."""
    picture = torch.from_numpy(load_sample_image(("china.jpg", "flower.jpg")[which]).copy()).permute(2, 0, 1)[None]
    resized = interpolate(picture.float(), (height, width), mode="bicubic", antialias=True)[0].clamp(0, 255)
    return resized.permute(1, 2, 0).numpy().astype(np.int16)


def base_actions(dataset: str) -> tuple[Action, ...]:
    """The base actions of a data set of the paper, so that its experiment trains on these clips."""
    config = load_config([f"experiment={dataset}_ace"]).dataset
    assert config.classes is not None and config.novel is not None
    labels = load_class_table(resolve_path(config.classes)).actions.values()
    return tuple(action for action in labels if str(action) not in config.novel)


def build(case: Case, folder: Path, count: int, workers: int = 1) -> ShardSet:
    """The shards of a case, built when they are not there, by `workers` processes (0: one a core)."""
    _, seconds, fps = SHAPES[case.dataset]
    encoding = EncodingConfig(
        codec=case.codec,
        short_side=0,  # the reader renders at this size already
        fps=case.fps,
        gop=case.gop,
        quality=QUALITY[case.codec],
        margin_s=MARGIN_S,
    )
    reader = Photographs(count, seconds, fps, case.short_side, base_actions(case.dataset))
    dataset = DatasetConfig(case.name, "rendered", shards=str(folder / case.name), clip=case.clip, encoding=encoding)
    shards = Build.plan(reader, dataset).run(workers=workers, progress=False)
    assert shards is not None
    return shards
