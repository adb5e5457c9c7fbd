"""The table of `ace models`: what each file of configs/model costs, under which licence, and what trains of it."""

from itertools import zip_longest
from pathlib import Path

from ace_dist.config import Config, TextConfig, VideoConfig, assets_dir, choices, load_config, shipped_file
from ace_dist.models.convert.known import KNOWN, KnownWeights, pair_files
from ace_dist.models.weights import OWN_LICENCE
from ace_dist.tools.estimate import model_cost
from ace_dist.utils.errors import ConfigError


def models_table(frames: int, only: str | None = None) -> str:
    """A block of lines for each model, or for one; FLOPs are those of the video side for one clip of `frames`."""
    if only is not None:
        shipped_file("model", only)
        blocks = [describe(only, frames)]
    else:
        blocks = [describe_or_say_why(name, frames) for name in choices("model")]
    unit = f"GFLOPs: matrix products of the video side, forward, one clip of {frames} frames (frames=N for another)"
    return "\n".join([*blocks, unit])


def describe_or_say_why(name: str, frames: int) -> str:
    """A model that cannot take so many frames does not keep the others from the table."""
    try:
        return describe(name, frames)
    except ConfigError as error:
        return f"{name:18} {error}"


def describe(name: str, frames: int) -> str:
    config = load_config(["experiment=demo", f"model={name}", f"dataset.clip.frames={frames}"])
    if config.model.video.tower == "open_clip" and config.model.video.arch is None:
        return f"{name:18} any other: model.video.arch=NAME, and its sizes as the files beside it in configs/model"
    cost = model_cost(config, bf16=False)
    millions = f"{cost.parameters / 1e6:.1f} M parameters, {cost.trained / 1e6:.1f} M train"
    flops = f"{millions}, {cost.forward_flops / 1e9:.1f} GFLOPs"
    lines = [flops, f"trains: {what_trains(config)}", *origins(config)]
    return "\n".join(f"{title:18} {line}" for title, line in zip_longest([name], lines, fillvalue=""))


def what_trains(config: Config) -> str:
    video, text = config.model.video, config.model.text
    layers = ((video, video.trained_blocks, "video blocks"), (text, text.trained_layers, "text layers"))
    parts = [f"{by_lora(side)}last {count} of {side.depth} {name}" for side, count, name in layers if count]
    flags = {"video norm": video.train_norm, "video head": video.train_head, "text projection": text.train_projection}
    parts += [part for part, trains in flags.items() if trains]
    parts += [f"temporal {video.temporal}"] if video.temporal in ("transformer", "adapter") else []
    return ", ".join(parts) or "nothing"


def by_lora(side: VideoConfig | TextConfig) -> str:
    return f"LoRA of rank {side.lora_rank} in the " if side.lora_rank else ""


def origins(config: Config) -> list[str]:
    """Licence and command of the weights of a model; of several, a line each."""
    model = config.model
    files = {Path(path).name for path in (model.video.weights, model.text.weights) if path is not None}
    known = {key: each for key, each in KNOWN.items() if files & known_files(each)}
    if not known:
        assert Path(model.video.weights or "").is_relative_to(assets_dir())
        return [f"{OWN_LICENCE}, shipped with ace-dist"]
    return [f"{each.licence}: ace weights get {key}" for key, each in known.items()]


def known_files(known: KnownWeights) -> set[str]:
    """The names of the files that a release becomes."""
    return {*known.makes, *(pair_files(known.model) if known.model else [])}
