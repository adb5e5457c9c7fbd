"""Does `ace watch` keep up with a camera, and does its memory stay flat?

A video, brought to 256 pixels and 30 frames/s in H.264, is sent again and again through a pipe at its own pace, as one
endless MPEG transport stream, to `ace watch source=-` in a process of its own. CPU time and resident memory are those
of that process and of the one below it, which decodes. With annotations of the video (a label a frame, MS-TCN's
`groundTruth`) the delay of its labels is measured too.

    python benchmarks/bench_watch.py --run runs/demo --video jobs/videos/job-test-000.mp4 --minutes 60
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import count, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
import psutil
from common import Row, append

from ace_dist.segment.metrics import label_delays, runs

RESULTS = Path(__file__).parent / "results" / "watch.csv"
WARM_UP_S = 30.0  # of the stream: libraries fill their caches
READ_EVERY_S = 1.0
MIB = 2**20


def camera_video(source: Path, output: Path, side: int, fps: int) -> float:
    """`source` as a camera would send it; returns its length in seconds."""
    frames = 0
    with av.open(str(source)) as given, av.open(str(output), "w", format="mpegts") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "veryfast", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        stream.codec_context.gop_size = fps
        for frame in given.decode(video=0):
            scaled = frame.reformat(side, side, "yuv420p").to_ndarray()
            while frames < (frame.time + 1 / float(given.streams.video[0].average_rate)) * fps - 1e-6:
                picture = av.VideoFrame.from_ndarray(scaled, "yuv420p")
                picture.pts, picture.time_base, frames = frames, Fraction(1, fps), frames + 1
                out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return frames / fps


def send(video: Path, length_s: float, pipe: BinaryIO, seconds: float) -> None:
    """The video again and again, each packet at its time."""
    start_s = time.monotonic()
    with pipe, av.open(pipe, "w", format="mpegts", options={"flush_packets": "1"}) as out:
        stream = None
        for loop in count():
            with av.open(str(video)) as given:
                source = given.streams.video[0]
                stream = stream or out.add_stream_from_template(source)
                shift = round(loop * length_s / source.time_base) - source.start_time
                for packet in given.demux(source):
                    if not packet.size:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                    due_s = float(packet.dts * source.time_base)
                    if due_s > seconds:
                        return
                    time.sleep(max(0.0, start_s + due_s - time.monotonic()))
                    out.mux(packet)


def readings(process: psutil.Process) -> Iterator[tuple[float, float, float]]:
    """The time, CPU seconds so far and resident MiB of a process and those below it, until it ends."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        parts = [process, *process.children(recursive=True)]
        try:
            cpu = sum(sum(part.cpu_times()[:2]) for part in parts)
            resident = sum(part.memory_info().rss for part in parts)
        except psutil.NoSuchProcess:  # a part ended while it was read: the next reading is without it
            continue
        yield time.monotonic(), cpu, resident / MIB
        time.sleep(READ_EVERY_S)


def watch(options: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], list[tuple[float, ...]], float]:
    """The lines, the readings since the warm-up, and the length of the video."""
    length_s = camera_video(options.video, folder / "camera.ts", options.side, options.fps)
    words = [f"run={options.run}", "source=-", f"actions=[{','.join(options.actions)}]"]
    words += [f"minimum_s={options.minimum_s}"] if options.minimum_s is not None else []
    command = [sys.executable, "-m", "ace_dist", "watch", *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    lines: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        begun = threading.Event()
        arguments = (folder / "camera.ts", length_s, process.stdin, options.minutes * 60)

        def feed() -> None:
            with suppress(BrokenPipeError, av.error.FFmpegError):  # it ended, and says itself why
                send(*arguments)

        threading.Thread(target=feed, daemon=True).start()

        def read() -> None:
            for line in process.stdout or ():
                lines.append(json.loads(line))
                if lines[-1]["time_s"] > WARM_UP_S:
                    begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        while not begun.wait(1.0):
            if process.poll() is not None:
                raise SystemExit("ace watch ended before it was warm; see above")
        found = list(readings(psutil.Process(process.pid)))
        reader.join()
    return lines, found, length_s


def delays(lines: list[dict[str, Any]], options: argparse.Namespace, length_s: float) -> list[float]:
    """Seconds, one a labelled stretch of each round of the video; infinite for a label that is not said in time."""
    frames = options.truth.read_text(encoding="utf-8").split("\n")[:-1]
    names = [frame.replace("_", " ") for frame in frames]
    truth = [
        (begin * length_s / len(names), end * length_s / len(names), name)
        for name, begin, end in runs(names)
        if name in options.actions
    ]
    rounds = int(lines[-1]["time_s"] // length_s)
    changes = [(line["time_s"], line["label"]) for line in lines if line["event"] == "change"]
    shifted = [
        (start_s + n * length_s, end_s + n * length_s, name) for n in range(rounds) for start_s, end_s, name in truth
    ]
    return label_delays(changes, shifted)


def main() -> None:
    """Send, watch, print, append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--truth", type=Path, help="its labels, one a frame and line")
    parser.add_argument("--actions", nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--minimum-s", type=float)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines, found, length_s = watch(options, Path(folder))
    warm = [line for line in lines if line["time_s"] > WARM_UP_S]
    latency = [line["latency_ms"] for line in warm if "latency_ms" in line]
    found = found[: -round(5 / READ_EVERY_S)]  # without its end
    spent = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(found)]
    tenth = max(1, len(found) // 10)
    memory = [float(np.mean([mib for *_, mib in part])) for part in (found[:tenth], found[-tenth:])]
    config = {
        "side": options.side, "fps": options.fps, "threads": options.threads, "cores": os.cpu_count(),
        "latency_p95_ms": round(float(np.quantile(latency, 0.95)), 1), "note": options.note,
        "load_average": round(os.getloadavg()[2], 1), "lines": len(lines), "end": lines[-1]["note"],
    }  # fmt: skip
    metrics = [
        ("cpu", "s/s", spent),
        ("latency", "ms", latency),
        ("dropped", "frames", [float(lines[-1]["dropped"])]),
        ("resident_first_tenth", "MiB", memory[:1]),
        ("resident_last_tenth", "MiB", memory[1:]),
    ]
    if options.truth:
        late = delays(lines, options, length_s)
        config["labels_not_said"] = f"{np.isinf(late).sum()} of {len(late)}"
        metrics.append(("label_delay", "s", [delay for delay in late if np.isfinite(delay)]))
    at = ("minutes", round(lines[-1]["time_s"] / 60, 2))
    rows = [Row("watch", Path(options.run).name, "live", metric, unit, *at, values, config)
            for metric, unit, values in metrics if values]  # fmt: skip
    for row in rows:
        print(f"{row.metric}: median {np.median(row.values):.4g} {row.unit} of {len(row.values)}")
    print(config)
    append(options.output, rows, "cpu")


if __name__ == "__main__":
    main()
