"""How fast are the concept similarity and its loss, against every other way to write them?

Columns: naive (the B×S matrix) and prototype (class means of unit rows), each eager and compiled;
`F.linear_cross_entropy` on prototypes where torch has it; ours. Modes: forward, backward, both. Metrics: `time`, on a
GPU also `host_time` and `graph_time` (see common.py), peak memory, launches, the share of the measured copy bandwidth.

    python benchmarks/bench_similarity.py --device cpu
    python benchmarks/bench_similarity.py --device cuda
    python benchmarks/bench_similarity.py --device cuda --quick     # two shapes, float32
    python benchmarks/bench_similarity.py --device cpu --host   # what Python spends on a call, launches left out
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config as functorch_config
from ace_kernels import concept_cross_entropy, concept_similarity
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
from similarity_host import measure_host, no_launches
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

functorch_config.donated_buffer = False  # a backward pass is timed again and again
TEMPERATURE = 0.02  # the paper's


@dataclass(frozen=True)
class Shape:
    """Videos, classes, synonyms a class, width."""

    name: str
    videos: int
    classes: int
    synonyms: int
    width: int = 512


TRAINING = (Shape("train_ata", 16, 10, 11), Shape("train_ikea", 16, 21, 2), Shape("train_gtea", 16, 6, 9))
SHAPES = {
    "cuda": (*TRAINING, Shape("kinetics", 256, 400, 10), Shape("open_vocabulary", 4096, 1000, 121)),
    # The open-vocabulary shape with a quarter of the videos and classes: the naive B×S matrix takes 124 MB.
    "cpu": (*TRAINING, Shape("kinetics", 64, 400, 10), Shape("open_vocabulary_quarter", 1024, 250, 121)),
}
OPERATIONS = ("cross_entropy_shadow", "cross_entropy", "similarity")
QUICK = (("train_ata", "cross_entropy_shadow"), ("open_vocabulary", "similarity"))
Inputs = tuple[Tensor, Tensor, Tensor]  # video, text, shadow text


def naive_logits(video: Tensor, text: Tensor, shape: Shape) -> Tensor:
    """Every cosine, then the average."""
    cosines = normalize(video, dim=1) @ normalize(text, dim=1).T
    return cosines.unflatten(1, (shape.classes, -1)).mean(2) / TEMPERATURE


def means(text: Tensor, shape: Shape) -> Tensor:
    """Class means of unit rows."""
    return normalize(text, dim=1).unflatten(0, (shape.classes, -1)).mean(1)


def prototype_logits(video: Tensor, text: Tensor, shape: Shape) -> Tensor:
    """One product with the class means."""
    return normalize(video, dim=1) @ means(text, shape).T / TEMPERATURE


def build_operation(
    logits: Callable[..., Tensor], operation: str, shape: Shape, labels: Tensor
) -> Callable[..., Tensor]:
    """An operation in terms of a way to compute logits."""

    def run(video: Tensor, text: Tensor, shadow: Tensor) -> Tensor:
        scores = logits(video, text, shape)
        if operation == "similarity":
            return scores
        if operation == "cross_entropy_shadow":
            if logits is naive_logits:
                own = naive_logits(video, shadow, shape).gather(1, labels[:, None])
            else:
                own = (normalize(video, dim=1) * means(shadow, shape)[labels]).sum(1, keepdim=True) / TEMPERATURE
            scores = torch.cat([scores, own], 1)
        return cross_entropy(scores.float(), labels)

    return run


def columns(operation: str, shape: Shape, labels: Tensor) -> dict[str, Callable[..., Tensor]]:
    """Every way to compute an operation, as functions of video, text and shadow text."""
    offsets = torch.arange(0, shape.classes * shape.synonyms + 1, shape.synonyms)

    def ours(video: Tensor, text: Tensor, shadow: Tensor) -> Tensor:
        if operation == "similarity":
            return concept_similarity(video, text, offsets, TEMPERATURE)
        extra = (shadow, offsets) if operation == "cross_entropy_shadow" else ()
        return concept_cross_entropy(video, text, offsets, labels, TEMPERATURE, *extra)

    def linear(video: Tensor, text: Tensor, shadow: Tensor) -> Tensor:
        return torch.nn.functional.linear_cross_entropy(
            normalize(video, dim=1) / TEMPERATURE, means(text, shape), labels
        )

    naive, prototype = (build_operation(way, operation, shape, labels) for way in (naive_logits, prototype_logits))
    ways = {
        "naive_eager": naive,
        "naive_compiled": torch.compile(naive),
        "prototype_eager": prototype,
        "prototype_compiled": torch.compile(prototype),
        "ours": ours,
    }
    if operation == "cross_entropy" and hasattr(torch.nn.functional, "linear_cross_entropy"):
        ways["linear_cross_entropy"] = linear
    return ways


def build_calls(function: Callable[..., Tensor], inputs: Inputs) -> dict[str, Callable[[], object]]:
    """The three modes of a function."""
    outcome = function(*inputs)
    weight = torch.randn_like(outcome)

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    def backward() -> object:
        return torch.autograd.grad(outcome, inputs, weight, retain_graph=True, allow_unused=True)

    def both() -> object:
        return torch.autograd.grad(function(*inputs), inputs, weight, allow_unused=True)

    return {"forward": forward, "backward": backward, "both": both}


def bytes_to_move(operation: str, shape: Shape, mode: str, size: int) -> int:
    """Bytes that any implementation reads and writes: inputs once, gradients once, and the logits of the similarity."""
    texts = 1 + (operation == "cross_entropy_shadow")
    rows = (shape.videos + texts * shape.classes * shape.synonyms) * shape.width * size
    logits = shape.videos * shape.classes * 4 * (operation == "similarity")
    return {"forward": rows + logits, "backward": 2 * rows + logits, "both": 3 * rows + 2 * logits}[mode]


def measure(
    shape: Shape, operation: str, dtype: torch.dtype, device: str, bandwidth: float, quick: bool
) -> Iterator[list[Row]]:
    """All columns at one shape, mode by mode."""
    torch.manual_seed(0)
    phrases = shape.classes * shape.synonyms
    sizes = (shape.videos, phrases, phrases)
    drawn = [torch.randn(n, shape.width, device=device).to(dtype).requires_grad_() for n in sizes]
    inputs = (drawn[0], drawn[1], drawn[2])
    labels = torch.randint(shape.classes, (shape.videos,), device=device)
    config: dict[str, Any] = asdict(shape) | {"dtype": str(dtype).removeprefix("torch."), "temperature": TEMPERATURE}
    modes: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "backward": {}, "both": {}}
    for variant, function in columns(operation, shape, labels).items():
        for mode, call in build_calls(function, inputs).items():
            modes[mode][variant] = call
    for mode, calls in modes.items():
        rows: list[Row] = []
        measured = measure_in_turns(calls, device, quick=quick)
        least_bytes = bytes_to_move(operation, shape, mode, inputs[0].element_size())
        for variant, metrics in measured.items():
            metrics |= bandwidth_share(metrics, least_bytes, bandwidth)
            rows += as_rows((operation, variant, mode), ("phrases", float(phrases)), metrics, config)
        show(f"{shape.name} {operation} {config['dtype']} {mode}", measured)
        yield rows


def measure_hosts(device: str, names: list[str] | None, output: Path) -> None:
    """Host time at the training shapes and at the open vocabulary."""
    shapes = [shape for shape in SHAPES["cuda"] if not names or shape.name in names]
    with no_launches() if device == "cpu" else nullcontext():
        for shape in shapes:
            if device == "cpu":  # where copies of tables would be counted: narrow ones cost little
                shape = replace(shape, width=16)
            rows = measure_host(shape.videos, shape.classes, shape.synonyms, shape.width, device, asdict(shape))
            append(output, rows, device)


def cases(shapes: list[str] | None, operations: list[str] | None, device: str, quick: bool) -> list[tuple[Any, ...]]:
    """Shape, operation and type of inputs of every case that was asked for, the quick ones first."""
    chosen = [
        (shape, operation, dtype)
        for dtype in ((torch.float32, torch.bfloat16) if device == "cuda" and not quick else (torch.float32,))
        for shape in SHAPES[device]
        for operation in operations or OPERATIONS
        if (not shapes or shape.name in shapes) and (not quick or (shape.name, operation) in QUICK)
    ]
    return sorted(chosen, key=lambda case: (case[0].name, case[1]) not in QUICK)


def main() -> None:
    """Measure and append to the results."""
    parser = build_parser(__doc__, "similarity_{cpu,cuda}.csv")
    parser.add_argument("--shapes", nargs="*", help="names of shapes; all by default")
    parser.add_argument("--operations", nargs="*", choices=OPERATIONS, help="all by default")
    parser.add_argument("--host", action="store_true", help="host time alone, to results/similarity_host.csv")
    options = parser.parse_args()
    if options.host:
        return measure_hosts(options.device, options.shapes, options.output or RESULTS / "similarity_host.csv")
    if options.threads:
        torch.set_num_threads(options.threads)
    device, output = options.device, options.output or RESULTS / f"similarity_{options.device}.csv"
    with side_stream(device):
        bandwidth, rows = copy_bandwidth_rows(device)
        append(output, rows, device)
        for case in cases(options.shapes, options.operations, device, options.quick):
            for rows in measure(*case, device, bandwidth, options.quick):
                append(output, rows, device)
            torch.compiler.reset()


if __name__ == "__main__":
    main()
