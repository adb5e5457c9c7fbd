"""Where do the time and the memory of one ACE training step go, by part?

    python benchmarks/profile_step.py --device cpu --shape full          # table, and rows for results/profile_step.csv
    python benchmarks/profile_step.py --device cuda --shape paper_30 --trace trace.json.gz   # and a trace for Perfetto

The parts are those of `launchers/train.py ... profile=true`, by the same code (`ace_dist.train.profile`): patch
embedding, frozen blocks, trained blocks (forward), head, text (the drawn phrases), loss, backward, optimizer, and
`forward` for what is left of the forward pass. They come from the events of torch's profiler; on a GPU a part has the
time of the kernels that it launched. `whole` is the step with nothing recorded. Metrics: `time` (ms), `matmul_rate`
(TFLOP/s of a part's matrix products, with `ceiling` that of large square ones).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from bench_step import SETTINGS, SHAPES, Shape, vocabulary
from common import Row, append

from ace_dist.concepts import ConceptSampler
from ace_dist.objectives import ConceptObjective, total_loss
from ace_dist.train.metrics import matmul_flops_per_s, micro_batch_flops
from ace_dist.train.profile import build_recorder, parts_table, seconds_by_part
from ace_dist.utils.parts import part

RESULTS = Path(__file__).parent / "results"


class Step:
    """A training step of a shape: model, one batch, SGD."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        model = shape.model().to(device=device, dtype=dtype)
        trees, actions = vocabulary(shape)
        self.sampler = ConceptSampler(actions, trees, seed=0)
        self.objective = ConceptObjective(model, self.sampler, SETTINGS).train()
        self.optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
        self.size = 224 if shape.full else 48
        self.video = torch.randn(shape.batch, shape.frames, 3, self.size, self.size, device=device, dtype=dtype)
        self.labels = torch.randint(shape.classes, (shape.batch,), device=device)

    def take(self, index: int) -> None:
        """Forward, backward, step."""
        with part("forward"):
            loss = total_loss(self.objective(self.video, self.labels, self.sampler.draw(index)))
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def profile(shape: Shape, device: str, precision: str, turns: int, trace: Path | None) -> list[Row]:
    """Rows of one shape: each part's milliseconds a step, rate and memory."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    step = Step(shape, device, dtype)
    whole = [whole_step(step, index, device) for index in range(-2, turns)][2:]
    with build_recorder(torch.device(device), turns, details=trace is not None) as recorder:
        for index in range(turns):
            step.take(index)
            if index < turns - 1:
                recorder.step()
    seconds = seconds_by_part(recorder.events() or ())
    if trace:
        recorder.export_chrome_trace(str(trace))
    flops = micro_batch_flops(step.objective, shape.batch, shape.frames, step.size)
    ceiling = matmul_flops_per_s(torch.device(device), dtype)
    total = sum(sum(part) for part in flops.values())
    print(parts_table(seconds, flops))
    print(
        f"unwatched: {1e3 * median(whole):.2f} ms, {total / median(whole) / 1e12:.4g} TFLOP/s, "
        f"{total / median(whole) / ceiling:.1%} of large matrix products"
    )
    config = asdict(shape) | {"precision": precision}

    def row(variant: str, metric: str, unit: str, values: list[float]) -> Row:
        return Row("profile_step", variant, shape.name, metric, unit, "frames", shape.frames, values, config)

    products = {name: part.forward for name, part in flops.items()}
    products["backward"] = sum(part.backward for part in flops.values())
    return [
        row("whole", "time", "ms", [1e3 * value for value in whole]),
        *(row(name, "time", "ms", [1e3 * value for value in values]) for name, values in seconds.items()),
        row("whole", "matmul_rate", "TFLOP/s", [total / value / 1e12 for value in whole]),
        *(
            row(name, "matmul_rate", "TFLOP/s", [count / value / 1e12 for value in seconds[name]])
            for name, count in products.items()
            if count and name in seconds
        ),
        row("ceiling", "matmul_rate", "TFLOP/s", [ceiling / 1e12]),
    ]


def whole_step(step: Step, index: int, device: str) -> float:
    """Seconds of one unwatched step, the device's work included."""
    start = time.perf_counter()
    step.take(index + 2)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", help="the first of the device by default")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--trace", type=Path, help="write a Chrome trace of the measured steps, which slows them")
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
