"""What does one segment cost a shard builder, by its length: seconds, and memory at the peak?

A process a segment cuts the first seconds of one 720p H.264 video (30 frames/s), as a worker does; its memory is that
beyond the imports, so that segments of one length and of ten can be compared.

    python benchmarks/bench_build.py --seconds 10 60 600
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from common import Row, append, write_repeated_video

from ace_dist.config import EncodingConfig
from ace_dist.data.annotations.base import VideoReader
from ace_dist.data.build.cut import Cutter
from ace_dist.data.segments import Failure, Segment

RESULTS = Path(__file__).parent / "results" / "build.csv"
FPS, GROUP = 30, 60  # frames a second, and frames that are encoded once and then repeated
ENCODINGS = {
    "vp9": EncodingConfig(),  # dataset=csv
    "mjpeg_10fps": EncodingConfig(codec="mjpeg", quality=4, fps=10.0),  # dataset=ata
}
VARIANT = "ours"


def write_video(path: Path, seconds: float) -> None:
    """Moving noise in groups of `GROUP` frames, whose packets are repeated."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (90, 160, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    pictures = (np.roll(picture, 4 * index, 1) for index in range(GROUP))
    repeats = int(seconds * FPS) // GROUP
    write_repeated_video(path, pictures, (1280, 720), FPS, repeats, preset="ultrafast", g=str(GROUP))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cut(path: str, seconds: float, name: str, answer: multiprocessing.SimpleQueue[tuple[float, float, int]]) -> None:
    """Seconds, MiB beyond the imports, and bytes of the clip."""
    encoding, before, start = ENCODINGS[name], peak_mib(), time.perf_counter()
    reader = VideoReader([], encoding.fps, encoding.short_side)
    result = Cutter(reader, 2.0, encoding).cut(Segment("s", path, 0.5, seconds - 0.5, "spin", "block", "train"))
    assert not isinstance(result, Failure), result
    answer.put((time.perf_counter() - start, peak_mib() - before, len(result[1])))


def main() -> None:
    """Cut, print, append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60])
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS))
    parser.add_argument("--variant", default=VARIANT, help="name of the rows, such as that of another version")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows, context = [], multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.mp4"
        write_video(path, max(options.seconds))
        for name in options.encodings:
            for seconds in options.seconds:
                answer = context.SimpleQueue()
                process = context.Process(target=cut, args=(str(path), seconds, name, answer))
                process.start()
                elapsed_s, mib, size = answer.get()
                process.join()
                print(
                    f"{name} {seconds:g} s: {elapsed_s:.1f} s, {mib:.0f} MiB, clip of {size / 2**20:.1f} MiB",
                    flush=True,
                )
                place = (options.variant, name), ("segment_s", seconds)
                for metric, unit, value in (("time", "s", elapsed_s), ("peak", "MiB", mib), ("size", "B", float(size))):
                    rows.append(Row("build", *place[0], metric, unit, *place[1], [value]))
    append(options.output, rows, "cpu")


if __name__ == "__main__":
    main()
