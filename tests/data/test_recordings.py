"""Protects the way from a user's own videos to decoded clips, through the launcher, on recordings of real scenes.

Uses ../shared/videos beside the repository when present, else recordings of its own with the same traits: h264, odd
rates, full HD, several aspect ratios.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from data_worlds import numbered_frames, read_frames, small_loader, write_video
from PIL import Image

from ace_dist.config import ClipConfig
from ace_dist.data.loader.dali import DaliLoader
from ace_dist.data.loader.pyav import PyavLoader
from ace_dist.data.sampling import TestPlan, TrainPlan
from ace_dist.data.shards import ShardSet

REAL = Path(__file__).resolve().parents[3] / "shared" / "videos"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """At least four h264 files of 2 to 10 seconds."""
    recordings = sorted(REAL.glob("*.mp4")) if REAL.is_dir() else []
    if recordings:
        return recordings
    folder = tmp_path_factory.mktemp("videos")
    made = [
        ("wide", 256, 340, 28, 84),
        ("hd", 1080, 1920, Fraction(561, 20), 60),
        ("ntsc", 240, 426, Fraction(30000, 1001), 90),
        ("ego", 288, 384, 30, 60),
        ("portrait", 340, 256, 25, 75),
    ]
    options = {"crf": "28", "g": "250", "bf": "2", "preset": "ultrafast"}
    return [
        write_video(folder / f"{name}.mp4", numbered_frames(count, height, width), rate=rate, options=options)
        for name, height, width, rate, count in made
    ]


def annotate(folder, videos):
    """A CSV with two overlapping segments of each video, every other video in the test split."""
    rows = ["video,start_s,end_s,verb,object,split,group"]
    for number, video in enumerate(videos):
        split = "test" if number % 2 else "train"
        for start, verb in ((0.11, "lift"), (0.62, "spin")):  # no sampling time half-way between two frames
            rows.append(f"{video},{start},{start + 1.3:.2f},{verb},item,{split},p")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def test_from_own_videos_to_clips_through_the_launcher(tmp_path, videos, launch):
    csv, shards_dir = annotate(tmp_path, videos), tmp_path / "shards"
    settings = ["experiment=own", f"dataset.annotations={csv}", f"dataset.shards={shards_dir}"]
    settings += ["dataset.encoding.short_side=128", "dataset.encoding.codec=mjpeg", "dataset.encoding.quality=4"]
    done = launch("build_shards", *settings)
    shards = ShardSet.load(shards_dir)
    assert len(shards.records) == 2 * len(videos)
    assert f"{len(shards.split('train'))} training and {len(shards.split('test'))} test clips" in done.stdout
    assert all(min(r.width, r.height) == 128 and r.width % 2 == r.height % 2 == 0 for r in shards.records)

    clip, loader = ClipConfig(8, 1.0, 3), small_loader()
    train = TrainPlan(shards.records, range(len(shards.records)), clip, loader, 4, seed=0)
    test = TestPlan(shards.records, range(len(shards.records)), clip, loader, 6)
    requests = [train.requests(step) for step in range(3)] + test.batches()
    decoded = []
    for kind in (partial(DaliLoader, codec=shards.codec), PyavLoader):
        backend = kind(shards.folder, loader, torch.device("cpu"))
        decoded.append(list(backend.stream(requests)))
        backend.close()
    for one, other in zip(*decoded, strict=True):
        assert one.ids == other.ids and torch.equal(one.frame_indices, other.frame_indices)
        assert float((one.video - other.video).abs().mean()) * 255 * loader.std[0] < 0.3

    again = launch("build_shards", *settings, "dataset.encoding.gop=4", check=False)
    assert again.returncode == 2 and again.stderr.startswith("error: dataset.shards=") and "encoding" in again.stderr


def by_hand(pictures, side, crop):
    """Full-size frames resized by Pillow and cropped at the centre; both roundings of an odd rest are the centre."""
    height, width = pictures.shape[1:3]
    size = (round(width * side / min(height, width)), round(height * side / min(height, width)))
    small = np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BILINEAR)) for p in pictures])
    rests = [(small.shape[axis] - crop) / 2 for axis in (1, 2)]
    for top in {math.floor(rests[0]), math.ceil(rests[0])}:
        for left in {math.floor(rests[1]), math.ceil(rests[1])}:
            yield small[:, top : top + crop, left : left + crop].astype(float)


def test_a_test_view_shows_the_recording_at_its_times(tmp_path, videos, launch):
    csv, shards_dir = annotate(tmp_path, videos), tmp_path / "shards"
    launch("build_shards", "experiment=own", f"dataset.annotations={csv}", f"dataset.shards={shards_dir}")
    shards, loader = ShardSet.load(shards_dir), small_loader(crop=64, test_short_side=64)
    backend = PyavLoader(shards.folder, loader, torch.device("cpu"))
    plan = TestPlan(shards.records, range(len(shards.records)), ClipConfig(5, 1.0, 1), loader, 1)
    for batch in backend.stream(plan.batches()):
        (video,) = (path for path in videos if batch.ids[0].startswith(f"{path.stem}-"))
        recording = read_frames(video)
        middle = int(batch.ids[0].split("-")[-2]) / 1000 + 1.3 / 2
        stored = recording.start_s + np.arange(len(recording.frames)) / recording.fps
        nearest = np.abs(stored - (middle + (np.arange(5) - 2) / 5)[:, None]).argmin(1)
        shown = ((batch.video[0] * 0.225 + 0.45) * 255).permute(0, 2, 3, 1).numpy()
        differences = [np.abs(shown - right).mean() for right in by_hand(recording.frames[nearest], 64, 64)]
        # A lossy codec and one more resize lie between: 1 to 3 grey levels; the frame before or after is 4 to 20 away.
        assert min(differences) < 4, video
    backend.close()
