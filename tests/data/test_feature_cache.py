"""The feature cache gives what the frozen blocks give, in order; it is bounded, and damage is named."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_video_models import TOWERS

from ace_dist.config import LoaderConfig, VideoConfig, load_config
from ace_dist.data.loader import feature_cache
from ace_dist.data.loader.base import Loader, build_batch
from ace_dist.data.loader.feature_cache import FeatureCache, read_features
from ace_dist.data.sampling import TrainPlan
from ace_dist.data.shards import ClipRecord
from ace_dist.models.dual_encoder import DualEncoder, build_video_tower
from ace_dist.models.timesformer import TimeSformer
from ace_dist.utils.errors import ConfigError, DataError, ModelError

FRAMES, SIDE = 3, 24
FEATURES_BYTES = 4 * (1 + 4 * FRAMES) * 24  # a clip: cls and 2 x 2 patches of 3 frames, 24 wide


def tower(**changes) -> TimeSformer:
    """A random TimeSformer of four blocks, of which two train, with temporal layers that do something."""
    video = TimeSformer(
        VideoConfig(
            **{"width": 24, "depth": 4, "heads": 2, "patch": 12, "image_size": SIDE, "frames": FRAMES, "embed_dim": 8,
               "trained_blocks": 2, **changes}
        )
    )  # fmt: skip
    for block in video.blocks:
        torch.nn.init.normal_(block.temporal_fc.weight, std=0.1)
    return video


class FakeLoader(Loader):
    """Clips made of their names; remembers which it decoded, and how far it looked ahead."""

    backend = decoder = "fake"

    def __init__(self, ahead=2, device="cpu"):
        self.decoded, self.ahead, self.closed, self.device = [], ahead, False, device

    def decode(self, batches):
        """Looks `ahead` batches ahead, as real ones do."""
        queue = []
        for requests in batches:
            assert requests, "a batch without a clip"
            self.decoded += [request.record.key for request in requests]
            queue.append(requests)
            if len(queue) > self.ahead:
                yield self.made(queue.pop(0))
        yield from map(self.made, queue)

    def made(self, requests):
        """Their clips."""
        return build_batch(torch.stack([pixels(request) for request in requests]).to(self.device), requests)

    def close(self):
        """Remember it."""
        self.closed = True


def pixels(request) -> torch.Tensor:
    """What a request shows: noise that its record and its crop determine."""
    name = f"{request.record.sha256} {request.frames} {request.short_side} {request.crop_x} {request.flip}"
    generator = torch.Generator().manual_seed(int.from_bytes(name.encode(), "little") % 2**63)
    return torch.randn(FRAMES, 3, SIDE, SIDE, generator=generator)


def records(count: int) -> list[ClipRecord]:
    """Clips of different contents."""
    return [
        ClipRecord(
            f"clip{i}", "train-0.tar", 0, 9, 30, 10.0, 40, 30, 0.5, 2.5, "spin", "block", "train", "a", f"{i:08x}"
        )
        for i in range(count)
    ]


def settings(folder, *more):
    """A configuration with the cache in `folder`."""
    return load_config(["experiment=demo", "loader.augment=false", f"loader.feature_cache={folder}", *more])


def cache_in(folder, loader, video, *more, device="cpu") -> FeatureCache:
    """The cache in `folder` before a loader."""
    return FeatureCache(loader, settings(folder, *more).loader, video, torch.device(device))


def draw_requests(count: int, batch: int, steps: int, seed: int = 0):
    """Batches of a plan without augmentation, over `count` clips."""
    config = LoaderConfig(crop=SIDE, test_short_side=SIDE, augment=False)
    clip = load_config(["experiment=demo", f"dataset.clip.frames={FRAMES}"]).dataset.clip
    plan = TrainPlan(records(count), list(range(count)), clip, config, batch, seed)
    return [plan.requests(step) for step in range(steps)]


@pytest.mark.parametrize("trained", [0, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_trunk_and_the_rest_are_the_whole(trained, training) -> None:
    """Bit for bit, gradients of what trains included, with stochastic depth."""
    video = tower(trained_blocks=trained, drop_path=0.4, train_head=True).train(training)
    clips = torch.randn(2, FRAMES, 3, SIDE, SIDE)
    results = []
    for given in (clips, video.frozen_features(clips)):
        video.set_step(seed=1, step=2, rank=0, world=1)
        embedded = video(given)
        embedded.square().sum().backward()
        results.append([embedded.detach(), *(p.grad.clone() for p in video.parameters() if p.grad is not None)])
        video.zero_grad()
    assert len(results[0]) == len(results[1]) > 1
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert video.frozen_depth == min(4 - trained, 3)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_in_order_and_each_clip_is_decoded_in_the_first_epoch_alone(tmp_path, ahead) -> None:
    """Seven clips in batches of four over four epochs: hits and misses mix; a second process decodes nothing."""
    batches, video = draw_requests(count=7, batch=4, steps=7), tower()
    inner = FakeLoader(ahead)
    cache = cache_in(tmp_path, inner, video)
    first = list(cache.stream(batches))
    later = cache_in(tmp_path, FakeLoader(ahead), video)
    again = list(later.stream(batches))
    for requests, batch, same in zip(batches, first, again, strict=True):
        alone = torch.stack([video.frozen_features(pixels(request)[None])[0] for request in requests])
        assert torch.equal(batch.video, alone) and torch.equal(same.video, alone)
        assert batch.ids == [request.record.key for request in requests]
        assert batch.labels.tolist() == [request.label for request in requests]
    assert set(inner.decoded) == {f"clip{i}" for i in range(7)} and len(inner.decoded) < 7 + 4 * (ahead + 3)
    assert later.inner.decoded == [] and (later.computed, later.recalled) == (0, 28)
    cache.close()
    later.close()
    assert inner.closed


def test_a_cache_may_be_named_by_a_variable(tmp_path, monkeypatch) -> None:
    """As other folders of a node's own disk are."""
    monkeypatch.setenv("ROOM", str(tmp_path))
    cache = cache_in("$ROOM/cache", FakeLoader(), tower())
    cache.close()
    assert cache.root == tmp_path / "cache"


def test_a_stream_that_is_left_can_be_followed_by_another(tmp_path) -> None:
    """As a run that stops early leaves one."""
    cache = cache_in(tmp_path, FakeLoader(), tower())
    stream = cache.stream(draw_requests(6, 2, 6))
    next(stream)
    stream.close()
    assert [batch.ids for batch in cache.stream(draw_requests(6, 2, 3))] == [
        [request.record.key for request in requests] for requests in draw_requests(6, 2, 3)
    ]
    cache.close()


def test_another_trunk_decoder_or_view_has_files_of_its_own(tmp_path) -> None:
    """Equal weights share; trained weights do not matter; frozen ones, the precision and the frames shown do."""
    video = tower()
    folder = cache_in(tmp_path, FakeLoader(), video).folder
    with torch.no_grad():
        video.blocks[3].mlp.fc1.weight += 1
    assert cache_in(tmp_path, FakeLoader(), video).folder == folder
    low = tower()
    low.load_state_dict(video.state_dict())
    assert cache_in(tmp_path, FakeLoader(), low.bfloat16()).folder != folder
    other = FakeLoader()
    other.decoder = "another"
    assert cache_in(tmp_path, other, video).folder != folder
    mean = "loader.mean=[0.4,0.45,0.45]"
    assert cache_in(tmp_path, FakeLoader(), video, mean).folder != folder
    with torch.no_grad():
        video.blocks[0].norm1.bias[0] += 1
    cache = cache_in(tmp_path, FakeLoader(), video)
    assert cache.folder != folder
    assert json.loads((cache.folder / "about.json").read_text())["decoder"] == "fake"
    request = draw_requests(1, 1, 1)[0][0]
    paths = {cache.path(type(request)(**{**vars(request), key: value})) for key, value in
             (("frames", (0, 1, 2)), ("short_side", 30), ("crop_x", 0.0), ("flip", True), ("label", 5))}  # fmt: skip
    assert len(paths) == 5 and cache.path(request) in paths  # the label is no part of the picture


def test_the_folder_is_bounded_and_says_so(tmp_path, capsys, monkeypatch) -> None:
    """Room for three of six clips: three are kept, none is dropped for another, the rest is computed each time."""
    monkeypatch.setattr(feature_cache, "RECOUNT_SHARE", 0.0)
    video = tower()
    empty = cache_in(tmp_path, FakeLoader(), video)
    limit = (empty.held + 3.6 * (FEATURES_BYTES + 150)) / 2**30
    cache = cache_in(tmp_path, FakeLoader(), video, f"loader.feature_cache_gib={limit}")
    batches = draw_requests(6, 3, 6)
    first, kept = list(cache.stream(batches[:2])), sorted(cache.folder.glob("*.safetensors"))
    assert len(kept) == 3 and sum(path.stat().st_size for path in tmp_path.rglob("*.*")) <= limit * 2**30
    assert f"{tmp_path} is full" in capsys.readouterr().out
    cache.computed = cache.recalled = 0
    assert len(first) == 2 and len(list(cache.stream(batches[2:]))) == 4
    assert (cache.computed, cache.recalled) == (6, 6) and sorted(cache.folder.glob("*.safetensors")) == kept


@pytest.mark.parametrize("name", sorted(TOWERS.keys() - {"vit", "spacetime"}))  # which the cache does not serve
def test_a_tower_in_bf16_takes_clips_in_fp32(name):
    """As a run on a GPU has them: the loader gives fp32, and the cache asks the tower itself."""
    video = build_video_tower(TOWERS[name]).bfloat16().eval()
    clip = torch.randn(1, 4, 3, 48, 48)
    assert torch.equal(video.frozen_features(clip), video.frozen_features(clip.bfloat16()))


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_clips_come_back_onto_the_device(name, tmp_path) -> None:
    """In bfloat16, as training on CUDA has it: the bits that were computed, clip by clip, and they go through the rest.

    There the error against float64, over eight random towers (of one alone it varies threefold), is at most twice that
    of the whole tower in bfloat16, whose batches of another size may be rounded in another order.
    """
    device = torch.device(name)
    errors: dict[str, list[torch.Tensor]] = {"read": [], "whole": []}
    for number in range(8):
        exact = tower().double()
        video = tower().to(device, torch.bfloat16)
        exact.load_state_dict(video.state_dict())
        batches, folder = draw_requests(4, 2, 4), tmp_path / str(number)
        first, again = (
            [batch.video for batch in cache_in(folder, FakeLoader(device=device), video, device=device).stream(batches)]
            for _ in range(2)
        )
        for fresh, read, requests in zip(first, again, batches, strict=True):
            clips = torch.stack([pixels(request) for request in requests]).to(device, torch.bfloat16)
            alone = torch.cat([video.frozen_features(clip[None]) for clip in clips])
            assert read.device.type == name and read.dtype == torch.bfloat16
            assert torch.equal(fresh, read) and torch.equal(read, alone)
            true = exact(clips.double().cpu())
            for key, given in (("read", read), ("whole", clips)):
                errors[key].append(video(given).double().cpu() - true)
    read_error, whole_error = (torch.cat(parts).norm() for parts in errors.values())
    assert 0 < read_error < 2 * whole_error


def test_what_killed_writers_left_goes_and_a_full_disk_ends_no_run(tmp_path, monkeypatch, capsys) -> None:
    """Old temporary files are deleted at opening, those of a living writer are not; without space all is computed."""
    opened = cache_in(tmp_path, FakeLoader(), tower())
    old, new, ahead = (opened.folder / f".{name}.safetensors.0a1b2c3d.partial" for name in ("old", "new", "ahead"))
    for path in (old, new, ahead):
        path.write_bytes(bytes(1000))
    os.utime(old, (1e9, 1e9))
    os.utime(ahead, (4e9, 4e9))  # the clock was set back since

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(feature_cache, "write_bytes", full)
    cache = cache_in(tmp_path, FakeLoader(), tower())
    assert new.exists() and not old.exists() and not ahead.exists()
    assert len(list(cache.stream(draw_requests(2, 2, 3)))) == 3 and cache.computed == 6
    assert "no space left below" in capsys.readouterr().out


def test_compiling_does_not_reach_the_trunk(tmp_path) -> None:
    """Training compiles its tower, tests do not: both fill one cache, so the trunk is the same function for both."""
    plain, compiled = tower(), tower()
    compiled.load_state_dict(plain.state_dict())
    for block in compiled.blocks:
        block.compile(backend=lambda graph, inputs: pytest.fail("the trunk was compiled"))
    clips = torch.randn(2, FRAMES, 3, SIDE, SIDE)
    assert torch.equal(plain.frozen_features(clips), compiled.frozen_features(clips))


def test_a_damaged_file_is_named(tmp_path) -> None:
    cache = cache_in(tmp_path, FakeLoader(), tower())
    (batch,) = draw_requests(1, 1, 1)
    list(cache.stream([batch]))
    path = cache.path(batch[0])
    assert read_features(path).shape == (1 + 4 * FRAMES, 24)
    data = bytearray(path.read_bytes())
    data[-1 - int(np.random.default_rng().integers(FEATURES_BYTES))] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"{path.name} of loader.feature_cache is damaged .*delete it"):
        list(cache.stream([batch]))
    save_file({"features": torch.zeros(2)}, path)
    with pytest.raises(DataError, match=f"{path.name} of loader.feature_cache is damaged .*delete it"):
        list(cache.stream([batch]))
    path.write_bytes(data[:50])
    with pytest.raises(DataError, match=f"{path.name} of loader.feature_cache cannot be read: .*delete it"):
        list(cache.stream([batch]))


def test_what_cannot_be_cached_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"feature_cache=here needs loader\.augment=false"):
        load_config(["experiment=demo", "loader.feature_cache=here"])
    for words in (["model.video.trained_blocks=6"], ["method=vifi_ft"], ["model.video.train_time_embed=true"]):
        config = settings(tmp_path, *words)
        model = DualEncoder(config.model.video, config.model.text)
        with pytest.raises(ModelError, match="has no frozen blocks below; set loader.feature_cache=null"):
            model.frozen_part(config.loader)
