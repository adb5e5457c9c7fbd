"""The forecast of a run: what must be decoded, computed and held in memory, and how long that takes where.

Nothing is loaded or trained: arithmetic and memory come from the very encoder run on PyTorch's meta device, which has
shapes and no numbers; frames to decode come from the shards' manifest, or from `dataset.encoding` when there is none.
"""

import contextlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ace_dist.config import Config, resolve_path
from ace_dist.data.build.encode import is_reference
from ace_dist.data.loader.pyav import decode_clip, needed_packets
from ace_dist.data.sampling import TrainPlan, train_frames
from ace_dist.data.shards import MANIFEST, ShardFiles, ShardSet
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.train.metrics import matmul_flops_per_s
from ace_dist.train.schedule import total_steps
from ace_dist.utils.errors import UserError
from ace_dist.utils.parts import PartFlops

SOURCE_FPS = 30.0  # assumed of a camera when nothing says
NVDEC_1080_FPS = 350.0  # 1080p H.264 frames a second of one engine
NVDEC_SOURCE = (
    "assumed: 350 1080p H.264 frames/s an engine, others in proportion to macroblocks; DALI issue 6387 saw 45 "
    "delivered by one serial reader, a public H100 write-up 2,500 by seven engines; not measured here"
)
MACROBLOCKS_1080 = math.ceil(1920 / 16) * math.ceil(1080 / 16)


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: dense bf16 FLOP/s, memory, video decoders."""

    flops_per_s: float
    memory_gib: float
    decoders: int
    source: str


DEVICES: Mapping[str, Device] = {
    "a100": Device(312e12, 80e9 / 2**30, 5, "NVIDIA A100 80GB data sheet"),
    "h100": Device(989e12, 80e9 / 2**30, 7, "NVIDIA H100 SXM data sheet"),
    "h200": Device(989e12, 141e9 / 2**30, 7, "NVIDIA H200 SXM data sheet"),
}


@dataclass(frozen=True)
class DecodeBudget:
    """What a mean training clip asks of a decoder, and how many clips there are (None: no shards yet)."""

    clips: int | None
    frames_used: float
    frames_decoded: float
    height: int
    width: int
    codec: str
    kib: float | None

    @property
    def decoded_per_used(self) -> float:
        """Frames decoded for each frame that is shown; 1 is the least."""
        return self.frames_decoded / self.frames_used


@dataclass(frozen=True)
class Cost:
    """One training step of one clip in the video tower, and what the parameters take.

    FLOPs count a multiplication and an addition as two. `saved_bytes` is what the backward pass of a clip keeps, with
    the attention matrices (a fused attention keeps less), at the run's precision.
    """

    parameters: int
    trained: int
    forward_flops: int
    step_flops: int
    saved_bytes: int


def decode_budget(config: Config) -> DecodeBudget:
    """What the training clips of the configuration's shards ask for, or would if they were built."""
    folder = resolve_path(config.dataset.shards)
    if not (folder / MANIFEST).is_file():
        return expected_budget(config, config.dataset.encoding.fps or SOURCE_FPS)
    shards = ShardSet.load(folder)
    records = shards.split("train")
    gop = 1 if shards.codec == "mjpeg" else int(shards.manifest["configuration"]["encoding"]["gop"])
    shown = [train_frames(record, config.dataset.clip) for record in records]
    return DecodeBudget(
        clips=len(records),
        frames_used=fmean([len(set(frames)) for frames in shown]),
        frames_decoded=fmean([frames_decoded(frames, gop, shards.codec) for frames in shown]),
        height=round(fmean([record.height for record in records])),
        width=round(fmean([record.width for record in records])),
        codec=shards.codec,
        kib=fmean([record.size for record in records]) / 1024,
    )


def expected_budget(config: Config, fps: float) -> DecodeBudget:
    """The same by `dataset.encoding` alone, with clips stored at `fps`: windows start anywhere between key frames."""
    clip, encoding = config.dataset.clip, config.dataset.encoding
    gop, stride = 1 if encoding.codec == "mjpeg" else encoding.gop, clip.seconds / clip.frames * fps
    shown = [sorted({phase + round(k * stride) for k in range(clip.frames)}) for phase in range(gop)]
    short_side = encoding.short_side or 1080
    return DecodeBudget(
        clips=None,
        frames_used=fmean([len(frames) for frames in shown]),
        frames_decoded=fmean([frames_decoded(frames, gop, encoding.codec) for frames in shown]),
        height=short_side,
        width=round(short_side * 16 / 9),
        codec=encoding.codec,
        kib=None,
    )


def frames_decoded(frames: Sequence[int], gop: int, codec: str) -> int:
    """Frames to decode for the stored frames `frames`, with a key frame every `gop` frames.

    From the key frame before the first wanted one of a group of pictures to the last wanted one, less what `codec`
    lets a reader leave out.
    """
    indices = range(max(frames) + 1)
    keys, needed = [index % gop == 0 for index in indices], [is_reference(index, gop, codec) for index in indices]
    return len(needed_packets(keys, needed, set(frames)))


def model_cost(config: Config, bf16: bool) -> Cost:
    """What the video tower computes and keeps of one clip, forward and back on the meta device."""
    with torch.device("meta"):
        model = DualEncoder(replace(config.model.video, attention="sdpa"), config.model.text)
    model.eval()  # stochastic depth leaves branches out at random; this is the step that leaves out none
    model.to(torch.bfloat16 if bf16 else torch.float32)
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    saved: dict[int, torch.Tensor] = {}  # by storage, kept alive so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    frames, size = config.dataset.clip.frames, config.loader.crop
    video = torch.empty((1, frames, 3, size, size), device="meta", dtype=next(model.parameters()).dtype)
    with contextlib.redirect_stdout(None):  # which attention runs on the meta device is of no interest
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.encode_video(video)
        with sdpa_kernel(SDPBackend.MATH), PartFlops() as counter:
            embedding = model.encode_video(video)
            if embedding.requires_grad:
                embedding.sum().backward()
    forward = sum(part.forward for part in counter.flops.values())
    return Cost(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for group in model.trainable_parameters().values() for p in group),
        forward_flops=forward,
        step_flops=forward + sum(part.backward for part in counter.flops.values()),
        saved_bytes=sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own),
    )


def memory_gib(config: Config, cost: Cost, ranks: int, bf16: bool) -> dict[str, float]:
    stage = int(config.deepspeed.get("zero_optimization", {}).get("stage", 0))
    moments = (2 if config.training.optimizer == "adamw" else 1) + (config.training.ema_decay > 0)
    size = 2 if bf16 else 4
    master = 4 if bf16 else 0  # fp32 copies of what trains
    clips = config.training.batch_size / ranks / config.training.accumulation
    parts = {
        "weights": cost.parameters * size,
        "gradients": cost.trained * size / (ranks if stage >= 2 else 1),
        "optimizer": cost.trained * (4 * moments + master) / (ranks if stage >= 1 else 1),
        "activations": cost.saved_bytes * clips,
        "video": clips * config.dataset.clip.frames * 3 * config.loader.crop**2 * (4 + config.loader.prefetch),
    }
    return {name: value / 2**30 for name, value in parts.items()}


def nvdec_clips_per_s(device: Device, budget: DecodeBudget) -> float:
    """Clips a second of all decoders of a GPU; see `NVDEC_SOURCE`. Infinite for MJPEG, which the host must decode."""
    if budget.codec == "mjpeg":
        return math.inf
    macroblocks = math.ceil(budget.height / 16) * math.ceil(budget.width / 16)
    return device.decoders * NVDEC_1080_FPS * MACROBLOCKS_1080 / macroblocks / budget.frames_decoded


def measure_cpu_clips_per_s(config: Config, seconds: float = 4.0) -> float:
    """Clips a second that one core of this machine decodes and crops, from the shards."""
    shards = ShardSet.load(resolve_path(config.dataset.shards))
    records, files = shards.split("train"), ShardFiles(shards.folder)
    plan = TrainPlan(records, [0] * len(records), config.dataset.clip, config.loader, 1, config.seed)
    decode_clip(files.read(records[0]), plan.request(0))  # compiles
    done, started = 0, time.process_time()
    while (taken := time.process_time() - started) < seconds:
        request = plan.request(done)
        decode_clip(files.read(request.record), request)
        done += 1
    files.close()
    return done / taken


def estimate(
    config: Config,
    device: str = "h100",
    ranks: int = 1,
    mfu: float = 0.35,
    clips: int | None = None,
    here: bool = False,
) -> str:
    """The forecast in words and numbers. `here` also measures this machine's CPU, for about six seconds.

    Raises `UserError` for an unknown device, and when measuring without shards.
    """
    if device not in DEVICES:
        raise UserError(f"device={device} is not one of {', '.join(DEVICES)}")
    if not 0 < mfu <= 1 or ranks < 1:
        raise UserError(f"mfu={mfu} must be in (0, 1] and ranks={ranks} at least 1")
    budget, gpu, bf16 = decode_budget(config), DEVICES[device], config.training.precision != "fp32"
    cost = model_cost(config, bf16)
    count = clips or budget.clips
    lines = [*data_lines(config, budget, count), *cost_lines(config, cost, ranks, gpu, device, bf16)]
    compute = ranks * gpu.flops_per_s * mfu / cost.step_flops
    decode = ranks * nvdec_clips_per_s(gpu, budget)
    lines += pace_lines(config, f"{ranks} x {device}", compute, decode, count)
    if here:
        if budget.clips is None:
            raise UserError(f"measure=true decodes clips: dataset.shards={config.dataset.shards} holds none yet")
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        per_core, rate = measure_cpu_clips_per_s(config), matmul_flops_per_s(torch.device("cpu"), torch.float32, 2.0)
        lines.append(f"measured here: {per_core:.1f} clips/s a core (PyAV), {rate / 1e9:.0f} GFLOP/s of fp32 products")
        fp32 = model_cost(config, bf16=False)
        lines += pace_lines(
            config, f"this machine, {cores} cores", rate * mfu / fp32.step_flops, per_core * cores, count
        )
    return "\n".join([*lines, *assumptions(config, budget, gpu, mfu)])


def data_lines(config: Config, budget: DecodeBudget, count: int | None) -> list[str]:
    clip = config.dataset.clip
    source = "the manifest" if budget.clips is not None else "dataset.encoding"
    size = "" if budget.kib is None else f", {budget.kib:.0f} KiB each"
    lines = [
        f"clips: {count if count is not None else 'unknown (no shards; set clips=N)'}, {budget.codec}, "
        f"{budget.width}x{budget.height}{size} ({source})",
        f"decode: {clip.frames} frames over {clip.seconds:g} s, {budget.frames_decoded:.1f} decoded a clip, "
        f"{budget.decoded_per_used:.2f} for each used",
    ]
    rate = clip.frames / clip.seconds
    ratio = expected_budget(config, rate).decoded_per_used
    if ratio < 0.8 * budget.decoded_per_used:
        lines.append(f"  stored at dataset.encoding.fps={rate:g}, the rate that clips show: {ratio:.2f}")
    return lines


def cost_lines(config: Config, cost: Cost, ranks: int, gpu: Device, device: str, bf16: bool) -> list[str]:
    memory = memory_gib(config, cost, ranks, bf16)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in memory.items())
    total = sum(memory.values())
    fits = "fits" if total < 0.9 * gpu.memory_gib else "DOES NOT FIT: raise training.accumulation or ranks"
    return [
        f"parameters: {cost.parameters:,}, of which train {cost.trained:,}",
        f"FLOPs a clip: {cost.forward_flops / 1e9:.1f} G forward, {cost.step_flops / 1e9:.1f} G with the backward pass",
        f"memory a rank: {total:.2f} GiB ({parts}); {device} has {gpu.memory_gib:.1f}: {fits}",
    ]


def pace_lines(config: Config, where: str, compute: float, decode: float, count: int | None) -> list[str]:
    """Clips/s of both sides, step time, days; `compute` and `decode` are clips a second of all ranks together."""
    pace, slower = min((compute, "computing"), (decode, "decoding"))
    step_s = config.training.batch_size / pace
    decoding = "on the host" if math.isinf(decode) else f"{decode:.1f} clips/s"
    lines = [
        f"{where}: computes {compute:.1f} clips/s, decodes {decoding}; a step takes {step_s:.3g} s, bound by {slower}"
    ]
    if count is not None:
        steps, days = total_steps(config.training, count), step_s / 86400
        epoch = count / config.training.batch_size
        lines.append(f"  {epoch * days:.3g} days an epoch, {steps * days:.3g} days a run of {steps} steps")
    return lines


def assumptions(config: Config, budget: DecodeBudget, gpu: Device, mfu: float) -> list[str]:
    """Everything that was not measured or read, a line each."""
    lines = [
        "assumptions:",
        f"  computing reaches {mfu:.0%} of the peak (mfu={mfu:g}); peak and memory: {gpu.source}, dense bf16",
        "  NVDEC has no MJPEG (NVIDIA's list of its formats): the host decodes, at a rate not counted for the GPU"
        if budget.codec == "mjpeg"
        else f"  NVDEC: {NVDEC_SOURCE}",
        "  FLOPs: the video tower's matrix products; activations: those of the meta device, less what is computed "
        "again; the text side is a gather and one projection, not counted",
        "  reading, all-reduce and evaluation hide behind computing",
    ]
    if budget.clips is None:
        rate = "" if config.dataset.encoding.fps else f"a camera of {SOURCE_FPS:g} frames/s, "
        lines.append(f"  no shards: {rate}16:9 pictures, windows that start anywhere between key frames")
    return lines
