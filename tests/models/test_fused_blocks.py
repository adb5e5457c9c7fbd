"""Frozen blocks by fused kernels: their numbers against the blocks in float64, their weights, and where they serve."""

from statistics import fmean

import pytest
import torch

from ace_dist.config import VideoConfig
from ace_dist.models import fused_blocks
from ace_dist.models.fused_blocks import FrozenTrunk, trunk_serves
from ace_dist.models.timesformer import TimeSformer
from ace_dist.utils.errors import ModelError

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)


def tower(width=96, heads=3, **changes):
    """Three frozen blocks of random weights, none zero."""
    config = VideoConfig(
        width=width, depth=4, heads=heads, patch=8, image_size=32, embed_dim=32, trained_blocks=1, **changes
    )
    model = TimeSformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=width**-0.5)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def plain_blocks(model, cls, patches):
    """The frozen blocks as they are."""
    backends = model.backends(patches)
    with torch.no_grad():
        for block in model.blocks[: model.frozen_depth]:
            cls, patches = block(cls, patches, None, backends)
    return cls, patches


def exact_blocks(model, video):
    """Embedded clips and what the blocks make of them in float64."""
    twin = TimeSformer(model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        embedded = twin.embed(video.cpu().double())
    return embedded, plain_blocks(twin, *embedded)


def errors(results, exact):
    """Relative to the norm of the exact tensor: cls, patches."""
    return [((a.cpu().double() - b).norm() / b.norm()).item() for a, b in zip(results, exact, strict=True)]


def run_trunk(model, cls, patches, fp8=False):
    backends = model.backends(patches)
    trunk = FrozenTrunk(model.blocks[: model.frozen_depth], model.config.heads, fp8)
    return trunk(cls, patches, backends.temporal, backends.spatial)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("clips", "frames"), [(2, 5), (1, 1), (3, 32), (1, 35)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_is_at_most_that_of_the_blocks(dtype, clips, frames, device):
    """Of cls and patches, 1.2 times for chance; every frame count, short attention or not."""
    model = tower()
    (cls, patches), exact = exact_blocks(model, torch.randn(clips, frames, 3, 32, 32))
    model.to(device, dtype)
    cls, patches = cls.to(device, dtype), patches.to(device, dtype)
    before = patches.clone()
    ours, plain = errors(run_trunk(model, cls, patches), exact), errors(plain_blocks(model, cls, patches), exact)
    assert torch.equal(patches, before)
    for mine, theirs in zip(ours, plain, strict=True):
        assert mine <= 1.2 * theirs + (1e-6 if dtype == torch.float32 else 5e-4)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_fp8_loses_no_more_than_its_digits(device):
    """Operands with 4 bits: a product of random factors is off by about 2^-4 sqrt(2/3) / 2 of its size, and the
    branches add up to most of what comes out here. The mean over eight towers: how much random weights enlarge the
    error of cls differs from one to the next (0.06 to 0.11 in sixty).
    """
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit products need compute capability 8.9")
    ours = []
    for _ in range(8):
        model = tower()
        (cls, patches), exact = exact_blocks(model, torch.randn(2, 5, 3, 32, 32))
        model.to(device, torch.bfloat16)
        result = run_trunk(model, cls.to(device).bfloat16(), patches.to(device).bfloat16(), fp8=True)
        ours.append(errors(result, exact))
    assert all(2e-3 < fmean(of_part) < 0.1 for of_part in zip(*ours, strict=True))


def test_autocast_changes_nothing():
    """Products are in the type of the weights."""
    model, cls, patches = tower(), torch.randn(1, 1, 96), torch.randn(1, 16, 2, 96)
    plain = run_trunk(model, cls, patches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = run_trunk(model, cls, patches)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


@pytest.mark.parametrize("fp8", [False, True])
def test_weights_are_read_again_when_they_change(fp8):
    """Loaded: as a new trunk computes, in the memory that it had (a CUDA graph reads it). Moved: as the new type."""
    model, other = tower(), tower()
    cls, patches = torch.randn(1, 1, 96), torch.randn(1, 16, 2, 96)
    trunk = FrozenTrunk(model.blocks[:3], 3, fp8)
    before = trunk(cls, patches, "sdpa", "sdpa")
    merged = trunk.blocks[1].temporal_out
    kept = merged.weight.values if fp8 else merged.weight
    place = kept.data_ptr()
    trunk.refresh()
    assert torch.equal(trunk(cls, patches, "sdpa", "sdpa")[1], before[1])
    model.load_state_dict(other.state_dict())
    trunk.refresh()
    after, fresh = (each(cls, patches, "sdpa", "sdpa") for each in (trunk, FrozenTrunk(other.blocks[:3], 3, fp8)))
    assert torch.equal(after[1], fresh[1]) and not torch.equal(after[1], before[1])
    assert kept.data_ptr() == place and kept is (trunk.blocks[1].temporal_out.weight[0] if fp8 else merged.weight)
    model.bfloat16()
    trunk.refresh()
    assert trunk(cls.bfloat16(), patches.bfloat16(), "sdpa", "sdpa")[1].dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_a_tower_on_a_gpu_uses_it(precision, capsys):
    """In training and for the feature cache the same bits, other weights at once, and it captures as a CUDA graph."""
    if precision == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("8-bit products need compute capability 8.9")
    fused_blocks.say_once.cache_clear()
    model = tower(trunk_precision=precision).to("cuda", torch.bfloat16)
    video = torch.randn(2, 5, 3, 32, 32, device="cuda", dtype=torch.bfloat16)
    first = model(video)
    assert f"fused, products in {'bfloat16' if precision == 'same' else 'fp8'}" in capsys.readouterr().out
    features = model.frozen_features(video)
    assert torch.equal(model(features), first)
    assert model.frozen_features_settings(video.device)[1].endswith(f"fused blocks in {precision} precision")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model.frozen_features(video)
    graph.replay()
    assert torch.equal(captured, features)
    model.load_state_dict(tower().state_dict())
    other = model.frozen_features(video)
    assert not torch.equal(other, features)
    graph.replay()
    assert torch.equal(captured, other)


def test_where_it_serves(monkeypatch, capsys):
    """Not on a CPU; with a reason not under ZeRO 3 and not where a kernel is wrong; fp8 is refused and not replaced."""
    model = tower(trunk_precision="fp8")
    with pytest.raises(ModelError, match="trunk_precision=fp8 cannot run: 8-bit products need a CUDA device"):
        model.bfloat16()(torch.randn(1, 2, 3, 32, 32).bfloat16())
    blocks, cuda = model.blocks[:3], torch.device("cuda")
    assert not trunk_serves(blocks, "fp8", torch.device("meta"), torch.float32)  # where a step is counted
    assert not trunk_serves(blocks, "same", torch.device("cpu"), torch.float32)
    with pytest.raises(ModelError, match="fp8 cannot run: its products come out in bf16 and the weights are fp32"):
        trunk_serves(blocks, "fp8", cuda, torch.float32)
    monkeypatch.setattr(fused_blocks, "choose", lambda device: "triton")
    monkeypatch.setattr(fused_blocks, "fp8_unsupported_reason", lambda device, *sizes: None)
    for gap, words in ((1e-3, "fused, products in bfloat16"), (0.5, "not fused, the Triton kernel differs")):
        monkeypatch.setattr(fused_blocks, "kernel_gap", lambda *_, gap=gap: gap)
        fused_blocks.unfused_reason.cache_clear()
        assert trunk_serves(blocks, "same", cuda, torch.bfloat16) == (gap < 0.1)
        assert f"frozen blocks: {words}" in capsys.readouterr().out
    with pytest.raises(ModelError, match="fp8 cannot run: the Triton kernel differs from PyTorch's by 0.5"):
        trunk_serves(blocks, "fp8", cuda, torch.bfloat16)
    blocks[0].norm1.weight.ds_id = 0
    assert not trunk_serves(blocks, "same", cuda, torch.bfloat16)
    assert "deepspeed=zero3 shares them out" in capsys.readouterr().out
    fused_blocks.unfused_reason.cache_clear()


@pytest.mark.parametrize("width", [96, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_passes_where_the_kernels_are_right(dtype, width):
    assert fused_blocks.kernel_gap(torch.device("cpu"), width, dtype) < fused_blocks.TOLERANCE[dtype]
