"""What does segmenting a long video cost, against decoding it once, and against classifying window after window?

One H.264 video of 30 frames/s and a short side of 256 pixels (a rendered job, repeated), and the small encoders:

- `decode`: every frame decoded once by PyAV, nothing else; one thread.
- `pictures`: the pictures of all windows, decoded, scaled and cropped, without a model.
- `segment`: `Classifier.segment` without kept embeddings.
- `segment_each_window`: the same of a tower that sees frames alone, without sharing them between windows.
- `windows`: the naive way, `Classifier.classify` of each window's stretch; the first windows alone, and scaled up.
- `labels_changed`: `Classifier.segment` of an hour whose embeddings are kept, by each decoder.

`cpu_s` are the seconds that cores worked, in this process and the one that decodes: they hold on a busy machine, where
`wall_s` says nothing; the load of the machine stands in each row.

    python benchmarks/bench_segment.py --seconds 120 --threads 1 2
    python benchmarks/bench_segment.py --model clip_b16 --seconds 10 --turns 2 --windows 2 --threads 2
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np
import torch
from common import Row, append, write_repeated_video

from ace_dist import Classifier
from ace_dist.concepts import SynonymTrees
from ace_dist.config import Config, load_config
from ace_dist.data.loader.long_video import stream_crops
from ace_dist.models.build import build_model
from ace_dist.models.temporal import FrameByFrameTower
from ace_dist.segment.decoders import NAMES
from ace_dist.segment.embed import PART, store_key, write_array
from ace_dist.segment.windows import WindowGrid
from ace_dist.utils.files import write_json
from ace_dist.utils.processes import stat_fields
from ace_dist.worlds.tabletop.procedures import draw_procedure_video, frames
from ace_dist.worlds.tabletop.world import BASE_ACTIONS, TabletopConfig

RESULTS = Path(__file__).parent / "results" / "segment.csv"
FPS, SIZE, RENDERED_S, HOUR_S = 30, 256, 10, 3600
LABELS = [" ".join(action) for action in BASE_ACTIONS]


def write_video(path: Path, seconds: int) -> None:
    """The first `RENDERED_S` seconds of a job, encoded once, its packets repeated."""
    world = TabletopConfig(size=SIZE, fps=FPS)
    pictures = islice(frames(draw_procedure_video(world, "test", 0), world), RENDERED_S * FPS)
    write_repeated_video(path, pictures, (SIZE, SIZE), FPS, seconds // RENDERED_S, crf="23", g=str(2 * FPS))


# ------------------------------------------------------------------------------------------------------ what is timed
def decode(path: Path) -> None:
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        assert sum(1 for _ in container.decode(video=0))


def pictures(path: Path, config: Config) -> None:
    grid = WindowGrid.build(config.dataset.clip)
    for _ in stream_crops(path, grid.first_s, grid.interval_s, config.dataset.encoding, config.loader):
        pass


def windows(classifier: Classifier, path: Path, count: int) -> None:
    """The first `count` windows that lie within the video."""
    clip = classifier.config.dataset.clip
    stride_s = WindowGrid.build(clip).stride_s
    for k in range(count):
        classifier.classify(path, LABELS, start_s=k * stride_s, end_s=k * stride_s + clip.seconds)


def keep_hour(classifier: Classifier, path: Path, cache: Path) -> None:
    """Embeddings of an hour in the place of the video's own."""
    grid = WindowGrid.build(classifier.config.dataset.clip)
    count, folder = round(HOUR_S / grid.stride_s), cache / store_key(classifier.model, classifier.config, path, grid)
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).normal(size=(count, classifier.config.model.video.embed_dim)).astype(np.float32)
    for part in range(-(-count // PART)):
        write_array(folder / f"part-{part:05d}.f32", rows[part * PART : (part + 1) * PART])
    write_json(folder / "whole.json", {"windows": count, "start_s": 0.0, "end_s": float(HOUR_S)})


def cpu_seconds() -> float:
    """Of this process and of those that it started and that live."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = stat_fields(int(entry.name))
            if fields and os.getpid() in (int(entry.name), int(fields[1])):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of cores, and of a clock."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    call()
    return cpu_seconds() - cpu, time.perf_counter() - wall


# ------------------------------------------------------------------------------------------------------------- rows
def measure(
    path: Path, classifier: Classifier, model: str, threads: int, seconds: int, turns: int, naive: int
) -> list[Row]:
    """All ways in turns, each row in the seconds that the whole video takes."""
    torch.set_num_threads(threads)
    config = classifier.config
    with tempfile.TemporaryDirectory() as cache:
        keep_hour(classifier, path, Path(cache))
        calls: dict[str, tuple[float, Callable[[], object]]] = {
            "decode": (1.0, lambda: decode(path)),
            "pictures": (1.0, lambda: pictures(path, config)),
            "segment": (1.0, lambda: classifier.segment(path, LABELS)),
            "windows": (seconds / WindowGrid.build(config.dataset.clip).stride_s / naive,
                        lambda: windows(classifier, path, naive)),
        }  # fmt: skip
        tower = classifier.model.video
        if isinstance(tower, FrameByFrameTower) and tower.sees_frames_alone:
            calls["segment_each_window"] = (1.0, lambda: segment_each_window(classifier, path))
        for name in NAMES:
            again = partial_segment(classifier, path, name, Path(cache))
            calls[f"labels_changed_{name}"] = (1.0, again)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for turn in range(turns + 1):  # the first one warms up
            for name, (scale, call) in calls.items():
                cpu_s, wall_s = timed(call)
                if turn:
                    found[name].append((scale * cpu_s, scale * wall_s))
    about = {"threads": threads, "video_s": seconds, "fps": FPS, "short_side": SIZE, "load": os.getloadavg()[0]}
    rows = []
    for name, values in found.items():
        settings = about | ({"windows": naive} if name == "windows" else {})
        settings |= {"video_s": HOUR_S} if name.startswith("labels_changed") else {}
        for metric, place in (("cpu_s", 0), ("wall_s", 1)):
            measured = [value[place] for value in values]
            rows.append(Row("segment", name, model, metric, "s", "threads", threads, measured, settings))
    show(found, seconds, threads)
    return rows


def segment_each_window(classifier: Classifier, path: Path) -> None:
    with patch.object(type(classifier.model.video), "sees_frames_alone", False):
        classifier.segment(path, LABELS)


def partial_segment(classifier: Classifier, path: Path, decoder: str, cache: Path) -> Callable[[], object]:
    return lambda: classifier.segment(path, LABELS[:-1], decoder=decoder, cache=cache)


def show(found: dict[str, list[tuple[float, float]]], seconds: int, threads: int) -> None:
    """Ratios of medians; what we lose is printed too."""
    cpu, wall = ({name: float(np.median([v[i] for v in values])) for name, values in found.items()} for i in (0, 1))
    print(f"{threads} threads, load {os.getloadavg()[0]:.0f}, of {seconds} s of video:")
    for name in found:
        print(f"  {name:25} {cpu[name]:8.2f} s of cores, {wall[name]:8.2f} s by the clock")
    real_time = seconds / wall["segment"], seconds / cpu["segment"]
    print(f"  segment: {real_time[0]:.1f} times real time by the clock, {real_time[1]:.1f} a core")
    shares = cpu["segment"] / cpu["decode"], cpu["pictures"] / cpu["segment"]
    print(f"  segment / decode {shares[0]:.2f}, pictures / segment {shares[1]:.2f}")
    if "segment_each_window" in cpu:
        print(f"  segment_each_window / segment {cpu['segment_each_window'] / cpu['segment']:.1f}")
    print(f"  windows / segment {cpu['windows'] / cpu['segment']:.1f}", flush=True)


def main() -> None:
    """Measure, print, append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tabletop", help="of configs/model; its weights do not matter here")
    parser.add_argument("--seconds", type=int, default=120, help="of video, a multiple of ten")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the model; decoding has a core too")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--windows", type=int, default=10, help="that the naive way classifies")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    config = load_config(["experiment=demo", f"model={options.model}", "model.init=random"])
    classifier = Classifier(config, build_model(config.model, 0), SynonymTrees.load(config.dataset.synonyms or ""))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.mp4"
        write_video(path, options.seconds)
        for threads in options.threads:
            rows = measure(path, classifier, options.model, threads, options.seconds, options.turns, options.windows)
            append(options.output, rows, "cpu")


if __name__ == "__main__":
    main()
