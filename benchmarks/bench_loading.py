"""How many clips a second does one core decode and crop, by codec, size and distance of key frames?

Columns: our two decoders (`pyav`, `dali`), webdataset + PyAV, decord and torchcodec, all on the same stored clips and
crops (short side 256 to 320, 224 pixels), each with one decoding thread, which is best for every one of them per core;
torchcodec and decord once with their own resizing and once with torch's. Each column turns the clips of a shard folder
into a batch of bytes, which are normalised on the device; DALI's graph normalises too. `dali_decoder_alone` is the
ceiling of `dali`: on a GPU, what its NVDEC engines give. The metric is clips per second of the process's CPU time.

    uv pip install -e '.[bench]'                               # torchcodec, decord; a missing one is named and skipped
    python benchmarks/bench_loading.py --work /tmp/loading --build            # make the clips
    python benchmarks/bench_loading.py --work /tmp/loading
    python benchmarks/bench_loading.py --run runs/demo         # share of the steps that waited for data
    python benchmarks/bench_loading.py --work /tmp/loading --device cuda      # NVDEC, wall time

torchcodec needs FFmpeg's shared libraries. Those inside PyAV's wheel will do, so that both decode with the same build:

    export LD_LIBRARY_PATH=$(python benchmarks/bench_loading.py --work /tmp/loading --link-ffmpeg)
"""

from __future__ import annotations

import argparse
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import torch
from common import Row, append
from loading_world import Case, build
from torch import Tensor
from torch.nn.functional import interpolate

from ace_dist.config import LoaderConfig
from ace_dist.data.loader import DALI_CPU_CODECS
from ace_dist.data.loader.base import Loader
from ace_dist.data.loader.pyav import decode_clip
from ace_dist.data.sampling import ClipRequest, TrainPlan, crop_box
from ace_dist.data.shards import ShardFiles, ShardSet

RESULTS = Path(__file__).parent / "results"
SHOWN_FPS = {"ata": 10.0, "ikea": 12.5, "gtea": None}  # the rate that the clip shows; GTEA's camera has it already
GOP = {"vp9": 32, "mjpeg": 1, "h264": 8}  # of our configurations
CANONICAL = [Case(data, codec, 256, gop, fps) for data, fps in SHOWN_FPS.items() for codec, gop in GOP.items()]
RATES = [Case(data, codec, 256, gop) for data in ("ata", "ikea") for codec, gop in GOP.items()]  # the camera's
SWEEP = [
    Case("ata", codec, side, gop)
    for side in (256, 540, 1080)
    for codec, gops in {"vp9": (8, 30, 250), "mjpeg": (1,), "h264": (8, 30, 250)}.items()
    for gop in gops
]
CASES = list(dict.fromkeys([*CANONICAL, *RATES, *SWEEP]))
CEILING = "dali_decoder_alone"
LOADER = LoaderConfig(threads=1, prefetch=1)  # the paper's crops are the defaults
Requests = Sequence[ClipRequest]
Column = Callable[[Requests], Tensor]


def clip_count(case: Case) -> int:
    return {256: 6, 540: 2}.get(case.short_side, 1)


def crop(video: Tensor, request: ClipRequest, resized: bool = False) -> Tensor:
    """The usual way: torch's resize of whole frames [T, 3, H, W], then a slice."""
    height, width, top, left = crop_box(request)
    if not resized and video.shape[-2:] != (height, width):
        video = interpolate(video, (height, width), mode="bilinear", antialias=True)
    cropped = video[..., top : top + request.crop, left : left + request.crop]
    return cropped.flip(-1) if request.flip else cropped


def through(loader: Loader) -> Column:
    """A loader, asked for one batch."""
    return lambda requests: next(loader.stream([requests])).video


def clip_by_clip(decode: Callable[[bytes, ClipRequest], Tensor], files: ShardFiles) -> Column:
    """A decoder of single clips, read by offset as ours are; without the checksum that ours verify."""
    return lambda requests: torch.stack([decode(files.read_raw(r.record), r) for r in requests])


def decoder_alone(files: ShardFiles, count: int, device: str) -> Column:
    """DALI's decoder and nothing else: what a GPU's engines give at this batch, the ceiling of `dali`."""
    from nvidia.dali import Pipeline, fn, types

    inputs: list[list[np.ndarray]] = []
    gpu = {"device_id": torch.cuda.current_device()} if device == "cuda" else {"device_id": None}
    pipeline = Pipeline(batch_size=count, num_threads=1, prefetch_queue_depth=1, **gpu)
    with pipeline:
        encoded, frames = fn.external_source(
            source=lambda: inputs, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
        )
        video = fn.decoders.video(encoded, frames=frames, device="mixed" if device == "cuda" else "cpu")
        pipeline.set_outputs(video)
    pipeline.build()

    def batch(requests: Requests) -> Tensor:
        data = [np.frombuffer(files.read_raw(request.record), np.uint8) for request in requests]
        inputs[:] = [data, [np.array(request.frames, np.int32) for request in requests]]
        pipeline.run()
        return torch.empty(0)

    return batch


def torchcodec_columns(files: ShardFiles, device: str) -> dict[str, Column]:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    def plain(data: bytes, request: ClipRequest) -> Tensor:
        decoder = VideoDecoder(data, dimension_order="NHWC", seek_mode="approximate", device=device)
        return crop(decoder.get_frames_at(list(request.frames)).data.permute(0, 3, 1, 2), request)

    def native(data: bytes, request: ClipRequest) -> Tensor:
        resize = Resize(crop_box(request)[:2])
        decoder = VideoDecoder(data, seek_mode="approximate", transforms=[resize], device=device)
        return crop(decoder.get_frames_at(list(request.frames)).data, request, resized=True)

    columns = {"torchcodec": clip_by_clip(plain, files)}
    return columns if device == "cuda" else columns | {"torchcodec_resize": clip_by_clip(native, files)}


def decord_columns(files: ShardFiles) -> dict[str, Column]:
    import decord

    def decode(data: bytes, request: ClipRequest, native: bool) -> Tensor:
        height, width = crop_box(request)[:2]
        size = {"height": height, "width": width} if native else {}
        reader = decord.VideoReader(io.BytesIO(data), num_threads=1, **size)
        frames = torch.from_numpy(reader.get_batch(list(request.frames)).asnumpy())
        return crop(frames.permute(0, 3, 1, 2), request, resized=native)

    return {
        "decord": clip_by_clip(lambda data, request: decode(data, request, False), files),
        "decord_resize": clip_by_clip(lambda data, request: decode(data, request, True), files),
    }


def webdataset_column(shards: ShardSet) -> Column:
    """Tar files in sequence; PyAV's own container, one thread, stopping behind the last frame that is needed."""
    import webdataset

    def decode(data: bytes, request: ClipRequest) -> Tensor:
        pictures = {}
        with av.open(io.BytesIO(data)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for index, frame in enumerate(container.decode(video=0)):
                if index in request.frames:
                    pictures[index] = torch.from_numpy(frame.to_ndarray(format="rgb24"))
                if index == max(request.frames):
                    break
        return crop(torch.stack([pictures[index] for index in request.frames]).permute(0, 3, 1, 2), request)

    def batch(requests: Requests) -> Tensor:
        by_key = {request.record.key: request for request in requests}
        paths = [str(shards.folder / shard["name"]) for shard in shards.manifest["shards"]]
        samples = webdataset.WebDataset(paths, shardshuffle=False)
        clips = [decode(s["mp4"], by_key[s["__key__"]]) for s in samples if s["__key__"] in by_key]
        return torch.stack(clips)

    return batch


def build_columns(shards: ShardSet, codec: str, device: str) -> dict[str, Column]:
    """Every loader that can read these clips here; what is missing is printed."""
    from ace_dist.data.loader.dali import DaliLoader

    files, columns = ShardFiles(shards.folder), dict[str, Column]()
    if device == "cpu":
        columns["pyav"] = lambda requests: torch.stack(
            [torch.from_numpy(decode_clip(files.read(r.record), r)) for r in requests]
        )
        columns["webdataset_pyav"] = webdataset_column(shards)
    if device == "cuda" or codec in DALI_CPU_CODECS:
        columns["dali"] = through(DaliLoader(shards.folder, LOADER, torch.device(device), codec))
        columns[CEILING] = decoder_alone(files, len(shards.records), device)
    makers = {"torchcodec": lambda: torchcodec_columns(files, device)}
    if device == "cpu":
        makers["decord"] = lambda: decord_columns(files)
    for name, make in makers.items():
        try:
            columns |= make()
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name} left out: {str(error).strip().splitlines()[0]}", flush=True)
    return columns


def measure(case: Case, folder: Path, device: str, turns: int) -> list[Row]:
    """Clips per second of CPU time (on a GPU: of wall time) of every column, in turns."""
    shards = build(case, folder, clip_count(case))
    count = len(shards.records)
    plan = TrainPlan(shards.records, [0] * count, case.clip, LOADER, count, seed=0)
    columns = build_columns(shards, case.codec, device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    rates: dict[str, list[float]] = {name: [] for name in columns}
    for turn in range(turns + 1):
        for name, column in columns.items():
            started = clock()
            video = column(plan.requests(turn))
            if device == "cuda":
                torch.cuda.synchronize()
            taken = clock() - started
            assert name == CEILING or video.shape == (count, case.clip.frames, 3, LOADER.crop, LOADER.crop)
            if turn:  # the first warms up
                rates[name].append(count / taken)
    metric = "clips_per_core_s" if device == "cpu" else "clips_per_s"
    config = asdict(case) | {"frames": case.clip.frames, "seconds": case.clip.seconds, "kib": mean_kib(shards)}
    show(case, rates)
    return [
        Row("loading", name, case.name, metric, "clips/s", "short_side", float(case.short_side), values, config)
        for name, values in rates.items()
    ]


def mean_kib(shards: ShardSet) -> float:
    return round(sum(record.size for record in shards.records) / len(shards.records) / 1024, 1)


def show(case: Case, rates: dict[str, list[float]]) -> None:
    """Medians, and how far our best is ahead of the best other; below 1 we lose, and it is printed too."""
    middle = {name: torch.tensor(values).median().item() for name, values in rates.items()}
    ours = max(middle.get(name, 0.0) for name in ("pyav", "dali"))
    others = max((value for name, value in middle.items() if name not in ("pyav", "dali", CEILING)), default=math.nan)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in middle.items())
    share = f", dali / its decoder alone {middle['dali'] / middle[CEILING]:.2f}" if CEILING in middle else ""
    print(f"{case.name}: {parts} clips/s; ours / best other {ours / others:.2f}{share}", flush=True)


def waiting(run: Path) -> list[Row]:
    """Share of each logged stretch of a run's steps that rank 0 waited for data, in percent."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    shares = [100 * line["data_wait_share"] for line in lines]
    settings = {"logged": len(lines), "clips_per_s": round(lines[-1]["clips_per_s"], 2)}
    print(f"{run}: waits for data, median {torch.tensor(shares).median():.2f} %, largest {max(shares):.2f} %")
    return [Row("loading", "data_wait", run.name, "share", "%", "step", float(lines[-1]["step"]), shares, settings)]


def link_ffmpeg(folder: Path) -> Path:
    """Links with FFmpeg's plain names to the libraries inside PyAV's wheel."""
    links = folder / "ffmpeg"
    links.mkdir(parents=True, exist_ok=True)
    for library in (Path(av.__file__).parents[1] / "av.libs").glob("lib*.so.*"):
        stem, _, version = library.name.partition(".so.")
        link = links / f"{stem.rsplit('-', 1)[0]}.so.{version.split('.')[0]}"
        if not link.exists():
            link.symlink_to(library)
    return links


def main() -> None:
    """Measure and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_loading"), help="folder of the clips")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", nargs="*", help="parts of names of cases; all by default")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--build", action="store_true", help="make the clips and measure nothing")
    parser.add_argument("--link-ffmpeg", action="store_true", help="see above")
    parser.add_argument("--run", type=Path, help="a run folder, whose waiting for data is added")
    parser.add_argument("--output", type=Path, help="default: results/loading_{cpu,cuda}.csv beside this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    output = options.output or RESULTS / f"loading_{options.device}.csv"
    if options.link_ffmpeg:
        print(link_ffmpeg(options.work.resolve()))
    elif options.run:
        append(output, waiting(options.run), options.device)
    else:
        cases = [case for case in CASES if not options.cases or any(part in case.name for part in options.cases)]
        for case in cases:
            if options.build:
                print(case.name, f"{mean_kib(build(case, options.work, clip_count(case)))} KiB a clip", flush=True)
            else:
                append(output, measure(case, options.work, options.device, options.turns), options.device)


if __name__ == "__main__":
    main()
