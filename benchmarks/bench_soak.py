"""Does memory stay flat over 10,000 clips?

One loader reads random clips of tabletop shards. Resident memory (Linux) is read after every batch; the slope is that
of a line through the second half (the first fills caches and allocators), with its 95 % interval from ten blocks of
batches, because neighbouring readings are not independent.

    python launchers/build_shards.py experiment=demo
    python benchmarks/bench_soak.py --shards data/tabletop --backend pyav
    python benchmarks/bench_soak.py --shards data/tabletop --backend dali
"""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

import numpy as np
import torch
from common import Row, append
from numpy.typing import NDArray
from scipy import stats

from ace_dist.config import load_config
from ace_dist.data.loader import build_loader
from ace_dist.data.sampling import TrainPlan
from ace_dist.data.shards import ShardSet

RESULTS = Path(__file__).parent / "results" / "soak.csv"
BLOCKS = 10
MIB = 2**20


def resident_mib(backend: str, shards: str, clips: int) -> tuple[NDArray[np.float64], int]:
    """Resident memory after every batch, and the clips of a batch."""
    config = load_config(["experiment=demo", f"dataset.shards={shards}", f"loader.backend={backend}"])
    shard_set = ShardSet.load(shards)
    records, size = shard_set.split("train"), config.training.batch_size
    plan = TrainPlan(records, [0] * len(records), config.dataset.clip, config.loader, size, config.seed)
    loader = build_loader(config, "cpu")
    readings = []
    for batch in loader.stream(map(plan.requests, range(clips // size))):
        assert len(batch.ids) == size
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        readings.append(pages * resource.getpagesize() / MIB)
    loader.close()
    return np.array(readings), size


def slope(readings: NDArray[np.float64], size: int) -> tuple[float, float]:
    """KiB a clip over the second half, and half the width of its 95 % interval (t of block means)."""
    half = readings[len(readings) // 2 :]
    half = half[: len(half) // BLOCKS * BLOCKS]
    means = half.reshape(BLOCKS, -1).mean(1)
    clips = (np.arange(BLOCKS) + 0.5) * len(half) / BLOCKS * size
    line = stats.linregress(clips, means)
    return 1024 * line.slope, 1024 * line.stderr * float(stats.t.ppf(0.975, BLOCKS - 2))


def main() -> None:
    """Read, print, append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--backend", choices=("pyav", "dali"), default="pyav")
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    readings, size = resident_mib(options.backend, options.shards, options.clips)
    kib, interval = slope(readings, size)
    print(
        f"{options.backend}: {readings[len(readings) // 2]:.0f} MiB after half, {readings[-1]:.0f} at the end, peak "
        f"{readings.max():.0f}; {kib:+.4f} ± {interval:.4f} KiB a clip over the second half"
    )
    config = {"batch": size, "interval_95_kib": interval, "peak_mib": round(float(readings.max()), 1)}
    at = ("clips", float(len(readings) * size))
    rows = [
        Row("soak", options.backend, "loading", "slope", "KiB/clip", *at, [kib], config),
        Row("soak", options.backend, "loading", "resident", "MiB", *at, readings.tolist(), config),
    ]
    append(options.output, rows, "cpu")


if __name__ == "__main__":
    main()
