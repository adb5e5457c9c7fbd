"""Is it faster to embed the patches of a clip's bytes than to normalise the clip first?

    python benchmarks/bench_patches.py --device cpu --threads 2     # rows for results/patch_embedding.csv
    python benchmarks/bench_patches.py --device cuda

From uint8 [B,T,3,S,S] on the device to [B,P,T,D]. Variants: `normalised`, as `loader.dtype=float32` does (normalise in
float32, cast, convolution, layout of the temporal attention); `normalised_compiled`, the same under torch.compile;
`bytes`, as `loader.dtype=uint8` does (`ace_dist.models.patches`). Metrics: `time`, root mean square error against
float64 (`error`, of outputs around 1), and on a GPU `host_time` and `graph_time` (see common.py), memory and launches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from common import RESULTS, Row, append, as_rows, build_parser, measure_in_turns, show, side_stream
from torch import Tensor

from ace_dist.config import LoaderConfig
from ace_dist.data.loader.base import normalise
from ace_dist.models.patches import ClipPatches

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
QUICK = ("toy", "paper_30")


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
def measure(shape: Shape, dtype: torch.dtype, device: str, quick: bool) -> list[Row]:
    """Rows of one shape and precision, variants in turns."""
    calls, true = build_calls(shape, dtype, device)
    errors = {name: (call()[:1].cpu() - true).square().mean().sqrt().item() for name, call in calls.items()}
    measured = measure_in_turns(calls, device, budget_s=4, quick=quick)
    config, rows = asdict(shape) | {"dtype": str(dtype).removeprefix("torch.")}, []
    for name, metrics in measured.items():
        metrics["error"] = ("1", [errors[name]])
        rows += as_rows(("patch_embedding", name, shape.name), ("frames", float(shape.frames)), metrics, config)
    print(f"{shape.name} {config['dtype']} errors: " + ", ".join(f"{name} {x:.2g}" for name, x in errors.items()))
    show(f"{shape.name} {config['dtype']}", measured)
    return rows


def main() -> None:
    """Measure and append to the results."""
    options = build_parser(__doc__, "patch_embedding.csv").parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with side_stream(options.device):
        for shape in SHAPES[options.device]:
            if options.quick and shape.name not in QUICK:
                continue
            for dtype in (torch.bfloat16,) if options.quick else (torch.float32, torch.bfloat16):
                rows = measure(shape, dtype, options.device, options.quick)
                append(options.output or RESULTS / "patch_embedding.csv", rows, options.device)


if __name__ == "__main__":
    main()
