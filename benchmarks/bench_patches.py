"""Is it faster to embed the patches of a clip's bytes than to normalise the clip first?

    python benchmarks/bench_patches.py --device cpu --threads 2     # rows for results/patch_embedding.csv
    python benchmarks/bench_patches.py --device cuda

From uint8 [B,T,3,S,S] on the device to [B,P,T,D]. Variants: `normalised`, as `loader.dtype=float32` does (normalise in
float32, cast, convolution, layout of the temporal attention); `normalised_compiled`, the same under torch.compile;
`bytes`, as `loader.dtype=uint8` does (`ace_dist.models.patches`). Metrics: time, root mean square error against
float64 (`error`, of outputs around 1), and on a GPU peak memory, launches and the time in a CUDA graph.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import Row, append, gpu_extras, time_in_turns
from torch import Tensor

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.base import normalise
from ace_dist.models.patches import ClipPatches

RESULTS = Path(__file__).parent / "results"
LOADER = LoaderConfig(dtype="uint8")


@dataclass(frozen=True)
class Shape:
    """Clips and frames of a batch, pixels a side, of a patch, width."""

    name: str
    clips: int
    frames: int
    side: int = 224
    patch: int = 16
    width: int = 768


SHAPES = {
    "cpu": (Shape("toy", 16, 8, 48, 12, 96), Shape("full", 2, 8)),
    "cuda": tuple(Shape(f"paper_{frames}", 16, frames) for frames in (15, 25, 30)),
}


def build_calls(shape: Shape, dtype: torch.dtype, device: str) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
    """The variants as calls without arguments, and what they should give, in float64 on the CPU."""
    embed = ClipPatches(shape.side, shape.patch, shape.width)
    torch.nn.init.normal_(embed.proj.weight, std=(3 * shape.patch**2) ** -0.5)
    embed.normalisation = (tuple(LOADER.mean), tuple(LOADER.std))
    embed.to(device, dtype)
    video = torch.randint(256, (shape.clips, shape.frames, 3, shape.side, shape.side), dtype=torch.uint8)
    exact = ClipPatches(shape.side, shape.patch, shape.width).double()
    exact.load_state_dict(embed.state_dict())
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (LOADER.mean, LOADER.std))
    true = exact((video[:1].double() / 255 - mean) / std)
    there = video.to(device)

    def normalised() -> Tensor:
        return embed(normalise(there, LOADER))

    return {
        "normalised": normalised,
        "normalised_compiled": torch.compile(normalised, dynamic=False),
        "bytes": lambda: embed(there),
    }, true


@torch.no_grad()
def measure(shape: Shape, dtype: torch.dtype, device: str) -> list[Row]:
    """Rows of one shape and precision, variants in turns."""
    calls, true = build_calls(shape, dtype, device)
    errors = {name: (call()[:1].cpu() - true).square().mean().sqrt().item() for name, call in calls.items()}
    metrics_by_variant = {name: {"error": ("1", [error])} for name, error in errors.items()}
    for name, times in time_in_turns(calls, device, budget_s=4).items():
        metrics_by_variant[name]["time"] = ("us", times)
        extras = gpu_extras(calls[name]) if device == "cuda" else {}
        metrics_by_variant[name] |= {metric: (unit, [value]) for metric, (unit, value) in extras.items()}
        print(shape.name, str(dtype), name, f"{sorted(times)[len(times) // 2]:.0f} us, error {errors[name]:.2g}")
    config = asdict(shape) | {"dtype": str(dtype).removeprefix("torch.")}
    return [
        Row("patch_embedding", name, shape.name, metric, unit, "frames", shape.frames, values, config)
        for name, metrics in metrics_by_variant.items()
        for metric, (unit, values) in metrics.items()
    ]


def main() -> None:
    """Measure and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch on a CPU")
    parser.add_argument("--output", type=Path, default=RESULTS / "patch_embedding.csv")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for shape in SHAPES[options.device]:
        for dtype in (torch.float32, torch.bfloat16):
            append(options.output, measure(shape, dtype, options.device), options.device)


if __name__ == "__main__":
    main()
