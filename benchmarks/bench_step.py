"""How fast is one training step (forward, backward, SGD) of ACE, and which part of the speed comes from where?

    python benchmarks/bench_step.py --device cpu            # rows for results/train_step.csv
    python benchmarks/bench_step.py --device cuda           # the paper's shapes: 15, 25, 30 frames, batch 16

Variants, all from the same weights, clips and drawn phrases:
- `naive`: Algorithm 1 on Hugging Face's models (`naive_step.py`); `naive_bf16` under bf16 autocast (GPU).
- `procedurevrl_style`: fixed embeddings of the root labels, whole video encoder in the graph (nothing marked frozen).
- one change on `naive` at a time: `tokens_cut` (phrases padded to the longest instead of 77), `text_feature_cache` (the
  frozen text transformer runs once per phrase, before training), `own_timesformer`, `fused_loss`.
- `ours`: all of it, fp32; `ours_compiled` with the blocks under torch.compile, `ours_graphs` in CUDA graphs too;
  `ours_sgd_loop` without fused SGD.
- `ours_bf16`: weights in bfloat16, fp32 masters and momentum for what trains, as in training; `ours_bf16_pure` without.
- `..._checkpointed`: with `model.video.activation_checkpointing`.
- `..._cached`: what the frozen blocks make of every clip is in the feature cache and read from there (page cache, after
  the first step); decoding, which the cache spares too, is in no variant.

Every variant lives in a process of its own, so that peak memory is its own; the processes step in turns.
Metrics: `step_time` (ms), `clips_per_s`, `loss` (of the last step), and memory. On a GPU `peak_memory_gib` is the
allocator's peak. On a CPU it is the peak of resident memory, start included, beyond that of a process with the imports
alone, and `step_memory_gib` the peak of the steps: the encoders are built whole before the cache lets go of the text.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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
from ace_dist.config import MethodConfig, TextConfig, VideoConfig, assets_dir
from ace_dist.data.loader.feature_cache import read_features, write_features
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.text_features import TextFeatureCache
from ace_dist.models.timesformer import TimeSformer
from ace_dist.utils.memory import trim_heap

RESULTS = Path(__file__).parent / "results"
SETTINGS = MethodConfig()
VARIANTS = {
    "cpu": (
        *("naive", "procedurevrl_style", "tokens_cut", "text_feature_cache", "own_timesformer", "fused_loss"),
        *("ours", "ours_checkpointed", "ours_sgd_loop", "ours_compiled", "ours_cached"),
        *("ours_bf16", "ours_bf16_checkpointed", "ours_bf16_pure", "ours_bf16_cached"),
    ),
    "cuda": (
        *(
            "naive",
            "naive_bf16",
            "procedurevrl_style",
            "tokens_cut",
            "text_feature_cache",
            "own_timesformer",
            "fused_loss",
        ),
        *("ours", "ours_checkpointed", "ours_sgd_loop", "ours_compiled", "ours_graphs", "ours_cached"),
        *("ours_bf16", "ours_bf16_checkpointed", "ours_bf16_pure", "ours_bf16_cached"),
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

    def model(self, checkpointed: bool = False) -> DualEncoder:
        """Both encoders with random weights; `temporal_fc`, which the initialisation leaves zero, too."""
        torch.manual_seed(0)
        if self.full:
            video, text = VideoConfig(), TextConfig()
        else:
            video = VideoConfig(width=96, depth=6, heads=3, patch=12, image_size=48, embed_dim=64)
            text = TextConfig(width=64, depth=2, heads=2, embed_dim=64)
        video.drop_path = 0.0  # Hugging Face's configuration takes no fraction
        video.activation_checkpointing = checkpointed
        model = DualEncoder(video, text)
        for block in model.video.blocks:
            nn.init.trunc_normal_(block.temporal_fc.weight, std=0.02)
        return model


SHAPES = {
    "cpu": (
        Shape("toy", 16, 8, 10, 11, full=False),
        Shape("full", 2, 8, 10, 11, full=True),
        Shape("full_15", 4, 15, 6, 9, full=True),
    ),
    "cuda": tuple(Shape(f"paper_{t}", 16, t, c, m, full=True) for t, c, m in ((15, 6, 9), (25, 21, 2), (30, 10, 11))),
}


class Assembled(nn.Module):
    """A step from chosen parts: naive or own video encoder, live text or text feature cache, plain or fused loss."""

    def __init__(self, video: nn.Module, text: NaiveText | TextFeatureCache, fused: bool) -> None:
        super().__init__()
        self.video, self.fused = video, fused
        self.text_features = text if isinstance(text, TextFeatureCache) else None
        self.text = text.tower if isinstance(text, TextFeatureCache) else text

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
            [torch.tensor(draw.fixed_rows.offsets), torch.tensor(draw.random_rows.offsets)],
            labels_B,
            SETTINGS.temperature,
            shadow_offsets=torch.tensor(draw.shadow_rows.offsets),
            set_rows=rows[:2],
            shadow_rows=rows[2],
        ).sum()

    def encode(self, phrases: list[str]) -> Tensor:
        """Phrases -> [S, E], live or from the cache."""
        if self.text_features is not None:
            return self.text_features.encode(self.text_features.indices(phrases))
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


def cached_clips(tower: TimeSformer, video: Tensor, folder: Path) -> Callable[[], Tensor]:
    """Put a batch into files as `FeatureCache` does; returns what reads it back."""
    paths = [folder / f"{index}.safetensors" for index in range(len(video))]
    for path, clip in zip(paths, video, strict=True):
        write_features(path, tower.frozen_features(clip[None])[0])
    return lambda: torch.stack([read_features(path).to(video.device) for path in paths])


def build(variant: str, shape: Shape, device: str) -> tuple[nn.Module, ConceptSampler]:
    """A variant's step as a module, and the draws of its phrases."""
    model = shape.model(variant.endswith("_checkpointed"))
    trees, actions = vocabulary(shape)
    sampler = ConceptSampler(actions, trees, seed=0)
    if variant in ("naive", "naive_bf16"):
        return NaiveStep(model, shape.frames, SETTINGS).to(device), sampler
    if variant == "procedurevrl_style":
        return ProcedureVRLStyle(model, shape.frames, actions).to(device), sampler
    if variant == "tokens_cut":
        return NaiveStep(model, shape.frames, SETTINGS, padded=False).to(device), sampler
    model.to(device)
    ours = variant.startswith("ours")
    cache = model.build_text_features(sampler.phrases) if ours or variant == "text_feature_cache" else None
    if ours:
        model.to(torch.bfloat16 if "bf16" in variant else torch.float32)
        model.release_text({})  # no new phrase will come
    video = model.video if ours or variant == "own_timesformer" else NaiveVideo(model.video, shape.frames).to(device)
    text = NaiveText(model.text).to(device) if cache is None else cache
    if variant in ("ours_compiled", "ours_graphs"):
        mode = "default" if variant == "ours_compiled" else "reduce-overhead"
        model.video.config = replace(model.video.config, compile=mode)
        model.compile_blocks()
    return Assembled(video, text, fused=ours or variant == "fused_loss"), sampler


def vocabulary(shape: Shape) -> tuple[SynonymTrees, list[Action]]:
    """As many actions and synonyms as the shape says, of real verbs; whose synonym a verb is does not matter here."""
    verbs = SynonymTrees.load(assets_dir() / "synonyms" / "tabletop.json").verbs()
    groups = [verbs[i : i + shape.synonyms] for i in range(0, shape.classes * shape.synonyms, shape.synonyms)]
    trees = {group[0]: {verb: [verb, *(v for v in group if v != verb)] for verb in group} for group in groups}
    return SynonymTrees(trees), [Action(group[0], "block") for group in groups]


def worker(pipe: Connection, variant: str, shape: Shape, device: str) -> None:
    """`answer`, and what ended it, such as a GPU's memory, as the last answer."""
    try:
        answer(pipe, variant, shape, device)
    except Exception as error:  # the other variants' rows are worth keeping
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def answer(pipe: Connection, variant: str, shape: Shape, device: str) -> None:
    """Build a variant; for each message take one step and answer with its milliseconds; at the end, with the rest."""
    base = peak_memory_gib(device)
    module, sampler = build(variant, shape, device)
    built = peak_memory_gib(device)
    forget_peak()
    module.train()
    depth = 12 if shape.full else 6
    layers = tuple(f"layer.{i}." for i in range(depth - 3, depth)) if variant == "procedurevrl_style" else ("",)
    trained = [p for name, p in module.named_parameters() if p.requires_grad and any(part in name for part in layers)]
    update = build_update(
        trained,
        masters=variant.startswith("ours_bf16") and not variant.endswith("_pure"),
        fused=variant.startswith("ours") and not variant.endswith("_sgd_loop"),
    )
    size = 224 if shape.full else 48
    torch.manual_seed(1)
    video = torch.randn(shape.batch, shape.frames, 3, size, size, device=device)
    video = video.bfloat16() if variant.startswith("ours_bf16") else video
    labels = torch.randint(shape.classes, (shape.batch,), device=device)
    folder = tempfile.TemporaryDirectory()  # removed with the process
    fetch = cached_clips(module.video, video, Path(folder.name)) if variant.endswith("_cached") else lambda: video

    def step(index: int) -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=variant == "naive_bf16"):
            loss: Tensor = module(fetch(), labels, sampler.draw(index))
        loss.backward()
        update()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    for index in iter(pipe.recv, None):
        start = time.perf_counter()
        loss = step(index)
        pipe.send((time.perf_counter() - start) * 1e3)
    stepping = peak_memory_gib(device)
    pipe.send({"peak_memory_gib": max(built, stepping) - base, "step_memory_gib": stepping - base, "loss": loss.item()})


def build_update(trained: list[nn.Parameter], masters: bool, fused: bool) -> Callable[[], None]:
    """SGD of the paper's recipe on what trains, or on copies of it in fp32, one gradient at a time."""
    masters_or_weights: list[Tensor] = [p.detach().float() if masters else p for p in trained]
    optimizer = torch.optim.SGD(
        masters_or_weights, lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=fused
    )

    def update() -> None:
        if masters:
            for low, high in zip(trained, masters_or_weights, strict=True):
                high.grad, low.grad = low.grad.float() if low.grad is not None else None, None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if masters:
            with torch.no_grad():
                for low, high in zip(trained, masters_or_weights, strict=True):
                    low.copy_(high)

    return update


def forget_peak() -> None:
    """Give freed memory back and let the process's peak count from here (Linux; a GPU's has nothing to forget)."""
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib(device: str) -> float:
    """Peak of this process so far, in GiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 2**20


def measure(shape: Shape, variants: list[str], device: str, turns: int) -> list[Row]:
    """Rows of one shape, variants in turns."""
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for variant in variants:
        pipes[variant], theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, variant, shape, device), daemon=True).start()
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(-1, turns):  # a step to warm up
        for variant, pipe in list(pipes.items()):
            pipe.send(turn + 1)
            taken = pipe.recv()
            if isinstance(taken, str):
                print(f"{shape.name}: {variant} has no rows, {taken}", flush=True)
                del pipes[variant], times[variant]
            elif turn >= 0:
                times[variant].append(taken)
        print(shape.name, turn, {name: round(values[-1]) for name, values in times.items() if values}, flush=True)
    rows = []
    for variant, pipe in pipes.items():
        pipe.send(None)
        rows += build_rows(shape, variant, times[variant], pipe.recv())
    print(shape.name, {row.variant: row.values[0] for row in rows if row.metric == "loss"}, flush=True)
    return rows


def build_rows(shape: Shape, variant: str, times_ms: list[float], measures: dict[str, float]) -> list[Row]:
    """The metrics of one variant."""
    row: Callable[..., Row] = lambda metric, unit, values: Row(  # noqa: E731
        "train_step", variant, shape.name, metric, unit, "frames", shape.frames, values, config(shape)
    )
    return [
        row("step_time", "ms", times_ms),
        row("clips_per_s", "clips/s", [shape.batch * 1e3 / value for value in times_ms]),
        *(row(name, "GiB" if name.endswith("gib") else "nats", [value]) for name, value in measures.items()),
    ]


def config(shape: Shape) -> dict[str, Any]:
    """What a row depends on."""
    return asdict(shape) | {"trained_blocks": 3, "phrases_of": "ace_dist/assets/synonyms/tabletop.json"}


def groups(variants: list[str], device: str) -> list[list[str]]:
    """What runs side by side: all on a CPU; on a GPU, whose memory cannot hold them all, each beside `naive`."""
    if device == "cpu" or "naive" not in variants:
        return [variants]
    return [["naive", variant] for variant in variants if variant != "naive"]


def main() -> None:
    """Measure and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="*", help="names of shapes; all by default")
    parser.add_argument("--variants", nargs="*", help="all by default")
    parser.add_argument("--turns", type=int, default=10, help="timed steps of each variant")
    parser.add_argument("--output", type=Path, default=RESULTS / "train_step.csv")
    options = parser.parse_args()
    if unknown := set(options.variants or ()) - set(VARIANTS[options.device]):
        parser.error(f"--variants: {', '.join(sorted(unknown))} is none of {', '.join(VARIANTS[options.device])}")
    for shape in SHAPES[options.device]:
        if not options.shapes or shape.name in options.shapes:
            variants = options.variants or list(VARIANTS[options.device])
            for group in groups(variants, options.device):
                append(options.output, measure(shape, group, options.device, options.turns), options.device)


if __name__ == "__main__":
    main()
