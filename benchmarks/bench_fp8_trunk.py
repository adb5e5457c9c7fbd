"""What do frozen blocks with 8-bit operands (model.video.trunk_precision=fp8) cost in accuracy? Emulated on a CPU.

    python launchers/build_shards.py experiment=demo
    python benchmarks/bench_fp8_trunk.py --seeds 0 1       # rows for results/fp8_trunk.csv

Trains and tests the demo, and tests it untrained (`training.max_steps=0`), with the frozen blocks as they are (float32)
and as the trunk for a GPU computes them with fp8: the same roundings to e4m3, with the same scales, through PyTorch's
kernels for the CPU; what is not rounded is float32. Metrics: accuracies and macro F1 of the test in percent, and
`feature_error`, the distance of what the frozen blocks make of the first batch, relative to its norm: cls, patches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import Row, append
from torch import Tensor

from ace_dist.cli.training import train
from ace_dist.models import timesformer
from ace_dist.models.fused_blocks import FrozenTrunk
from ace_dist.models.timesformer import TimeSformer

RESULTS = Path(__file__).parent / "results" / "fp8_trunk.csv"


def feature_error(tower: TimeSformer, cls: Tensor, patches: Tensor) -> dict[str, float]:
    """Distance of the trunk with fp8 from the frozen blocks as they are, relative to what those return."""
    blocks, backends = tower.blocks[: tower.frozen_depth], tower.backends(patches)
    trunk = FrozenTrunk(blocks, tower.config.heads, fp8=True)
    results = trunk(cls, patches, backends.temporal, backends.spatial)
    with torch.no_grad():
        for block in blocks:
            cls, patches = block.forward(cls, patches, None, backends)
    names = ("feature_error_cls", "feature_error_patches")
    return {
        name: ((ours - exact).norm() / exact.norm()).item()
        for name, ours, exact in zip(names, results, (cls, patches), strict=True)
    }


def run(precision: str, settings: list[str]) -> dict[str, float]:
    """Scores of one run, and of fp8 the distance of the first batch's features."""
    distances: dict[str, float] = {}
    plain = TimeSformer.frozen_blocks

    def frozen_blocks(tower: TimeSformer, cls: Tensor, patches: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
        if not distances and patches.device.type == "cpu":  # operations are counted on meta tensors
            distances.update(feature_error(tower, cls, patches))
        return plain(tower, cls, patches, compiled)

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["experiment=demo", "training.device=cpu", f"run={folder}/run", *settings]
        if precision == "fp8":
            arguments.append("model.video.trunk_precision=fp8")
            with (
                patch.object(
                    timesformer, "trunk_serves", lambda blocks, precision, device, dtype: device.type == "cpu"
                ),
                patch.object(TimeSformer, "frozen_blocks", frozen_blocks),
            ):
                train(arguments)
        else:
            train(arguments)
        results = json.loads(Path(folder, "run", "results.json").read_text())
    return scores(results) | distances


def scores(results: dict[str, Any]) -> dict[str, float]:
    values = {f"{part}_{kind}": results[part][kind] for part in ("base", "novel", "hm") for kind in ("accuracy", "f1")}
    return values | {f"srt_{name}": value for name, value in results["srt"].items() if name != "runs"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("settings", nargs="*", help="of the demo, such as dataset.shards=data/tabletop")
    options = parser.parse_args()
    runs = [("untrained", options.seeds[0], ["training.max_steps=0"])]
    runs += [("trained", seed, []) for seed in options.seeds]
    for mode, seed, extra in runs:
        for precision in ("same", "fp8"):
            values = run(precision, [f"seed={seed}", *options.settings, *extra])
            append(options.output, [row(precision, mode, seed, name, value) for name, value in values.items()], "cpu")


def row(precision: str, mode: str, seed: int, metric: str, value: float) -> Row:
    unit = "share" if metric.startswith("feature_error") else "percent"
    return Row("fp8_trunk", precision, mode, metric, unit, "seed", seed, [value])


if __name__ == "__main__":
    main()
