"""How fast is one training step (forward, backward, SGD) of ACE, and which part of the speed comes from where?

    python benchmarks/bench_step.py --device cpu            # rows for results/train_step.csv
    python benchmarks/bench_step.py --device cuda           # the paper's shapes: 15, 25, 30 frames, batch 16
    python benchmarks/bench_step.py --device cuda --shapes paper_30 --variants naive_bf16 ours_bf16_graphs_uint8

Variants, all from the same weights, clips and drawn phrases:
- `naive`: Algorithm 1 on the library's models (`naive_step.py`); `naive_bf16` under bf16 autocast (GPU).
- `procedurevrl_style`: fixed embeddings of the root labels, whole video encoder in the graph (nothing marked frozen).
- one change on `naive` at a time: `tokens_cut` (phrases padded to the longest instead of 77), `text_feature_cache` (the
  frozen text transformer runs once per phrase, before training), `own_timesformer`, `fused_loss`.
- `ours`: the objective that trains, fp32, nothing compiled; then any of these words, joined by `_`: `bf16` (weights in
  bfloat16, fp32 masters and momentum for what trains, as in training), `pure` (bf16 without masters), `compiled`,
  `graphs` and `auto` (`model.video.compile=default`, `cudagraphs`, `auto`), `fp8` (`model.video.trunk_precision`),
  `norms` and `checkpointed` (`model.video.recompute=norms`, `blocks`; else what `auto` chooses), `uint8`
  (`loader.dtype=uint8`: clips as bytes), `cached` (what the frozen blocks make of every clip is read from the feature
  cache, out of the page cache), `loop` (SGD not fused). Decoding is in no variant: `e2e_step.py` has it.

Shapes called as a file of `configs/model` have its encoders on 8 frames, on a CPU small ones. Of the baselines they
have `naive`: open_clip's own towers, every phrase encoded at each step.

On a CPU every variant lives in a process of its own, so that peak memory is its own, and the processes step in turns.
On a GPU one process measures them one after the other; a turn is five steps, as training takes them, and one wait for
the device at their end. Metrics: `step_time` (ms), `host_time` (ms until the step is launched), `clips_per_s`,
`ceiling_share` (the FLOPs that `metrics.jsonl` counts of such a step, a second, of those of large matrix products),
`first_step` (s, compiling included), `loss` (of the last step), and memory. On a GPU `peak_memory_gib` is the
allocator's peak. On a CPU it is the peak of resident memory, start included, beyond that of a process with the imports
alone, and `step_memory_gib` the peak of the steps: the encoders are built whole before the cache lets go of the text.
"""

from __future__ import annotations

import argparse
import gc
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.multiprocessing as mp
from ace_kernels import concept_cross_entropy_sets
from common import Row, append
from naive_step import NaiveStep, NaiveText, NaiveVideo, naive_loss
from torch import Tensor, nn

from ace_dist.concepts import Action, ConceptDraw, ConceptSampler, SynonymTrees
from ace_dist.config import LoaderConfig, MethodConfig, TextConfig, VideoConfig, assets_dir, load_config
from ace_dist.data.loader.feature_cache import read_features, write_features
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.text_features import TextFeatureCache
from ace_dist.models.timesformer import TimeSformer
from ace_dist.models.tokenizer import VOCABULARY
from ace_dist.objectives import ConceptObjective, total_loss
from ace_dist.train.metrics import matmul_flops_per_s, micro_batch_flops
from ace_dist.utils.memory import trim_heap

RESULTS = Path(__file__).parent / "results"
SETTINGS = MethodConfig()
WORDS: dict[str, dict[str, Any]] = {  # of a variant's name behind `ours`, and what they set of `model.video`
    "compiled": {"compile": "default"},
    "graphs": {"compile": "cudagraphs"},
    "auto": {"compile": "auto"},  # of a long run: compiled, in CUDA graphs
    "fp8": {"trunk_precision": "fp8"},
    "norms": {"recompute": "norms"},
    "checkpointed": {"recompute": "blocks"},
    **{word: {} for word in ("bf16", "pure", "uint8", "cached", "loop")},
}
BASELINES = (
    "naive",
    "naive_bf16",
    "procedurevrl_style",
    "tokens_cut",
    "text_feature_cache",
    "own_timesformer",
    "fused_loss",
)
VARIANTS = {
    "cpu": (
        *(name for name in BASELINES if name != "naive_bf16"),
        *("ours", "ours_norms", "ours_checkpointed", "ours_loop", "ours_compiled", "ours_cached"),
        *("ours_bf16", "ours_bf16_norms", "ours_bf16_checkpointed", "ours_bf16_pure", "ours_bf16_cached"),
    ),
    "cuda": (
        *BASELINES,
        *("ours", "ours_compiled", "ours_bf16", "ours_bf16_checkpointed", "ours_bf16_pure", "ours_bf16_cached"),
        *(
            "ours_bf16_norms",
            "ours_bf16_compiled",
            "ours_bf16_graphs",
            "ours_bf16_graphs_uint8",
            "ours_bf16_graphs_fp8",
            "ours_bf16_auto",
        ),
    ),
}
STEPS_OF_A_TURN = 5  # on a GPU
STARTED = time.perf_counter()


@dataclass(frozen=True)
class Shape:
    """A training step: clips of a batch, frames, classes, and the encoders' size."""

    name: str
    batch: int
    frames: int
    classes: int
    synonyms: int  # M, the root verb among them
    full: bool
    encoder: str = ""  # a file of configs/model; empty: the paper's

    def configs(self) -> tuple[VideoConfig, TextConfig]:
        """The sizes of both encoders. Texts have CLIP's tokens, for which no file is needed."""
        if self.encoder:
            model = load_config(["experiment=demo", f"model={self.encoder}", "model.video.temporal=mean"]).model
            return model.video, replace(model.text, tokenizer=None, vocabulary=VOCABULARY)
        if self.full:
            return VideoConfig(), TextConfig()
        video = VideoConfig(width=96, depth=6, heads=3, patch=12, image_size=48, embed_dim=64)
        return video, TextConfig(width=64, depth=2, heads=2, embed_dim=64)

    def model(self, device: str = "cpu", **settings: Any) -> DualEncoder:
        """Both encoders with random weights; `temporal_fc`, which the initialisation leaves zero, too.

        Nothing is compiled unless `settings`, of `model.video`, say so.
        """
        torch.manual_seed(0)
        video, text = self.configs()
        video = replace(
            video, drop_path=0.0, **{"compile": "none"} | settings
        )  # Hugging Face's takes no fraction of it
        with torch.device(device):  # random weights of this size take a CPU seconds
            model = DualEncoder(video, text)
        for block in model.video.blocks if not self.encoder else ():
            nn.init.trunc_normal_(block.temporal_fc.weight, std=0.02)
        return model

    def variants(self, wanted: Sequence[str]) -> list[str]:
        """Those of `wanted` that the shape has: bytes, fp8 and graphs are of the TimeSformer alone."""
        own = {*BASELINES, "uint8", "fp8", "graphs"} - {"naive", "naive_bf16"} if self.encoder else set()
        return [variant for variant in wanted if not own & {variant, *words(variant)}]


SHAPES = {
    "cpu": (
        Shape("toy", 16, 8, 10, 11, full=False),
        Shape("full", 2, 8, 10, 11, full=True),
        Shape("full_15", 4, 15, 6, 9, full=True),
        *(Shape(name, 16, 8, 10, 11, False, name) for name in ("tabletop_attnpool", "tabletop_rotary")),
    ),
    "cuda": (
        *(Shape(f"paper_{t}", 16, t, c, m, full=True) for t, c, m in ((15, 6, 9), (25, 21, 2), (30, 10, 11))),
        *(Shape(name, 16, 8, 10, 11, True, name) for name in ("clip_b16", "siglip_b16", "pe_core_b16", "pe_core_l14")),
    ),
}


class OneChange(nn.Module):
    """The naive step with one of: own video encoder, text feature cache, phrases once and the fused loss."""

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


class Ours(nn.Module):
    """The objective that trains, its losses added."""

    def __init__(self, model: DualEncoder, sampler: ConceptSampler) -> None:
        super().__init__()
        self.objective = ConceptObjective(model, sampler, SETTINGS)
        self.video = model.video

    def forward(self, video_BTCHW: Tensor, labels_B: Tensor, draw: ConceptDraw) -> Tensor:
        """The loss of Eq. 9."""
        return total_loss(self.objective(video_BTCHW, labels_B, draw))


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


def words(variant: str) -> set[str]:
    """The words of a variant of ours, such as `bf16`; of a baseline none."""
    return set(variant.split("_")[1:]) if variant.startswith("ours") else set()


def is_known(variant: str) -> bool:
    return variant in BASELINES or (variant.split("_")[0] == "ours" and words(variant) <= WORDS.keys())


def build(variant: str, shape: Shape, device: str) -> tuple[nn.Module, ConceptSampler]:
    """A variant's step as a module, and the draws of its phrases."""
    trees, actions = vocabulary(shape)
    sampler = ConceptSampler(actions, trees, seed=0)
    if variant.startswith("ours"):
        return build_ours(variant, shape, device, sampler), sampler
    model = shape.model(device)
    cache = model.build_text_features(sampler.phrases) if variant == "text_feature_cache" else None
    with torch.device(device):
        if variant in ("naive", "naive_bf16", "tokens_cut"):
            return NaiveStep(model, shape.frames, SETTINGS, padded=variant != "tokens_cut").to(device), sampler
        if variant == "procedurevrl_style":
            return ProcedureVRLStyle(model, shape.frames, actions).to(device), sampler
        video = model.video if variant == "own_timesformer" else NaiveVideo(model.video, shape.frames)
        return OneChange(video, cache or NaiveText(model.text), fused=variant == "fused_loss").to(device), sampler


def build_ours(variant: str, shape: Shape, device: str, sampler: ConceptSampler) -> Ours:
    """Built in the order of training: text features in fp32, then the cast, then the blocks are compiled."""
    named = words(variant)
    model = shape.model(device, **{key: value for word in named for key, value in WORDS[word].items()})
    if "uint8" in named:
        model.expect_clips(LoaderConfig(dtype="uint8"))
    step = Ours(model, sampler)
    step.to(torch.bfloat16 if "bf16" in named else torch.float32)
    model.release_text({})  # no new phrase will come
    model.compile_blocks()
    size = model.video.config.image_size
    model.video.choose_recompute((shape.batch, shape.frames, 3, size, size))
    return step


def vocabulary(shape: Shape) -> tuple[SynonymTrees, list[Action]]:
    """As many actions and synonyms as the shape says, of real verbs; whose synonym a verb is does not matter here."""
    verbs = SynonymTrees.load(assets_dir() / "synonyms" / "tabletop.json").verbs()
    groups = [verbs[i : i + shape.synonyms] for i in range(0, shape.classes * shape.synonyms, shape.synonyms)]
    trees = {group[0]: {verb: [verb, *(v for v in group if v != verb)] for verb in group} for group in groups}
    return SynonymTrees(trees), [Action(group[0], "block") for group in groups]


class Stepper:
    """A variant built on a device, ready to take steps."""

    def __init__(self, variant: str, shape: Shape, device: str) -> None:
        self.variant, self.device, self.done = variant, device, 0
        self.module, self.sampler = build(variant, shape, device)
        self.module.train()
        named = words(variant)
        depth = 12 if shape.full else 6
        layers = tuple(f"layer.{i}." for i in range(depth - 3, depth)) if variant == "procedurevrl_style" else ("",)
        parameters = self.module.named_parameters()
        trained = [p for name, p in parameters if p.requires_grad and any(part in name for part in layers)]
        masters = "bf16" in named and "pure" not in named
        self.update = build_update(trained, masters, fused=variant.startswith("ours") and "loop" not in named)
        video, self.labels = batch(variant, shape, device)
        self.folder = tempfile.TemporaryDirectory()
        self.fetch = lambda: video
        if "cached" in named:
            self.fetch = cached_clips(self.module.video, video, Path(self.folder.name))

    def take(self, count: int) -> tuple[float, float]:
        """Milliseconds of one of `count` steps, until it is done and until it is launched."""
        start = time.perf_counter()
        for _ in range(count):
            self.step()
        launched = time.perf_counter() - start
        if self.device == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start) / count, 1e3 * launched / count

    def step(self) -> None:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.variant == "naive_bf16"):
            loss: Tensor = self.module(self.fetch(), self.labels, self.sampler.draw(self.done))
        loss.backward()
        self.update()
        self.loss, self.done = loss.detach(), self.done + 1


def worker(pipe: Connection, variant: str, shape: Shape) -> None:
    """Build a variant; for each message take that many steps and answer with the times of one; at the end the rest."""
    base = peak_memory_gib()
    stepper = Stepper(variant, shape, "cpu")
    built = peak_memory_gib()
    forget_peak()
    for count in iter(pipe.recv, None):
        pipe.send(stepper.take(count))
    stepping = peak_memory_gib()
    memory = {"peak_memory_gib": max(built, stepping) - base, "step_memory_gib": stepping - base}
    pipe.send(memory | {"loss": stepper.loss.item()})
    stepper.folder.cleanup()


def batch(variant: str, shape: Shape, device: str) -> tuple[Tensor, Tensor]:
    """Clips of random numbers as the loader gives them, and labels."""
    size = shape.configs()[0].image_size
    torch.manual_seed(1)
    video = torch.randn(shape.batch, shape.frames, 3, size, size, device=device)
    labels = torch.randint(shape.classes, (shape.batch,), device=device)
    if "uint8" in words(variant):
        mean, std = LoaderConfig().mean[0], LoaderConfig().std[0]
        video = (255 * (video * std + mean)).round().clamp(0, 255).to(torch.uint8)
    return video, labels


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
    """Give freed memory back and let the process's peak count from here (Linux)."""
    trim_heap()
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gib() -> float:
    """Peak of this process so far, in GiB."""
    match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 2**20


def measure_in_turns(shape: Shape, variants: list[str], turns: int) -> list[Row]:
    """Rows of one shape on a CPU: a process each, which step in turns."""
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    ceilings = {variant: ceiling("cpu", product_type(variant)) for variant in variants}  # while nothing else runs
    for variant in variants:
        pipes[variant], theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, variant, shape), daemon=True).start()
        theirs.close()  # so that the end of its process is seen
    times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in variants}
    for turn in range(-1, turns):  # a step to warm up
        for variant, pipe in pipes.items():
            pipe.send(1)
            times[variant].append(pipe.recv())
        print(shape.name, turn, {name: round(values[-1][0], 1) for name, values in times.items()}, flush=True)
    rows = []
    for variant, pipe in pipes.items():
        pipe.send(None)
        least_ms = 1e3 * model_flops(shape, "cpu") / ceilings[variant]
        rows += build_rows(shape, variant, times[variant], least_ms, pipe.recv())
    return rows


def measure_on_gpu(shape: Shape, variant: str, turns: int) -> list[Row]:
    """Rows of one variant: a step that compiles, a turn that warms up and records graphs, timed turns."""
    least_ms = 1e3 * model_flops(shape, "cuda") / ceiling("cuda", product_type(variant))
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    stepper = Stepper(variant, shape, "cuda")
    times = [stepper.take(1)]
    stepper.take(STEPS_OF_A_TURN)
    times += [stepper.take(STEPS_OF_A_TURN) for _ in range(turns)]
    peak = (torch.cuda.max_memory_allocated() - base) / 2**30
    stepper.folder.cleanup()
    return build_rows(shape, variant, times, least_ms, {"peak_memory_gib": peak, "loss": stepper.loss.item()})


def measure(shape: Shape, variants: list[str], device: str, turns: int) -> Iterator[list[Row]]:
    """Rows of one shape, as they come. On a GPU a variant that fails, as for memory, has none and says why."""
    if device == "cpu":
        yield measure_in_turns(shape, variants, turns)
        return
    for variant in variants:
        try:
            yield measure_on_gpu(shape, variant, turns)
        except (RuntimeError, ImportError, ValueError) as error:
            print(
                f"{shape.name}: {variant} has no rows, {type(error).__name__}: {str(error).splitlines()[0]}", flush=True
            )
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


@lru_cache
def model_flops(shape: Shape, device: str) -> int:
    """FLOPs of a step, as a run counts them."""
    trees, actions = vocabulary(shape)
    objective = ConceptObjective(shape.model(device), ConceptSampler(actions, trees, seed=0), SETTINGS)
    parts = micro_batch_flops(objective, shape.batch, shape.frames, objective.model.video.config.image_size)
    return sum(sum(part) for part in parts.values())


@lru_cache
def ceiling(device: str, dtype: torch.dtype) -> float:
    return matmul_flops_per_s(torch.device(device), dtype)


def product_type(variant: str) -> torch.dtype:
    """The precision of a variant's matrix products."""
    return torch.bfloat16 if "bf16" in variant.split("_") else torch.float32


def build_rows(
    shape: Shape,
    variant: str,
    times_ms: list[tuple[float, float]],
    least_ms: float,  # at the ceiling
    measures: dict[str, float],
) -> list[Row]:
    """The metrics of one variant; prints the main ones."""
    row: Callable[..., Row] = lambda metric, unit, values: Row(  # noqa: E731
        "train_step", variant, shape.name, metric, unit, "frames", shape.frames, values, config(shape)
    )
    whole, launched = zip(*times_ms[1:], strict=True)
    print(
        f"{time.perf_counter() - STARTED:.0f} s: {shape.name} {variant}: {median(whole):.1f} ms, "
        f"host {median(launched):.1f} ms, "
        f"{least_ms / median(whole):.2f} of the ceiling, first {times_ms[0][0] / 1e3:.1f} s, "
        + ", ".join(f"{name} {value:.3f}" for name, value in measures.items()),
        flush=True,
    )
    return [
        row("step_time", "ms", whole),
        row("host_time", "ms", launched),
        row("clips_per_s", "clips/s", [shape.batch * 1e3 / value for value in whole]),
        row("ceiling_share", "share", [least_ms / value for value in whole]),
        row("first_step", "s", [times_ms[0][0] / 1e3]),
        *(row(name, "GiB" if name.endswith("gib") else "nats", [value]) for name, value in measures.items()),
    ]


def config(shape: Shape) -> dict[str, Any]:
    """What a row depends on."""
    return asdict(shape) | {"trained_blocks": 3, "phrases_of": "ace_dist/assets/synonyms/tabletop.json"}


def main() -> None:
    """Measure and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="*", help="names of shapes; all by default")
    parser.add_argument("--variants", nargs="*", help="see above")
    parser.add_argument("--turns", type=int, default=10, help="timed turns of each variant")
    parser.add_argument("--output", type=Path, help="default: results/train_step.csv, or train_step_cuda.csv")
    options = parser.parse_args()
    if unknown := [name for name in options.variants or () if not is_known(name)]:
        parser.error(
            f"--variants: {', '.join(unknown)}: neither of {', '.join(BASELINES)} nor ours[_{'][_'.join(WORDS)}]"
        )
    shapes = {shape.name: shape for shape in SHAPES[options.device]}
    if unknown := set(options.shapes or ()) - shapes.keys():
        parser.error(f"--shapes: {', '.join(sorted(unknown))} is none of {', '.join(shapes)}")
    variants = options.variants or list(VARIANTS[options.device])
    output = options.output or RESULTS / ("train_step.csv" if options.device == "cpu" else "train_step_cuda.csv")
    for name in options.shapes or shapes:
        for rows in measure(shapes[name], shapes[name].variants(variants), options.device, options.turns):
            append(output, rows, options.device)


if __name__ == "__main__":
    main()
