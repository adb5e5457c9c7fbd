"""The torchcodec loader shows the frames and crops of the PyAV loader, also without the package, with a stand-in."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import av
import numpy as np
import pytest
import torch
from data_worlds import NumberedReader, build_shards, small_encoding, small_loader

from ace_dist.config import ClipConfig, Config, DatasetConfig
from ace_dist.data.loader import build_loader
from ace_dist.data.loader.torchcodec import TorchcodecLoader
from ace_dist.data.sampling import TrainPlan
from ace_dist.utils.errors import DataError

CLIP = ClipConfig(6, 1.5, 3)
# In units of 1/255: FFmpeg's scaler repeats chroma samples where we interpolate, and pictures are rounded to bytes
# before they are resized. Measured with PyAV's copy of that scaler: colours mean 1.7, brightness mean 0.6 and 99 %
# within 2.5; a crop that is one pixel off has a mean of 14 and 12.
COLOUR_MEAN, LUMA_MEAN, LUMA_MOST = 3.0, 1.2, 5.0


class StandIn:
    """What the loader uses of torchcodec's `VideoDecoder`, on PyAV's FFmpeg and its scaler."""

    def __init__(self, data, seek_mode, num_ffmpeg_threads):
        assert (seek_mode, num_ffmpeg_threads) == ("approximate", 1)
        try:
            with av.open(io.BytesIO(data)) as container:
                self.frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        except av.error.FFmpegError as error:
            raise RuntimeError("Could not decode") from error

    def get_frames_at(self, indices):
        """A batch [N, 3, H, W], a view of [N, H, W, 3] as torchcodec's."""
        return SimpleNamespace(data=torch.from_numpy(np.stack([self.frames[i] for i in indices])).permute(0, 3, 1, 2))


@pytest.fixture(params=["stand-in", "torchcodec"])
def package(request, monkeypatch):
    """torchcodec itself where it is installed, or the stand-in under its name."""
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec")
        try:
            TorchcodecLoader(Path(), small_loader(), torch.device("cpu")).close()
        except DataError as error:
            pytest.skip(str(error))
        return
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    package.__version__, package.__spec__ = "0", importlib.util.spec_from_loader("torchcodec", None)
    decoders.VideoDecoder = StandIn
    for name, module in (("torchcodec", package), ("torchcodec.decoders", decoders)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture(params=["vp9", "mjpeg"])
def shards(request, tmp_path):
    reader = NumberedReader(3, sizes=((65, 87), (90, 66), (64, 64)))
    return build_shards(reader, tmp_path, CLIP, small_encoding(codec=request.param))


def run(shards, backend):
    """The training batches of two steps, as bytes."""
    loader_settings = small_loader(backend=backend, dtype="uint8")
    dataset = DatasetConfig(name="t", kind="tabletop", shards=str(shards.folder), clip=CLIP)
    plan = TrainPlan(shards.records, list(range(len(shards.records))), CLIP, loader_settings, 2, seed=3)
    loader = build_loader(Config(name="t", dataset=dataset, loader=loader_settings), "cpu")
    batches = list(loader.stream(plan.requests(step) for step in range(2)))
    loader.close()
    return batches


def test_the_same_clips_within_rounding(package, shards):
    for theirs, ours in zip(run(shards, "torchcodec"), run(shards, "pyav"), strict=True):
        assert theirs.ids == ours.ids and torch.equal(theirs.labels, ours.labels)
        assert theirs.video.shape == ours.video.shape and theirs.video.dtype == torch.uint8
        difference = theirs.video.float() - ours.video.float()
        luma = (difference * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(-3).abs()
        assert difference.abs().mean() < COLOUR_MEAN
        assert luma.mean() < LUMA_MEAN and luma.quantile(0.99) < LUMA_MOST


def test_a_missing_package_is_named_with_its_command(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.raises(DataError, match=r"torchcodec cannot be used .*: pip install 'torchcodec>=0\.8'"):
        run(shards, "torchcodec")
