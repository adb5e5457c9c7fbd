"""Protects the forecast of a run: its counts against hand calculations, a real forward pass and a real decoder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from data_worlds import NumberedReader, build_shards, small_encoding, small_loader
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ace_dist.cli import execute
from ace_dist.config import ClipConfig, load_config
from ace_dist.data.loader import pyav
from ace_dist.data.sampling import TrainPlan
from ace_dist.data.shards import ShardFiles
from ace_dist.models import attention, timesformer
from ace_dist.models import video as tower_base
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.tools import estimate as forecast
from ace_dist.tools.estimate import (
    DEVICES,
    Cost,
    cores_clips_per_s,
    decode_budget,
    estimate,
    find_place,
    frames_decoded,
    gpu_clips_per_s,
    in_words,
    memory_gib,
    model_cost,
)
from ace_dist.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def toy(**video):
    """The demo's towers with a few sizes changed."""
    config = load_config(["experiment=demo", "model.init=random"])
    config.model.video = dataclasses.replace(config.model.video, **video)
    return config


def test_one_block_by_hand():
    """What one more block costs: the published network's products, a multiplication and an addition each two FLOPs."""
    frames, patches, width = 8, 16, 96
    sizes = {"width": width, "patch": 12, "image_size": 48, "trained_blocks": 2}
    four, five = (model_cost(toy(depth=depth, **sizes), bf16=False) for depth in (4, 5))
    tokens, spatial = patches * frames, (patches + 1) * frames
    linear = tokens * 3 * width**2 + tokens * width**2 + spatial * 4 * width**2 + (tokens + 1) * 8 * width**2
    attention = 2 * patches * frames**2 * width + 2 * frames * (patches + 1) ** 2 * width
    merged = width**3 + width**2  # temporal attention's two linear maps are made one, once a forward pass
    assert five.forward_flops - four.forward_flops == 2 * (linear + attention + merged)
    assert five.parameters - four.parameters == 3 * 2 * width + 2 * 4 * (width**2 + width) + width**2 + width + (
        8 * width**2 + 5 * width
    )
    assert five.step_flops - four.step_flops == five.forward_flops - four.forward_flops  # a frozen block: no backward


def test_trained_blocks_cost_twice_their_forward_pass_again():
    """Gradients of inputs and of weights: the backward pass of a block is twice its forward pass."""
    two, three = (model_cost(toy(trained_blocks=count), bf16=False) for count in (2, 3))
    block = model_cost(toy(depth=7), bf16=False).forward_flops - model_cost(toy(), bf16=False).forward_flops
    assert two.forward_flops == three.forward_flops
    assert three.step_flops - two.step_flops == pytest.approx(2 * block, rel=0.05)


def test_counts_equal_those_of_the_real_network(monkeypatch):
    """FLOPs count once what is computed again to save memory; what is kept is that of the network as it runs."""
    config = toy(trained_blocks=3)
    cost = model_cost(config, bf16=False)
    model = DualEncoder(config.model.video, config.model.text).eval()
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.trained == sum(p.numel() for group in model.trainable_parameters().values() for p in group)
    assert model_cost(config, bf16=True).saved_bytes == pytest.approx(cost.saved_bytes / 2, rel=0.05)
    own, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    video = torch.randn(1, config.dataset.clip.frames, 3, config.loader.crop, config.loader.crop)
    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.encode_video(video).sum().backward()
    for module in (timesformer, attention, tower_base):
        monkeypatch.setattr(module, "recompute", lambda function, *inputs: function(*inputs))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_video(video).sum().backward()
    # 1.3e-4 are products of biases with a matrix, which torch counted in one run of the whole suite, not in another
    assert counter.get_total_flops() == pytest.approx(cost.step_flops, rel=2e-4)
    kept = sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)
    assert kept == pytest.approx(cost.saved_bytes, rel=0.1)


def test_the_papers_network():
    """Parameters and trained share as published; forward FLOPs below the full network's, whose last block does more."""
    cost = model_cost(load_config(["experiment=ata_ace"]), bf16=True)
    assert cost.trained == 30_389_248
    full = 2 * 736.6e9  # of the official layout, 30 frames
    assert 0.88 * full < cost.forward_flops < full


def test_frames_to_decode_by_hand():
    # Key frames at 0, 5, 10, 15, 20: frame 3 takes 0 to 3, frame 7 takes 5 to 7, frame 21 takes 20 and 21.
    assert frames_decoded([3, 7, 21], 5, "h264") == 4 + 3 + 2
    assert frames_decoded([3, 7, 21], 1, "h264") == 3
    assert frames_decoded([4, 4, 5], 5, "h264") == 6
    # In VP9 only 0, 4, 5, 9, 10, ... are predicted from: 0 and 3, 5 and 7, 20 and 21.
    assert frames_decoded([3, 7, 21], 5, "vp9") == 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    encoding = small_encoding(gop=4)
    return build_shards(NumberedReader(6), folder, ClipConfig(5, 1.5), encoding)


def config_of(shards):
    config = toy()
    config.dataset.shards, config.dataset.clip = str(shards.folder), ClipConfig(5, 1.5)
    config.loader = small_loader()
    return config


def test_the_decode_budget_is_what_the_decoder_does(shards, monkeypatch):
    """Packets that the loader really sends to the decoder, counted."""
    config = config_of(shards)
    budget, sent = decode_budget(config), []
    packet = pyav.stored_packet
    monkeypatch.setattr(pyav, "stored_packet", lambda *place: sent.append(place) or packet(*place))
    records, files = shards.split("train"), ShardFiles(shards.folder)
    plan = TrainPlan(records, [0] * len(records), config.dataset.clip, config.loader, len(records), seed=0)
    for request in plan.requests(0):
        pyav.decode_clip(files.read(request.record), request)
    assert budget.clips == len(records)
    assert budget.frames_decoded == pytest.approx(len(sent) / len(records))
    assert budget.frames_used == 5 and budget.decoded_per_used > 1


def test_the_clips_of_the_budget_are_those_that_train(shards):
    """Chosen by groups, base actions and validation as in a training, not as the shards store the split."""
    config = config_of(shards)
    groups = sorted({record.group for record in shards.records})
    config.dataset.test_groups, config.dataset.left_out_groups = groups[:1], groups[1:2]
    left = [record for record in shards.records if record.group not in groups[:2]]
    assert decode_budget(config).clips == len(left)
    config.dataset.test_groups, config.dataset.left_out_groups = groups, []
    with pytest.raises(UserError, match="has no training clip"):
        decode_budget(config)


def test_ranks_on_a_cpu_share_its_cores(shards):
    config = config_of(shards)
    cost, budget = model_cost(config, bf16=False), decode_budget(config)
    one, four = (find_place(config, "cpu", ranks, None, 2, None).pace(config, cost, budget) for ranks in (1, 4))
    assert one == four


ALL_KEYS = ["experiment=ata_ace", "dataset.shards=nowhere", "dataset.encoding={codec: h264, gop: 1, fps: null}"]


def test_the_budget_without_shards():
    config = load_config(ALL_KEYS)
    budget = decode_budget(config)
    assert (budget.clips, budget.frames_used, budget.frames_decoded) == (None, 30, 30)  # every frame is a key frame
    config.dataset.encoding.gop = 1000
    # Windows of 88 frames (every third of 30 a second) behind 0 to 999 others; those that cross the next key frame, at
    # most 87 of 1000, skip the two frames before it at most.
    assert decode_budget(config).frames_decoded == pytest.approx(88 + 499.5, abs=2 * 87 / 1000)


def test_decoders_by_hand():
    config = load_config(ALL_KEYS)
    budget = decode_budget(config)  # 455 x 256 pixels are 29 x 16 macroblocks, the size that was measured; 30 frames
    assert gpu_clips_per_s(DEVICES["h100"], budget) == forecast.NVDEC_CLIPS_PER_S
    assert cores_clips_per_s(2, budget) == pytest.approx(2 * 1000 / 30)
    assert cores_clips_per_s(64, budget) == pytest.approx(forecast.RANK_FRAMES_PER_S / 30)
    large = dataclasses.replace(budget, height=1080, width=1920)  # 120 x 68 macroblocks
    assert cores_clips_per_s(1, large) == pytest.approx(1000 / 30 * (29 * 16) / (120 * 68))
    jpeg = dataclasses.replace(budget, codec="mjpeg")
    assert gpu_clips_per_s(DEVICES["h100"], jpeg) == pytest.approx(forecast.JPEG_FRAMES_PER_S / 30)
    assert gpu_clips_per_s(DEVICES["rtx4090"], jpeg) == 0  # no engine: the cores decode


def test_the_slower_side_sets_the_pace():
    """A GPU decodes beside computing and no step is shorter than the host's part; a CPU's cores do both in turn."""
    config = load_config(ALL_KEYS)
    budget, cost = decode_budget(config), Cost(1, 1, forward_flops=1, step_flops=10**12, saved_bytes=1)
    gpu = find_place(config, "mine", 2, 0.5, 16, tflops=100)
    pace = gpu.pace(config, cost, budget)
    assert (pace.compute, pace.whole, pace.slower) == (100, 100, "computing")  # two of 50 TFLOP/s
    pace = dataclasses.replace(gpu, cores=1, mfu=1.0).pace(config, cost, budget)
    assert (pace.whole, pace.slower) == (pytest.approx(2 * 1000 / 30), "decoding")
    easy = dataclasses.replace(budget, frames_decoded=1)
    pace = gpu.pace(config, dataclasses.replace(cost, step_flops=1), easy)
    assert pace.whole == pytest.approx(16 / forecast.H100_HOST_S) and "host" in pace.slower
    pace = find_place(config, "cpu", 1, 0.5, 3, None).pace(config, cost, budget)
    assert pace.compute == pytest.approx(3 * forecast.CPU_FLOPS_PER_S * 0.5 / 1e12)
    assert 1 / pace.whole == pytest.approx(1 / pace.compute + 1 / 100)


def test_durations_in_words():
    said = {3: "3.0 seconds", 89.6: "90 seconds", 600: "10 minutes", 5400: "1.5 hours", 86400: "24 hours"}
    assert {seconds: in_words(seconds) for seconds in said} == said
    assert in_words(10 * 86400) == "10 days"


def test_memory_by_hand():
    config = toy()
    cost = dataclasses.replace(model_cost(config, bf16=True), parameters=2**30, trained=2**28, saved_bytes=2**24)
    config.training.batch_size, config.training.accumulation = 16, 2
    config.deepspeed = {"zero_optimization": {"stage": 1}}
    memory = memory_gib(config, cost, ranks=4, bf16=True)
    # bf16 weights and gradients; fp32 copy and momentum of a quarter of what trains; 2 clips a micro-batch.
    assert (memory["weights"], memory["gradients"], memory["optimizer"]) == (2.0, 0.5, 0.25 * 8 / 4)
    assert memory["activations"] == 2 * 2**24 / 2**30
    config.deepspeed = {"zero_optimization": {"stage": 2}}
    assert memory_gib(config, cost, ranks=4, bf16=True)["gradients"] == 0.5 / 4


def test_the_text_names_what_is_missing_and_what_was_assumed(shards):
    config = load_config(["experiment=ata_ace", "dataset.shards=nowhere"])
    text = estimate(config, "h100", ranks=2, mfu=0.5)
    assert "set clips=N" in text and "an epoch" not in text and "assumptions:" in text and "mfu=0.5" in text
    assert "7500 steps" in estimate(config, clips=8000)  # 15 epochs of 8000 clips, 16 a step
    config.training.batch_size = 4096
    assert "DOES NOT FIT" in estimate(config)
    with pytest.raises(UserError, match="device=t4 is not one of cpu, l4, a10, .* add tflops=N"):
        estimate(config, "t4")
    for wrong in ({"mfu": 1.5}, {"ranks": 0}, {"cores": 0}, {"tflops": -1.0}, {"clips": -5}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* must be above 0"):
            estimate(config, **wrong)
    with pytest.raises(UserError, match=r"dataset\.shards=nowhere holds none"):
        estimate(config, here=True)


def test_the_launcher_measures_this_machine(shards, monkeypatch, capsys):
    clips, flops = forecast.measure_cpu_clips_per_s, forecast.matmul_flops_per_s  # the real ones, for a shorter time
    monkeypatch.setattr(forecast, "measure_cpu_clips_per_s", lambda config: clips(config, seconds=0.2))
    monkeypatch.setattr(forecast, "matmul_flops_per_s", lambda device, dtype, seconds: flops(device, dtype, 0.2))
    settings = ["dataset.clip.frames=5", "dataset.clip.seconds=1.5", f"dataset.shards={shards.folder}"]
    execute(["estimate", "experiment=demo", *settings, "device=h200", "ranks=2", "measure=true"])
    text = capsys.readouterr().out
    assert "measured here:" in text and "2 x h200:" in text and "this machine" in text
    with pytest.raises(UserError, match="mfu=fast is not a number"):
        execute(["estimate", "mfu=fast"])
