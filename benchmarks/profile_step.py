"""Where do the time and the memory of one ACE training step go, by part?

    python benchmarks/profile_step.py --device cpu --shape full          # table, and rows for results/profile_step.csv
    python benchmarks/profile_step.py --device cuda --shape paper_30 --trace trace.json   # and a trace for Perfetto

Parts: patch embedding, frozen blocks, trained blocks (forward), text (projection of the drawn phrases), loss, backward,
optimizer. On a GPU the device is synchronised around each part, which slows the step and keeps the shares; memory is
the allocator's peak within a part, beyond what was held when it began. `whole` is the step without any of that.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_step import SETTINGS, SHAPES, Shape, vocabulary
from common import Row, append

from ace_dist.concepts import ConceptSampler
from ace_dist.methods import ConceptObjective, objective

RESULTS = Path(__file__).parent / "results"


class Parts:
    """Seconds and GiB of the parts of a step; a part inside another one is counted as its own."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.memory_gib: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block of code. Calls of one step add up in `end_step`."""
        held = self.synchronise()
        start = time.perf_counter()
        with torch.profiler.record_function(f"part: {name}"):
            yield
        peak = self.synchronise(peak=True)
        self.seconds[name].append(time.perf_counter() - start)
        self.memory_gib[name] = max(self.memory_gib[name], (peak - held) / 2**30)

    def synchronise(self, peak: bool = False) -> int:
        """Wait for the device; bytes held now, or their peak since the last call."""
        if self.device != "cuda":
            return 0
        torch.cuda.synchronize()
        found = torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return found

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Time every call of a method."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return method(*args, **kwargs)

        setattr(owner, name, timed)


def instrument(module: ConceptObjective, parts: Parts) -> None:
    """Name the parts of the forward pass."""
    video = module.model.video
    parts.wrap(video, "embed", "patch embedding")
    for index, block in enumerate(video.tower()):
        name = "trained blocks" if index >= video.first_trained else "frozen blocks"
        parts.wrap(block, "forward", name)
        parts.wrap(block, "last", name)
    parts.wrap(module, "encode", "text")
    parts.wrap(objective, "concept_cross_entropy_sets", "loss")


def profile(shape: Shape, device: str, precision: str, turns: int, trace: Path | None) -> list[Row]:
    """Rows of one shape: each part's milliseconds a step and its memory."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = shape.model().to(device=device, dtype=dtype)
    trees, actions = vocabulary(shape)
    sampler = ConceptSampler(actions, trees, seed=0)
    module = ConceptObjective(model, model.make_bank(sampler.reachable()), sampler, SETTINGS).train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
    size = 224 if shape.full else 48
    video = torch.randn(shape.batch, shape.frames, 3, size, size, device=device, dtype=dtype)
    labels = torch.randint(shape.classes, (shape.batch,), device=device)
    parts = Parts(device)

    def step(index: int, measured: bool) -> None:
        named = parts.part if measured else lambda _: nullcontext()
        loss = module(video, labels, sampler.draw(index)).total
        with named("backward"):
            loss.backward()
        with named("optimizer"):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    found: dict[str, list[float]] = {"whole": []}
    for index in range(-2, turns):
        parts.synchronise()
        start = time.perf_counter()
        step(index + 2, measured=False)
        parts.synchronise()
        found["whole"] += [time.perf_counter() - start] * (index >= 0)
    instrument(module, parts)
    with torch.profiler.profile() if trace else nullcontext() as recorded:
        for index in range(turns):
            parts.seconds.clear()
            step(index, measured=True)
            for name, seconds in parts.seconds.items():
                found.setdefault(name, []).append(sum(seconds))
    if trace and recorded:
        recorded.export_chrome_trace(str(trace))
    config = asdict(shape) | {"precision": precision}
    print_table(found, parts.memory_gib)
    return [
        Row("profile_step", name, shape.name, "time", "ms", "frames", shape.frames, [s * 1e3 for s in values], config)
        for name, values in found.items()
    ] + [
        Row("profile_step", name, shape.name, "peak_memory_gib", "GiB", "frames", shape.frames, [gib], config)
        for name, gib in parts.memory_gib.items()
        if device == "cuda"
    ]


def print_table(found: dict[str, list[float]], memory_gib: dict[str, float]) -> None:
    """Median milliseconds, share of the parts' sum, and memory."""
    middle = {name: sorted(values)[len(values) // 2] * 1e3 for name, values in found.items()}
    total = sum(value for name, value in middle.items() if name != "whole")
    for name, value in middle.items():
        share = "" if name == "whole" else f"{value / total:6.1%}"
        print(f"{name:18}{value:10.2f} ms  {share:>7}  {memory_gib.get(name, 0):6.2f} GiB")


def main() -> None:
    """Measure, print and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", help="the first of the device by default")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--trace", type=Path, help="write a Chrome trace of the measured steps")
    parser.add_argument("--output", type=Path, default=RESULTS / "profile_step.csv")
    options = parser.parse_args()
    shapes = {shape.name: shape for shape in SHAPES[options.device]}
    if options.shape and options.shape not in shapes:
        parser.error(f"--shape {options.shape} is not one of {', '.join(shapes)}")
    shape = shapes[options.shape or next(iter(shapes))]
    rows = profile(shape, options.device, options.precision, options.turns, options.trace)
    append(options.output, rows, options.device)


if __name__ == "__main__":
    main()
