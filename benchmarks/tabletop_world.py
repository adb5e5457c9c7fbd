"""Is the tabletop world a fair test bed? Accuracies before and after plain fine-tuning, appended as CSV rows.

`python benchmarks/tabletop_world.py [seeds=0,1,2] [output=FILE] [key=value ...]` answers with the plain baseline (root
labels, frozen text tower, last blocks of the video tower): no method is compared here. Clips are rendered, not read
from shards, at the middle window of their segment; one view.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from common import Row, append
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ace_dist.concepts import Action, SynonymTrees, load_srt, srt_labels
from ace_dist.config import Config, load_config
from ace_dist.data.segments import Segment
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.weights import load_text_weights, load_video_weights
from ace_dist.train.schedule import lr_factor, total_steps
from ace_dist.utils.errors import ConfigError
from ace_dist.worlds.tabletop.pretraining import augment, encode_clips
from ace_dist.worlds.tabletop.reader import TabletopReader
from ace_dist.worlds.tabletop.world import BASE_ACTIONS, NOVEL_ACTIONS, build_world

Clips = NDArray[np.uint8]


def window(reader: TabletopReader, segment: Segment, frames: int, seconds: float) -> Clips:
    """The middle `seconds` of a segment as uint8 [frames,H,W,3]."""
    start = max(0.0, (segment.start_s + segment.end_s - seconds) / 2)
    clip = reader.read(segment, start, start + seconds)
    rows = (np.arange(frames) * seconds / frames * clip.fps).astype(int)
    return np.asarray(clip.frames[np.minimum(rows, len(clip.frames) - 1)])


def split(config: Config, name: str) -> tuple[Clips, list[str]]:
    """Clips uint8 [N,T,H,W,3] and labels of a split."""
    reader = TabletopReader(build_world(config.dataset.world))
    chosen = [segment for segment in reader.segments() if segment.split == name]
    clip = config.dataset.clip
    clips = np.stack([window(reader, segment, clip.frames, clip.seconds) for segment in chosen])
    return clips, [f"{segment.verb} {segment.object}" for segment in chosen]


def pretrained(config: Config) -> DualEncoder:
    """The committed towers; the last video blocks train, the text tower does not."""
    model = DualEncoder(config.model.video, replace(config.model.text, train_projection=False, trained_layers=0))
    load_video_weights(model.video, config.model.video.weights)
    load_text_weights(model.text, config.model.text.weights)
    return model


@torch.no_grad()
def embed(model: DualEncoder, labels: Sequence[str]) -> Tensor:
    """Unit text embeddings [K,E]."""
    cache = model.build_text_features(labels)
    return functional.normalize(cache.encode(cache.indices(labels)), dim=1)


def scores(model: DualEncoder, test: tuple[Clips, list[str]], config: Config) -> dict[str, float]:
    """Base and novel accuracy in percent, and mean and standard deviation over the plain labels of the SRT runs."""
    clips, labels = test
    base, novel = (sorted(Action(*pair) for pair in pairs) for pairs in (BASE_ACTIONS, NOVEL_ACTIONS))
    trees = SynonymTrees.load(config.dataset.synonyms or "")
    source = config.dataset.srt or ""
    sets = srt_labels(novel, load_srt(source), trees, leaves=False, source=source)
    video = encode_clips(model, clips, config.loader)

    def accuracy(actions: Sequence[Action], names: Sequence[str]) -> float:
        roots = [str(action) for action in actions]
        rows = [row for row, label in enumerate(labels) if label in roots]
        truth = torch.tensor([roots.index(labels[row]) for row in rows])
        return 100 * float(((video[rows] @ embed(model, names).T).argmax(1) == truth).float().mean())

    runs = [accuracy(novel, group.labels) for group in sets]
    return {
        "base_accuracy": accuracy(base, [str(action) for action in base]),
        "novel_accuracy": accuracy(novel, [str(action) for action in novel]),
        "srt_accuracy_mean": float(np.mean(runs)),
        "srt_accuracy_std": float(np.std(runs)),
    }


def fine_tune(model: DualEncoder, train: tuple[Clips, list[str]], config: Config, seed: int) -> float:
    """Cross-entropy over cosine / temperature of the base root labels, SGD; returns the mean loss of the last epoch."""
    clips, labels = train
    base = sorted(set(labels))
    targets = torch.tensor([base.index(label) for label in labels])
    text = embed(model, base)
    settings, steps = config.training, total_steps(config.training, len(clips))
    optimizer = torch.optim.SGD(
        model.trainable_parameters()["video"],
        lr=settings.lr_video,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    epochs = math.ceil(steps * settings.batch_size / len(clips))
    order = np.concatenate([rng.permutation(len(clips)) for _ in range(epochs)])
    losses = []
    model.train()
    for step in range(steps):
        rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_video * lr_factor(settings, step, steps)
        video = functional.normalize(model.encode_video(augment(clips[rows], config.loader, rng)), dim=1)
        loss = functional.cross_entropy(video @ text.T / config.method.temperature, targets[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-max(1, len(clips) // settings.batch_size) :]))


def record(output: Path, variant: str, seed: int | None, measured: dict[str, float], config: Config) -> None:
    """Append one CSV row a metric; a single run, so the three quantiles are that one value."""
    described = {
        "world": asdict(build_world(config.dataset.world)),
        "training": asdict(config.training),
        "seed": seed,
        "base_classes": len(BASE_ACTIONS),
        "novel_classes": len(NOVEL_ACTIONS),
    }
    rows = []
    for metric, value in measured.items():
        unit = "nats" if metric == "train_loss" else "percent"
        x_value = math.nan if seed is None else seed
        rows.append(Row("tabletop_world", variant, "accuracy", metric, unit, "seed", x_value, [value], described))
    append(output, rows, "cpu")


def main(argv: Sequence[str]) -> None:
    """Measure before fine-tuning, then after it for each seed; print and append as each is done."""
    own = dict(arg.split("=", 1) for arg in argv if arg.startswith(("seeds=", "output=")))
    config = load_config([arg for arg in argv if not arg.startswith(("seeds=", "output="))])
    out = Path(own.get("output", "benchmarks/results/tabletop_world.csv"))
    try:
        seeds = [int(seed) for seed in own.get("seeds", "0,1,2").split(",")]
    except ValueError as error:
        raise ConfigError(f"seeds={own['seeds']} is not a list of whole numbers; write seeds=0,1,2") from error
    train, test = split(config, "train"), split(config, "test")
    before = scores(pretrained(config), test, config)
    print("before fine-tuning", before, flush=True)
    record(out, "pretrained", None, before, config)
    for seed in seeds:
        model = pretrained(config)
        loss = fine_tune(model, train, config, seed)
        after = {**scores(model, test, config), "train_loss": loss}
        print(f"procvlr seed {seed}", after, flush=True)
        record(out, "procvlr", seed, after, config)


if __name__ == "__main__":
    main(sys.argv[1:])
