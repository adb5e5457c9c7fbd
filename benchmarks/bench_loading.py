"""How many clips a second does one core decode and crop, by codec, size and distance of key frames?

Columns: our two decoders (`pyav`, `dali`), webdataset + PyAV, decord and torchcodec, all on the same stored clips and
crops (short side 256 to 320, 224 pixels), each with one decoding thread, which is best for every one of them per core;
torchcodec and decord once with their own resizing and once with torch's. Each column turns the clips of a shard folder
into a batch of bytes, which are normalised afterwards; DALI's graph normalises too. The metric is clips per second of
the process's CPU time.

With `--device cuda` the columns are the loaders of a run as `loader.backend` builds them, with `--threads` (0: all
cores of this process), and the metrics are clips a second of a consumer that always waits, in batches of 16 as bytes,
cores that were busy meanwhile, and memory of the GPU that the loader holds. How long training waits: `e2e_step.py`.

    uv pip install -e '.[bench]'                               # torchcodec, decord; a missing one is named and skipped
    python benchmarks/bench_loading.py --work /tmp/loading --build            # make the clips
    python benchmarks/bench_loading.py --work /tmp/loading
    python benchmarks/bench_loading.py --run runs/demo         # share of the steps that waited for data
    python benchmarks/bench_loading.py --work /tmp/loading --device cuda --cases 10fps --threads 16 8

torchcodec needs FFmpeg's shared libraries. Those inside PyAV's wheel will do, so that both decode with the same build:

    export LD_LIBRARY_PATH=$(python benchmarks/bench_loading.py --work /tmp/loading --link-ffmpeg)
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import av
import torch
from common import Row, append
from loading_world import Case, build
from torch import Tensor
from torch.nn.functional import interpolate

from ace_dist.config import LoaderConfig
from ace_dist.data.loader import DALI_CPU_CODECS, open_backend
from ace_dist.data.loader.base import Loader
from ace_dist.data.loader.fastest import clips_per_s
from ace_dist.data.loader.pyav import decode_clip
from ace_dist.data.sampling import ClipRequest, TrainPlan, crop_box
from ace_dist.data.shards import ShardFiles, ShardSet
from ace_dist.utils.errors import DataError

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
LOADER = LoaderConfig(threads=1, prefetch=1)  # the paper's crops are the defaults
GPU_CLIPS, GPU_BATCH = 12, 16  # as stored, repeated; as trained
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


def torchcodec_columns(files: ShardFiles) -> dict[str, Column]:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    def plain(data: bytes, request: ClipRequest) -> Tensor:
        decoder = VideoDecoder(data, dimension_order="NHWC", seek_mode="approximate")
        return crop(decoder.get_frames_at(list(request.frames)).data.permute(0, 3, 1, 2), request)

    def native(data: bytes, request: ClipRequest) -> Tensor:
        resize = Resize(crop_box(request)[:2])
        decoder = VideoDecoder(data, seek_mode="approximate", transforms=[resize])
        return crop(decoder.get_frames_at(list(request.frames)).data, request, resized=True)

    return {"torchcodec": clip_by_clip(plain, files), "torchcodec_resize": clip_by_clip(native, files)}


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


def build_columns(shards: ShardSet) -> dict[str, Column]:
    """Every loader that can read these clips here; what is missing is printed."""
    files, columns = ShardFiles(shards.folder), dict[str, Column]()
    columns["pyav"] = lambda requests: torch.stack(
        [torch.from_numpy(decode_clip(files.read(r.record), r)) for r in requests]
    )
    columns["webdataset_pyav"] = webdataset_column(shards)
    if shards.codec in DALI_CPU_CODECS:
        columns["dali"] = through(open_backend("dali", shards, LOADER, torch.device("cpu")))
    for name, make in (("torchcodec", torchcodec_columns), ("decord", decord_columns)):
        try:
            columns |= make(files)
        except (ImportError, RuntimeError, OSError) as error:
            print(f"{name} left out: {str(error).strip().splitlines()[0]}", flush=True)
    return columns


def measure(case: Case, folder: Path, turns: int) -> list[Row]:
    """Clips per second of CPU time of every column, in turns."""
    shards = build(case, folder, clip_count(case))
    count = len(shards.records)
    plan = TrainPlan(shards.records, [0] * count, case.clip, LOADER, count, seed=0)
    columns = build_columns(shards)
    rates: dict[str, list[float]] = {name: [] for name in columns}
    for turn in range(turns + 1):
        for name, column in columns.items():
            started = time.process_time()
            video = column(plan.requests(turn))
            taken = time.process_time() - started
            assert video.shape == (count, case.clip.frames, 3, LOADER.crop, LOADER.crop)
            if turn:  # the first warms up
                rates[name].append(count / taken)
    show(case, rates)
    return [row(case, shards, name, "clips_per_core_s", "clips/s", values) for name, values in rates.items()]


def measure_on_gpu(case: Case, folder: Path, threads: int, turns: int) -> list[Row]:
    """Of each loader, one after the other: they would take each other's cores."""
    shards = build(case, folder, GPU_CLIPS, workers=0)
    settings = LoaderConfig(threads=threads, dtype="uint8")
    plan = TrainPlan(shards.records, [0] * len(shards.records), case.clip, settings, GPU_BATCH, seed=0)
    batches, rows = [plan.requests(step) for step in range(4)], []
    for backend in ("dali", "pyav", "torchcodec"):
        free = torch.cuda.mem_get_info()[0]
        try:
            loader = open_backend(backend, shards, settings, torch.device("cuda", torch.cuda.current_device()))
            used, started = time.process_time(), time.perf_counter()
            rates = [clips_per_s(loader, shards, batches) for _ in range(turns)]
            busy = (time.process_time() - used) / (time.perf_counter() - started)
            held_gib = (free - torch.cuda.mem_get_info()[0]) / 2**30
            loader.close()
        except DataError as error:
            print(f"{case.name}: {backend} left out: {str(error).splitlines()[0]}", flush=True)
            continue
        print(f"{case.name} {threads} threads: {backend} {max(rates):.0f} clips/s, {busy:.1f} cores", flush=True)
        measured = {
            "clips_per_s": ("clips/s", rates),
            "busy_cores": ("cores", [busy]),
            "memory_gib": ("GiB", [held_gib]),
        }
        more = {"threads": threads or len(os.sched_getaffinity(0)), "batch": GPU_BATCH}
        rows += [row(case, shards, backend, metric, *values, **more) for metric, values in measured.items()]
    return rows


def row(
    case: Case, shards: ShardSet, variant: str, metric: str, unit: str, values: Sequence[float], **more: int
) -> Row:
    config = asdict(case) | {"frames": case.clip.frames, "seconds": case.clip.seconds, "kib": mean_kib(shards)} | more
    return Row("loading", variant, case.name, metric, unit, "short_side", float(case.short_side), values, config)


def mean_kib(shards: ShardSet) -> float:
    return round(sum(record.size for record in shards.records) / len(shards.records) / 1024, 1)


def show(case: Case, rates: dict[str, list[float]]) -> None:
    """Medians, and how far our best is ahead of the best other; below 1 we lose, and it is printed too."""
    middle = {name: torch.tensor(values).median().item() for name, values in rates.items()}
    ours = max(middle.get(name, 0.0) for name in ("pyav", "dali"))
    others = max((value for name, value in middle.items() if name not in ("pyav", "dali")), default=math.nan)
    parts = ", ".join(f"{name} {value:.1f}" for name, value in middle.items())
    print(f"{case.name}: {parts} clips/s; ours / best other {ours / others:.2f}", flush=True)


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
    parser.add_argument("--threads", type=int, nargs="*", default=[0], help="of the loaders on a GPU")
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
            elif options.device == "cpu":
                append(output, measure(case, options.work, options.turns), "cpu")
            else:
                for threads in options.threads:
                    append(output, measure_on_gpu(case, options.work, threads, options.turns), "cuda")


if __name__ == "__main__":
    main()
