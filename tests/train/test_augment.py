"""Mixup, CutMix and colours: by hand, off unless asked for, and refused where labels cannot be shared."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, one_hot

from ace_dist.config import LoaderConfig, load_config
from ace_dist.data.loader.base import Batch
from ace_dist.train.augment import augment
from ace_dist.train.checkpoint import what_changed
from ace_dist.utils.errors import ConfigError

LOADER = LoaderConfig(crop=16)
MEAN, STD = (torch.tensor(values)[:, None, None] for values in (LOADER.mean, LOADER.std))


@pytest.fixture
def batch(rng):
    """Six clips of two frames and six classes, normalised; each clip has one colour, which tells it apart."""
    rgb = torch.tensor(rng.uniform(0.2, 0.8, (6, 1, 3, 1, 1))).float().expand(6, 2, 3, 16, 16)
    return Batch((rgb - MEAN) / STD, torch.arange(6), list("abcdef"), [0] * 6, torch.zeros(6, 2))


def test_off_unless_asked_for(batch):
    assert augment(batch, LOADER, 6, (0, 1, 0)) is batch


@pytest.mark.parametrize("how", ["mixup", "cutmix", "both"])
def test_pixels_and_labels_are_shared_alike(batch, how, rng):
    """A clip's mean colour lies between its own and its partner's by the share that its label keeps."""
    loader = replace(LOADER, mixup=0.8 * (how != "cutmix"), cutmix=1.0 * (how != "mixup"))
    pasted = changed = 0
    for step in range(40):
        key = (int(rng.integers(1 << 30)), step, 0)
        mixed = augment(batch, loader, 6, key)
        assert torch.equal(mixed.video, augment(batch, loader, 6, key).video)  # a function of seed and step
        for clip in range(6):
            shares = mixed.labels[clip]
            partner = int((shares - 2 * one_hot(torch.tensor(clip), 6)).argmax())
            kept = shares[clip] if shares[partner] > 0 else torch.tensor(1.0)
            expected = kept * batch.video[clip].mean((2, 3)) + (1 - kept) * batch.video[partner].mean((2, 3))
            assert torch.allclose(mixed.video[clip].mean((2, 3)), expected, atol=1e-4)
            colours = len(mixed.video[clip, 0, 0].unique())
            pasted += colours == 2
            changed += bool(kept < 1)
    assert changed > 100 and (pasted == 0 if how == "mixup" else pasted > 40) and (how != "both" or pasted < changed)


def test_shared_labels_are_the_mean_of_both_losses(batch, rng):
    """What the cross-entropy makes of them, label smoothing included."""
    scores = torch.randn(6, 6, dtype=torch.float64)
    mixed = augment(batch, replace(LOADER, mixup=0.8), 6, (int(rng.integers(99)), 3, 0)).labels.double()
    own = torch.stack(
        [cross_entropy(scores, torch.full((6,), c), label_smoothing=0.1, reduction="none") for c in range(6)]
    )
    expected = (mixed * own.T).sum(1).mean()
    assert cross_entropy(scores, mixed, label_smoothing=0.1) == pytest.approx(float(expected), rel=1e-6)


def test_colours_change_per_clip_and_grey_has_none(batch, rng):
    grey = augment(batch, replace(LOADER, gray_scale=1.0), 6, (0, 1, 0)).video * STD + MEAN
    luma = (batch.video * STD + MEAN) * torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # BT.601
    assert torch.allclose(grey, luma.sum(2, keepdim=True).expand_as(grey), atol=1e-5)
    moved = [
        augment(batch, replace(LOADER, color_jitter=0.5), 6, (int(rng.integers(99)), step, 0)) for step in range(40)
    ]
    changes = torch.stack([(each.video - batch.video).abs().amax((1, 2, 3, 4)) > 1e-4 for each in moved]).float().mean()
    assert 0.3 < changes < 0.7
    for each in moved:
        assert torch.equal(each.labels, batch.labels) and torch.allclose(each.video[:, 0], each.video[:, 1])
        assert ((each.video * STD + MEAN) > -1e-5).all() and ((each.video * STD + MEAN) < 1 + 1e-5).all()


@pytest.mark.slow
def test_a_run_trains_on_blended_clips(six_steps, tmp_path):
    """ViFi-CLIP with all of them: finite losses, other ones than without."""
    losses = []
    for name, more in (("plain", []), ("blended", ["loader.mixup=0.8", "loader.cutmix=1", "loader.color_jitter=0.8"])):
        six_steps(tmp_path / name, "method=vifi_ft", "training.max_steps=2", *more)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert all(map(math.isfinite, losses[1])) and losses[0] != losses[1]


@pytest.mark.slow
def test_what_starts_anew_has_a_rate_of_its_own(six_steps, tmp_path):
    """Text4Vis: the transformer over frames at ten times the image tower's rate, by its authors' recipe."""
    rates = ["training.lr_video=1e-3", "training.lr_new=1e-2", "training.optimizer=sgd", "training.warmup=0"]
    more = ["training.schedule=constant", "training.momentum=0", "training.weight_decay=0"]
    trained = []
    for name, settings in (("own", [*rates, *more]), ("one", [*rates[:1], "training.lr_new=1e-3", *rates[2:], *more])):
        six_steps(tmp_path / name, "method=text4vis", "training.max_steps=1", *settings)
        trained.append(load_file(tmp_path / name / "model" / "trained.safetensors"))
    line = json.loads((tmp_path / "own" / "metrics.jsonl").read_text().splitlines()[0])
    assert (line["lr_video"], line["lr_new"]) == (1e-3, 1e-2)
    moved = {name for name in trained[0] if not torch.equal(trained[0][name], trained[1][name])}
    assert moved and all(name.startswith("video.temporal.") for name in moved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=ace", "loader.mixup=0.8"], "method.objective=concept cannot take"),
        (["method=vifi_ft", "loader.cutmix=1", "loader.augment=false"], "needs loader.augment=true"),
        (["method=vifi_ft", "loader.color_jitter=2"], r"must lie in \[0, 1\]"),
        (["method=vifi_ft", "loader.mixup=-1"], "must be at least 0"),
    ],
)
def test_what_cannot_be_blended_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(settings)
    load_config(["method=vifi_ft", "loader.mixup=0.8", "loader.cutmix=1", "loader.color_jitter=0.8"])


def test_what_goes_by_micro_batch_is_said_when_a_run_goes_on_in_other_pieces():
    """Blends and colours with another number of pieces, BIKE with another number of them in a step; else nothing."""
    blends = load_config(["method=vifi_ft", "loader.mixup=0.8", "loader.color_jitter=0.8"])
    ace, bike = load_config(["method=ace"]), load_config(["method=bike"])

    def said(config, was, now):
        ranks = [{"world_size": w, "accumulation": a, "zero_stage": 1, "precision": "fp32"} for w, a in (was, now)]
        return what_changed(config, *ranks)

    assert said(blends, (2, 1), (2, 1)) == ""
    for config, was, now, words in (
        (blends, (2, 1), (1, 1), "(loader.mixup, loader.color_jitter), so losses differ"),
        (blends, (1, 1), (1, 4), "(loader.mixup, loader.color_jitter), so losses differ"),
        (blends, (2, 1), (1, 2), "agrees within rounding"),
        (bike, (2, 1), (1, 2), "(method.objective=bike), so losses differ"),
        (bike, (2, 1), (1, 1), "agrees within rounding"),
        (ace, (2, 1), (1, 4), "now with 1 rank(s) (was 2), 4 micro-batch(es) (was 1)"),
        (ace, (2, 1), (1, 4), "agrees within rounding"),
    ):
        assert words in said(config, was, now)
