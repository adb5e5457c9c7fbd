"""How fast is one training step (forward, backward, SGD) of ACE, and which part of the speed comes from where?

    python benchmarks/bench_step.py --device cpu            # rows for results/train_step.csv
    python benchmarks/bench_step.py --device cuda           # the paper's shapes: 15, 25, 30 frames, batch 16

Variants, all from the same weights, clips and drawn phrases:
- `naive`: Algorithm 1 on Hugging Face's models (`naive_step.py`); `naive_bf16` under bf16 autocast (GPU).
- `procedurevrl_style`: fixed embeddings of the root labels, whole video encoder in the graph (nothing marked frozen).
- one change on `naive` at a time: `tokens_cut` (phrases padded to the longest instead of 77), `phrase_bank` (the frozen
  text transformer runs once per phrase, before training), `own_timesformer`, `fused_loss`.
- `ours`: all of it, fp32; `ours_bf16` in bfloat16; `ours_compiled` with the blocks under torch.compile.

Every variant lives in a process of its own, so that peak memory is its own; the processes step in turns.
Metrics: `step_time` (ms), `clips_per_s`, `peak_memory_gib` (GPU: the allocator's peak; CPU: peak resident memory beyond
that of a process with the imports alone).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from ace_kernels import concept_cross_entropy_sets
from common import Row, append
from naive_step import NaiveStep, NaiveText, NaiveVideo, naive_loss
from torch import Tensor, nn

from ace_dist.concepts import Action, ConceptDraw, ConceptSampler, SynonymTrees
from ace_dist.config import MethodConfig, TextConfig, VideoConfig, config_dir
from ace_dist.methods.objective import offsets_of
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.phrase_bank import PhraseBank

RESULTS = Path(__file__).parent / "results"
SETTINGS = MethodConfig()
VARIANTS = {
    "cpu": (
        *("naive", "procedurevrl_style", "tokens_cut", "phrase_bank", "own_timesformer", "fused_loss"),
        *("ours", "ours_bf16", "ours_compiled"),
    ),
    "cuda": (
        *("naive", "naive_bf16", "procedurevrl_style", "tokens_cut", "phrase_bank", "own_timesformer", "fused_loss"),
        *("ours", "ours_bf16", "ours_compiled"),
    ),
}


@dataclass(frozen=True)
class Shape:
    """A training step: clips of a batch, frames, classes, and the encoders' size."""

    name: str
    batch: int
    frames: int
    classes: int
    synonyms: int  # M, the root verb among them
    full: bool

    def model(self) -> DualEncoder:
        """Both encoders with random weights; `temporal_fc`, which the initialisation leaves zero, too."""
        torch.manual_seed(0)
        if self.full:
            video, text = VideoConfig(), TextConfig()
        else:
            video = VideoConfig(width=96, depth=6, heads=3, patch=12, image_size=48, embed_dim=64)
            text = TextConfig(width=64, depth=2, heads=2, embed_dim=64)
        video.drop_path = 0.0  # Hugging Face's configuration takes no fraction
        model = DualEncoder(video, text)
        for block in model.video.tower():
            nn.init.trunc_normal_(block.temporal_fc.weight, std=0.02)
        return model


SHAPES = {
    "cpu": (Shape("toy", 16, 8, 10, 11, full=False), Shape("full", 2, 8, 10, 11, full=True)),
    "cuda": tuple(Shape(f"paper_{t}", 16, t, c, m, full=True) for t, c, m in ((15, 6, 9), (25, 21, 2), (30, 10, 11))),
}


class Assembled(nn.Module):
    """A step from chosen parts: naive or own video encoder, live text or phrase bank, plain or fused loss."""

    def __init__(self, video: nn.Module, text: NaiveText | PhraseBank, fused: bool) -> None:
        super().__init__()
        self.video, self.fused = video, fused
        self.bank = text if isinstance(text, PhraseBank) else None
        self.text = text.tower if isinstance(text, PhraseBank) else text

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> Tensor:
        """The loss of Eq. 9."""
        sets = {name: getattr(draw, name) for name in ("fixed", "random", "shadow")}
        flat = {name: [phrase for group in phrases for phrase in group] for name, phrases in sets.items()}
        video_BD = self.video(video_BTCHW)
        if not self.fused:
            return naive_loss(video_BD, {name: self.encode(f) for name, f in flat.items()}, draw, labels_B, SETTINGS)
        distinct = {phrase: row for row, phrase in enumerate(dict.fromkeys(p for f in flat.values() for p in f))}
        rows = [torch.tensor([distinct[phrase] for phrase in phrases]) for phrases in flat.values()]
        return concept_cross_entropy_sets(
            video_BD,
            self.encode(list(distinct)),
            [offsets_of(draw.fixed), offsets_of(draw.random)],
            labels_B,
            SETTINGS.temperature,
            shadow_offsets=offsets_of(draw.shadow),
            set_rows=rows[:2],
            shadow_rows=rows[2],
        ).sum()

    def encode(self, phrases: list[str]) -> Tensor:
        """Phrases -> [S, E], live or from the bank."""
        if self.bank is not None:
            return self.bank.encode(self.bank.indices(phrases))
        embeddings: Tensor = self.text(phrases)
        return embeddings


class ProcedureVRLStyle(nn.Module):
    """Root labels embedded once, nothing of the video encoder marked as frozen: gradients reach every parameter."""

    def __init__(self, model: DualEncoder, frames: int, actions: list[Action]) -> None:
        super().__init__()
        self.video = NaiveVideo(model.video, frames).requires_grad_()
        with torch.no_grad():
            self.register_buffer("labels", nn.functional.normalize(model.text([str(a) for a in actions]), dim=1))

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> Tensor:
        """Cross-entropy over the root labels."""
        logits = nn.functional.normalize(self.video(video_BTCHW), dim=1) @ self.labels.T / SETTINGS.temperature
        return nn.functional.cross_entropy(logits, labels_B)


def build(variant: str, shape: Shape, device: str) -> tuple[nn.Module, ConceptSampler]:
    """A variant's step as a module, and the draws of its phrases."""
    model = shape.model()
    trees, actions = vocabulary(shape)
    sampler = ConceptSampler(actions, trees, seed=0)
    if variant in ("naive", "naive_bf16"):
        return NaiveStep(model, shape.frames, SETTINGS).to(device), sampler
    if variant == "procedurevrl_style":
        return ProcedureVRLStyle(model, shape.frames, actions).to(device), sampler
    if variant == "tokens_cut":
        return NaiveStep(model, shape.frames, SETTINGS, padded=False).to(device), sampler
    model.to(device=device, dtype=torch.bfloat16 if variant == "ours_bf16" else torch.float32)
    ours = variant.startswith("ours")
    naive_video, naive_text = NaiveVideo(model.video, shape.frames), NaiveText(model.text)
    step = Assembled(
        model.video if ours or variant == "own_timesformer" else naive_video.to(device),
        model.make_bank(sampler.reachable()) if ours or variant == "phrase_bank" else naive_text.to(device),
        fused=ours or variant == "fused_loss",
    )
    if variant == "ours_compiled":
        for block in model.video.tower():
            block.compile(dynamic=False)
    return step, sampler


def vocabulary(shape: Shape) -> tuple[SynonymTrees, list[Action]]:
    """As many actions and synonyms as the shape says, of real verbs; whose synonym a verb is does not matter here."""
    verbs = SynonymTrees.load(config_dir() / "synonyms" / "tabletop.json").verbs()
    groups = [verbs[i : i + shape.synonyms] for i in range(0, shape.classes * shape.synonyms, shape.synonyms)]
    trees = {group[0]: {verb: [verb, *(v for v in group if v != verb)] for verb in group} for group in groups}
    return SynonymTrees(trees), [Action(group[0], "block") for group in groups]


def worker(pipe: Connection, variant: str, shape: Shape, device: str) -> None:
    """Build a variant; then for each message take one step and answer with its milliseconds; at the end with memory."""
    base = peak_memory_gib(device)
    module, sampler = build(variant, shape, device)
    module.train()
    depth = 12 if shape.full else 6
    moved = tuple(f"layer.{i}." for i in range(depth - 3, depth)) if variant == "procedurevrl_style" else ("",)
    trained = [p for name, p in module.named_parameters() if p.requires_grad and any(part in name for part in moved)]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4)
    size = 224 if shape.full else 48
    dtype = torch.bfloat16 if variant == "ours_bf16" else torch.float32
    video = torch.randn(shape.batch, shape.frames, 3, size, size, device=device, dtype=dtype)
    labels = torch.randint(shape.classes, (shape.batch,), device=device)

    def step(index: int) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=variant == "naive_bf16"):
            loss = module(video, labels, sampler.draw(index))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    for index in iter(pipe.recv, None):
        start = time.perf_counter()
        step(index)
        pipe.send((time.perf_counter() - start) * 1e3)
    pipe.send(peak_memory_gib(device) - base)


def peak_memory_gib(device: str) -> float:
    """Peak of this process so far, in GiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(shape: Shape, variants: list[str], device: str, turns: int) -> list[Row]:
    """Rows of one shape, variants in turns."""
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for variant in variants:
        pipes[variant], theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, variant, shape, device), daemon=True).start()
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(-1, turns):  # a step to warm up
        for variant, pipe in pipes.items():
            pipe.send(turn + 1)
            taken = pipe.recv()
            if turn >= 0:
                times[variant].append(taken)
        print(shape.name, turn, {name: round(values[-1]) for name, values in times.items() if values}, flush=True)
    rows = []
    for variant, pipe in pipes.items():
        pipe.send(None)
        rows += rows_of(shape, variant, times[variant], pipe.recv())
    return rows


def rows_of(shape: Shape, variant: str, times_ms: list[float], memory_gib: float) -> list[Row]:
    """The three metrics of one variant."""
    row: Callable[..., Row] = lambda metric, unit, values: Row(  # noqa: E731
        "train_step", variant, shape.name, metric, unit, "frames", shape.frames, values, config(shape)
    )
    return [
        row("step_time", "ms", times_ms),
        row("clips_per_s", "clips/s", [shape.batch * 1e3 / value for value in times_ms]),
        row("peak_memory_gib", "GiB", [memory_gib]),
    ]


def config(shape: Shape) -> dict[str, Any]:
    """What a row depends on."""
    return asdict(shape) | {"trained_blocks": 3, "phrases_of": "configs/synonyms/tabletop.json"}


def main() -> None:
    """Measure and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="*", help="names of shapes; all by default")
    parser.add_argument("--variants", nargs="*", help="all by default")
    parser.add_argument("--turns", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--output", type=Path, default=RESULTS / "train_step.csv")
    options = parser.parse_args()
    for shape in SHAPES[options.device]:
        if not options.shapes or shape.name in options.shapes:
            variants = options.variants or list(VARIANTS[options.device])
            append(options.output, measure(shape, variants, options.device, options.turns), options.device)


if __name__ == "__main__":
    main()
