"""How long do frozen TimeSformer blocks take, and what stands between their products?

    python benchmarks/bench_trunk.py --device cuda          # rows for results/trunk_cuda.csv
    python benchmarks/bench_trunk.py --device cpu           # plain torch stands for the kernels: shows that it runs

`trunk`, all frozen blocks of a batch: `blocks`, the modules; `blocks_compiled`, under torch.compile (not with
`--quick`); `ours`, fused (`ace_dist.models.fused_blocks`), and `ours_fp8`, products with 8-bit operands. `error` is the
distance from the modules in float32 relative to their norm, of the patches.
`add_norm`, `add_norm_to_frames`, `add_norm_from_frames`: `ours`, `ours_fp8` (the norm as 8-bit rows), `eager` and
`compiled`, the same in torch. `gelu`: `eager` alone, and `ours_fp8` with rows of 8 bits.
Metrics: `time`, and on a GPU `host_time`, `graph_time`, memory, launches, share of the copy bandwidth (common.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from ace_kernels import residual_norm
from ace_kernels.fp8_rows import fp8_rows, fp8_unsupported_reason
from ace_kernels.residual_norm import Norm, Tokens
from common import (
    RESULTS,
    Row,
    append,
    as_rows,
    bandwidth_share,
    build_parser,
    copy_bandwidth_rows,
    measure_in_turns,
    show,
    side_stream,
)
from torch import Tensor
from torch.nn import functional

from ace_dist.config import VideoConfig
from ace_dist.models.fused_blocks import FrozenTrunk
from ace_dist.models.timesformer import TimeSformer

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Shape:
    """Clips of a batch, frames, frozen blocks, width, patches of a frame."""

    name: str
    clips: int
    frames: int
    blocks: int = 9
    width: int = 768
    heads: int = 12
    patches: int = 196

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.clips, self.patches, self.frames)


SHAPES = {
    "cpu": (Shape("toy", 2, 8, 3, 96, 3, 16),),
    "cuda": tuple(Shape(f"paper_{frames}", 16, frames) for frames in (15, 25, 30)),
}
QUICK = ("toy", "paper_30")


def build_tower(shape: Shape, device: str) -> TimeSformer:
    """One block more than is measured trains; no weight is zero."""
    config = VideoConfig(width=shape.width, heads=shape.heads, depth=shape.blocks + 1, trained_blocks=1)
    torch.manual_seed(0)
    with torch.device(device):
        tower = TimeSformer(config)
        with torch.no_grad():
            for name, parameter in tower.named_parameters():
                parameter.normal_(std=0.02).add_(float("norm" in name and name.endswith("weight")))
    return tower.eval()


def measure_trunk(shape: Shape, device: str, quick: bool, fp8: bool) -> list[Row]:
    """All frozen blocks in bfloat16."""
    tower = build_tower(shape, device)
    exact = (
        torch.randn(shape.clips, 1, shape.width, device=device),
        torch.randn(shape.clips, shape.patches, shape.frames, shape.width, device=device),
    )
    cls, patches = (x.bfloat16() for x in exact)

    def run(forwards: list[Callable[..., tuple[Tensor, Tensor]]], cls: Tensor, patches: Tensor) -> Tensor:
        backends = tower.backends(patches)
        for forward in forwards:
            cls, patches = forward(cls, patches, None, backends)
        return patches

    modules = [block.forward for block in tower.blocks[: shape.blocks]]
    true = run(modules, cls.float(), patches.float())
    tower.bfloat16()
    calls: dict[str, Callable[[], Tensor]] = {"blocks": lambda: run(modules, cls, patches)}
    if not quick and device == "cuda":
        compiled = [torch.compile(forward, dynamic=False) for forward in modules]
        calls["blocks_compiled"] = lambda: run(compiled, cls, patches)
    backends = tower.backends(patches)
    for name in ("ours", "ours_fp8") if fp8 else ("ours",):
        trunk = FrozenTrunk(tower.blocks[: shape.blocks], shape.heads, name == "ours_fp8")
        calls[name] = lambda trunk=trunk: trunk(cls, patches, backends.temporal, backends.spatial)[1]
    errors = {name: ((call().float() - true).norm() / true.norm()).item() for name, call in calls.items()}
    measured = measure_in_turns(calls, device, budget_s=2, quick=quick)
    for name, metrics in measured.items():
        metrics["error"] = ("1", [errors[name]])
    print(f"{shape.name} trunk errors: " + ", ".join(f"{name} {x:.2g}" for name, x in errors.items()), flush=True)
    show(f"{shape.name} trunk", measured)
    place, config = ("frames", float(shape.frames)), asdict(shape)
    return [row for name in measured for row in as_rows(("trunk", name, "forward"), place, measured[name], config)]


def build_passes(shape: Shape, device: str, fp8: bool) -> dict[str, Calls]:
    """Calls of every pass by its name. Ours updates the tokens in place; torch's forms make new ones."""
    tokens = shape.tokens
    x, patches, frames, hidden = (
        torch.randn(rows, width, device=device, dtype=torch.bfloat16)
        for rows, width in (
            (tokens.rows, shape.width),
            (tokens.patch_rows, shape.width),
            (tokens.frame_rows, shape.width),
            (tokens.rows, 4 * shape.width),
        )
    )
    weight, bias = torch.randn(2, shape.width, device=device, dtype=torch.bfloat16)
    norm, everything, zero = Norm(weight, bias, 1e-6), torch.randn_like(x), tokens.patch_rows

    def layer_norm(rows: Tensor) -> Tensor:
        return functional.layer_norm(rows, (shape.width,), weight, bias, 1e-6)

    def add() -> tuple[Tensor, Tensor]:
        total = x + everything
        return total, layer_norm(total)

    def to_frames() -> tuple[Tensor, Tensor]:
        total = x[:zero] + patches
        grid = layer_norm(total).view(shape.clips, shape.patches, shape.frames, -1).transpose(1, 2)
        cls = layer_norm(x[zero:]).view(shape.clips, 1, 1, -1).expand(-1, shape.frames, -1, -1)
        return total, torch.cat([cls, grid], 2)

    def from_frames() -> tuple[Tensor, ...]:
        grid = frames.view(shape.clips, shape.frames, 1 + shape.patches, -1)
        cls = x[zero:] + grid[:, :, 0].mean(1)
        total = x[:zero].view(shape.clips, shape.patches, shape.frames, -1) + grid[:, :, 1:].transpose(1, 2)
        return cls, layer_norm(cls), total, layer_norm(total)

    ours: dict[str, Callable[[bool], object]] = {
        "add_norm": lambda fp8: residual_norm.add_norm(x, everything, norm, fp8),
        "add_norm_to_frames": lambda fp8: residual_norm.add_norm_to_frames(x, patches, norm, tokens, fp8),
        "add_norm_from_frames": lambda fp8: residual_norm.add_norm_from_frames(x, frames, norm, tokens, fp8),
    }
    plain: dict[str, Callable[[], object]] = dict(zip(ours, (add, to_frames, from_frames), strict=True))
    passes: dict[str, Calls] = {"gelu": {"eager": lambda: functional.gelu(hidden)}}
    if fp8:
        passes["gelu"]["ours_fp8"] = lambda: fp8_rows(hidden, gelu=True)
    for name, call in ours.items():
        passes[name] = {"ours": lambda call=call: call(False), "eager": plain[name]}
        if fp8:
            passes[name]["ours_fp8"] = lambda call=call: call(True)
        if device == "cuda":
            passes[name]["compiled"] = torch.compile(plain[name], dynamic=False)
    return passes


def measure_passes(shape: Shape, device: str, quick: bool, fp8: bool, bandwidth: float) -> list[Row]:
    """Every pass in bfloat16; the least traffic is that of rows read once and written once."""
    rows, place, config = [], ("frames", float(shape.frames)), asdict(shape)
    for name, calls in build_passes(shape, device, fp8).items():
        measured = measure_in_turns(calls, device, quick=quick)
        show(f"{shape.name} {name}", measured)
        for variant, metrics in measured.items():
            written = shape.width * (1 if variant.endswith("fp8") else 2)
            per_row = 4 * (2 * shape.width + written) if name == "gelu" else 3 * 2 * shape.width + written
            if bandwidth:
                metrics |= bandwidth_share(metrics, shape.tokens.rows * per_row, bandwidth)
            rows += as_rows((name, variant, "forward"), place, metrics, config)
    return rows


@torch.no_grad()
def main() -> None:
    options = build_parser(__doc__, "trunk_{device}.csv").parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device, output = options.device, options.output or RESULTS / f"trunk_{options.device}.csv"
    fp8 = device == "cpu" or not fp8_unsupported_reason(torch.device(device))
    with side_stream(device):
        bandwidth, rows = copy_bandwidth_rows(device)
        append(output, rows, device)
        for shape in SHAPES[device]:
            if not options.quick or shape.name in QUICK:
                append(output, measure_trunk(shape, device, options.quick, fp8), device)
                append(output, measure_passes(shape, device, options.quick, fp8, bandwidth), device)


if __name__ == "__main__":
    main()
