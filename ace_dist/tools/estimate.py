"""The forecast of a run: what must be decoded, computed and held in memory, and how long that takes where.

Nothing is loaded or trained: arithmetic and memory come from the very encoder run on PyTorch's meta device, which has
shapes and no numbers; frames to decode come from the shards' manifest, or from `dataset.encoding` when there is none.
"""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ace_dist.config import Config, resolve_path
from ace_dist.data.build.encode import is_reference
from ace_dist.data.datasets import load_shards
from ace_dist.data.loader.pyav import decode_clip, needed_packets
from ace_dist.data.sampling import TrainPlan, train_frames
from ace_dist.data.shards import MANIFEST, ShardFiles
from ace_dist.data.task import training_records
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.recompute import stored_bytes
from ace_dist.train.metrics import matmul_flops_per_s
from ace_dist.train.schedule import total_steps
from ace_dist.utils.cores import host_cores
from ace_dist.utils.errors import UserError
from ace_dist.utils.parts import PartFlops
from ace_dist.utils.text import in_words

SOURCE_FPS = 30.0  # assumed of a camera when nothing says

# What was measured, each with its place: benchmarks/README.md has the conditions.
H100_MFU = 0.36  # of the data sheet's peak: 16 clips of 30 frames in bf16, 84.0 ms for 29.8 TFLOP
H100_HOST_S = 0.035  # of Python and launches a step, beside the GPU's work; a third of that by CUDA graphs
CPU_FLOPS_PER_S = 0.1e12  # of a core: large fp32 products (results/profile_step.csv)
CPU_MFU = {True: 0.91, False: 0.38}  # of that, at full width and at toy width (results/profile_step.csv)
CORE_FRAMES_PER_S = {"h264": 1000.0, "vp9": 1000.0, "mjpeg": 1500.0}  # of a core, 455x256, crops included (loading_cpu)
RANK_FRAMES_PER_S = 5400.0  # of a rank: 16 threads with PyAV beside an H100 gave no more, of MJPEG
NVDEC_CLIPS_PER_S = 17.0  # of an H100, H.264 and VP9: DALI makes a decoder for every clip, which takes 70 ms
JPEG_FRAMES_PER_S = 26_700.0  # of an H100's JPEG engine and 16 cores, 454x256 through our DALI loader
MEASURED_MACROBLOCKS = math.ceil(455 / 16) * math.ceil(256 / 16)
FULL_WIDTH = 768
GPU_CORES = 16  # of the host, beside each GPU, where nothing says


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet: dense bf16 FLOP/s, memory; or a CPU's cores. Its JPEG engine where one was measured."""

    flops_per_s: float
    memory_gib: float | None
    source: str
    jpeg_frames_per_s: float = 0.0


GB = 1e9 / 2**30
DEVICES: Mapping[str, Device] = {
    "l4": Device(121e12, 24 * GB, "NVIDIA L4 data sheet"),
    "a10": Device(125e12, 24 * GB, "NVIDIA A10 data sheet"),
    "rtx4090": Device(165.2e12, 24 * GB, "NVIDIA Ada architecture white paper, fp32 accumulation"),
    "a100": Device(312e12, 80 * GB, "NVIDIA A100 80GB data sheet"),
    "h100": Device(989e12, 80 * GB, "NVIDIA H100 SXM data sheet", JPEG_FRAMES_PER_S),
    "h200": Device(989e12, 141 * GB, "NVIDIA H200 SXM data sheet", JPEG_FRAMES_PER_S),
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
    shards = load_shards(config.dataset)
    records = training_records(config, shards)
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
    frames, size = config.dataset.clip.frames, config.loader.crop
    video = torch.empty((1, frames, 3, size, size), device="meta", dtype=next(model.parameters()).dtype)
    with contextlib.redirect_stdout(None):  # which attention runs on the meta device is of no interest
        saved_bytes = stored_bytes(lambda: model.encode_video(video), model.parameters())
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
        saved_bytes=saved_bytes,
    )


def memory_gib(config: Config, cost: Cost, ranks: int, bf16: bool) -> dict[str, float]:
    stage = int(config.deepspeed.get("zero_optimization", {}).get("stage", 0))
    moments = (2 if config.training.optimizer == "adamw" else 1) + (
        config.training.ema_decay > 0 or config.training.swa_start is not None
    )
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


def size_factor(budget: DecodeBudget) -> float:
    """How many pictures of the measured size cost as much as one of these."""
    return math.ceil(budget.height / 16) * math.ceil(budget.width / 16) / MEASURED_MACROBLOCKS


def gpu_clips_per_s(device: Device, budget: DecodeBudget) -> float:
    """Clips a second that a GPU's engines decode: JPEG pictures, or clips of the video codecs."""
    if budget.codec == "mjpeg":
        return device.jpeg_frames_per_s / size_factor(budget) / budget.frames_decoded
    return NVDEC_CLIPS_PER_S


def cores_clips_per_s(cores: int, budget: DecodeBudget) -> float:
    """Clips a second that the cores of a rank decode and crop."""
    frames_per_s = min(cores * CORE_FRAMES_PER_S[budget.codec], RANK_FRAMES_PER_S)
    return frames_per_s / size_factor(budget) / budget.frames_decoded


def measure_cpu_clips_per_s(config: Config, seconds: float = 4.0) -> float:
    """Clips a second that one core of this machine decodes and crops, from the shards."""
    shards = load_shards(config.dataset)
    records, files = training_records(config, shards), ShardFiles(shards.folder)
    plan = TrainPlan(records, [0] * len(records), config.dataset.clip, config.loader, 1, config.seed)
    decode_clip(files.read(records[0]), plan.request(0))  # compiles
    done, started = 0, time.process_time()
    while (taken := time.process_time() - started) < seconds:
        request = plan.request(done)
        decode_clip(files.read(request.record), request)
        done += 1
    files.close()
    return done / taken


@dataclass(frozen=True)
class Place:
    """Where a run is to be: its devices, the host's cores beside each, the share of the peak that is reached."""

    name: str
    device: Device
    ranks: int
    cores: int
    mfu: float

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    @property
    def label(self) -> str:
        return f"{self.cores} cores" if self.is_cpu else f"{self.ranks} x {self.name}"

    def pace(self, config: Config, cost: Cost, budget: DecodeBudget) -> "Pace":
        """Clips a second of all ranks together. On a CPU computing and decoding share the cores, beside a GPU not."""
        places = 1 if self.is_cpu else self.ranks  # ranks on a CPU share its cores
        compute = places * self.device.flops_per_s * self.mfu / cost.step_flops
        cores = places * cores_clips_per_s(self.cores, budget)
        if self.is_cpu:
            return Pace(compute, cores, 1 / (1 / compute + 1 / cores), "computing" if compute < cores else "decoding")
        host = config.training.batch_size / (config.training.accumulation * H100_HOST_S)
        decode = max(cores, self.ranks * gpu_clips_per_s(self.device, budget))
        whole, slower = min((compute, "computing"), (decode, "decoding"), (host, "Python and launches on the host"))
        return Pace(compute, decode, whole, slower)

    def assumptions(self, codec: str) -> list[str]:
        reached = f"  computing reaches {self.mfu:.0%} of the peak (mfu={self.mfu:g};"
        if self.is_cpu:
            return [
                f"{reached} a core was measured at full and at toy width); the peak is {self.device.source}",
                "  computing and decoding share the cores",
            ]
        engine = f"NVDEC {NVDEC_CLIPS_PER_S:.0f} clips a second (an H100)"
        if codec == "mjpeg":
            engine = f"its JPEG engine {self.device.jpeg_frames_per_s:.0f} such pictures a second (0: not measured)"
        return [
            f"{reached} an H100 reached {H100_MFU:g}); peak and memory: {self.device.source}, dense bf16",
            f"  {self.cores} cores of the host beside each GPU (cores=N), {engine}",
            f"  a step takes at least {1e3 * H100_HOST_S:.0f} ms of the host (beside an H100, without CUDA graphs)",
        ]


@dataclass(frozen=True)
class Pace:
    """Clips a second: computed, decoded, trained, and what bounds that."""

    compute: float
    decode: float
    whole: float
    slower: str


def find_place(
    config: Config, name: str, ranks: int, mfu: float | None, cores: int | None, tflops: float | None
) -> Place:
    """Raises `UserError` for an unknown device without `tflops`, and for numbers that cannot be."""
    if name not in DEVICES and name != "cpu" and tflops is None:
        known = ", ".join(["cpu", *DEVICES])
        raise UserError(f"device={name} is not one of {known}; for another one add tflops=N, its dense bf16 peak")
    for key, value in {"ranks": ranks, "cores": cores, "tflops": tflops, "mfu": mfu}.items():
        if value is not None and (value <= 0 or (key == "mfu" and value > 1)):
            raise UserError(f"{key}={value} must be above 0" + " and at most 1" * (key == "mfu"))
    if name == "cpu":
        cores = cores or host_cores()
        peak = tflops * 1e12 if tflops else cores * CPU_FLOPS_PER_S
        source = "tflops" if tflops else "large fp32 products on a core of a shared AMD EPYC, measured"
        reached = mfu or CPU_MFU[config.model.video.width >= FULL_WIDTH]
        return Place(name, Device(peak, None, source), ranks, cores, reached)
    device = DEVICES.get(name, Device(0.0, None, "tflops"))
    if tflops:
        device = replace(device, flops_per_s=tflops * 1e12, source=f"tflops={tflops:g}")
    return Place(name, device, ranks, cores or GPU_CORES, mfu or H100_MFU)


def estimate(
    config: Config,
    device: str = "h100",
    ranks: int = 1,
    mfu: float | None = None,
    clips: int | None = None,
    here: bool = False,
    cores: int | None = None,
    tflops: float | None = None,
) -> str:
    """The forecast in words and numbers. `here` also measures this machine's CPU, for about six seconds.

    Raises `UserError` as `find_place` does, and when measuring without shards.
    """
    if clips is not None and clips < 1:
        raise UserError(f"clips={clips} must be above 0")
    place = find_place(config, device, ranks, mfu, cores, tflops)
    budget, bf16 = decode_budget(config), config.training.precision != "fp32" and not place.is_cpu
    cost = model_cost(config, bf16)
    count = clips or budget.clips
    lines = [*data_lines(config, budget, count), *cost_lines(config, cost, place, bf16)]
    lines += pace_lines(config, place.label, place.pace(config, cost, budget), count)
    if here:
        if budget.clips is None:
            raise UserError(f"measure=true decodes clips: dataset.shards={config.dataset.shards} holds none yet")
        per_core, rate = measure_cpu_clips_per_s(config), matmul_flops_per_s(torch.device("cpu"), torch.float32, 2.0)
        lines.append(f"measured here: {per_core:.1f} clips/s a core (PyAV), {rate / 1e9:.0f} GFLOP/s of fp32 products")
        compute = rate * find_place(config, "cpu", 1, None, None, None).mfu / model_cost(config, bf16=False).step_flops
        decode = per_core * host_cores()
        pace = Pace(compute, decode, 1 / (1 / compute + 1 / decode), "computing" if compute < decode else "decoding")
        lines += pace_lines(config, f"this machine, {host_cores()} cores", pace, count)
    return "\n".join([*lines, *assumptions(config, budget, place)])


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


def cost_lines(config: Config, cost: Cost, place: Place, bf16: bool) -> list[str]:
    memory = memory_gib(config, cost, place.ranks, bf16)
    parts = ", ".join(f"{name} {value:.2f}" for name, value in memory.items())
    total, room = sum(memory.values()), place.device.memory_gib
    fits = "fits" if room and total < 0.9 * room else "DOES NOT FIT: raise training.accumulation or ranks"
    return [
        f"parameters: {cost.parameters:,}, of which train {cost.trained:,}",
        f"FLOPs a clip: {cost.forward_flops / 1e9:.1f} G forward, {cost.step_flops / 1e9:.1f} G with the backward pass",
        f"memory a rank: {total:.2f} GiB ({parts})" + (f"; {place.name} has {room:.1f}: {fits}" if room else ""),
    ]


def pace_lines(config: Config, where: str, pace: Pace, count: int | None) -> list[str]:
    """Clips/s of both sides, step time, and how long an epoch and the run take."""
    step_s = config.training.batch_size / pace.whole
    lines = [
        f"{where}: computes {pace.compute:.1f} clips/s, decodes {pace.decode:.1f} clips/s; "
        f"a step takes {step_s:.3g} s, bound by {pace.slower}"
    ]
    if count is not None:
        steps, epoch = total_steps(config.training, count), count / config.training.batch_size
        lines.append(f"  {in_words(epoch * step_s)} an epoch, {in_words(steps * step_s)} a run of {steps} steps")
    return lines


def assumptions(config: Config, budget: DecodeBudget, place: Place) -> list[str]:
    """Everything that was not measured or read, a line each."""
    lines = ["assumptions:", *place.assumptions(budget.codec)]
    lines += [
        f"  a core decodes {CORE_FRAMES_PER_S[budget.codec]:.0f} {budget.codec} pictures of 455x256 a second "
        "(benchmarks/results/loading_cpu.csv), others in proportion to macroblocks",
        "  FLOPs: the video tower's matrix products; activations: those of the meta device, less what is computed "
        "again; the text side is a gather and one projection, not counted",
        "  reading, all-reduce and evaluation hide behind computing",
    ]
    if budget.clips is None:
        rate = "" if config.dataset.encoding.fps else f"a camera of {SOURCE_FPS:g} frames/s, "
        lines.append(f"  no shards: {rate}16:9 pictures, windows that start anywhere between key frames")
    return lines
