"""The typed schema of every setting, and its composition from `configs/` and `key=value` overrides; reads no data."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ace_dist.utils.errors import ConfigError, UserError
from ace_dist.worlds.tabletop.world import TabletopConfig

__all__ = [
    "ClipConfig",
    "Config",
    "ConfigError",
    "DatasetConfig",
    "EncodingConfig",
    "EvaluationConfig",
    "LoaderConfig",
    "MetersConfig",
    "MethodConfig",
    "ModelConfig",
    "ProfileConfig",
    "SimilarityConfig",
    "TextConfig",
    "TrainingConfig",
    "VideoConfig",
    "assets_dir",
    "config_dir",
    "load_config",
    "quoted",
    "read_config",
    "resolve_path",
    "run_launcher",
    "simple_settings",
    "to_yaml",
    "typed_settings",
]

Settings = TypeVar("Settings")


@dataclass
class ClipConfig:
    """What one clip is: `frames` frames over `seconds` seconds; a test video is seen through `views` clips."""

    frames: int = 8
    seconds: float = 2.0
    views: int = 3


@dataclass
class EncodingConfig:
    """The canonical encoding of stored clips. NVDEC decodes h264; DALI's CPU decoder knows vp9 and mjpeg only."""

    codec: str = "vp9"
    short_side: int = 256  # pixels; 0 keeps the size of the source
    fps: float | None = None  # frames per second; null keeps the rate of the source
    gop: int = 32  # frames from key frame to key frame
    quality: int = 20  # the codec's own scale, lower is better: CRF for h264 and vp9, qscale for mjpeg
    margin_s: float = 0.25  # seconds kept on each side of a segment


@dataclass
class DatasetConfig:
    """Where labels and clips come from, and which actions are novel."""

    name: str = MISSING
    kind: str = MISSING  # csv | gtea | ikea | ata | webdataset | tabletop
    root: str | None = None  # folder of gtea, ikea, ata or webdataset; each reader's docstring says what lies in it
    annotations: str | None = None  # CSV file (csv, ata) or IKEA-ASM's database or gt_segments.json; null: in `root`
    classes: str | None = None  # the data set's labels as actions (JSON); null: whatever the clips show
    views: list[str] | None = None  # cameras of ikea or ata; null: all
    frame_tolerance_s: float = 1.0  # seconds by which labels and video may differ in length (gtea, ikea, ata)
    shards: str = MISSING  # folder of the WebDataset shards
    synonyms: str | None = None  # synonym tree file (JSON)
    srt: str | None = None  # label sets of the Synonym Robustness Test (JSON)
    novel: list[str] | None = None  # novel actions; null: those without a training clip
    novel_share: float | None = None  # instead of a list: this share of the classes, those of the least frequent verbs
    fold: int = 0  # of a cross-validation, from 1; 0: there is none
    test_groups: list[str] | None = None  # groups (people, environments) that are tested; null: as stored in the shards
    left_out_groups: list[str] = field(default_factory=list)  # groups in neither split, such as a validation person
    clip: ClipConfig = field(default_factory=ClipConfig)
    encoding: EncodingConfig = field(default_factory=EncodingConfig)
    clips_per_shard: int = 128
    workers: int = 0  # that build or check shards; 0: one per core; 1: this process, and a video may crash it
    timeout_s: float = 600.0  # seconds after which a worker that hangs on a segment is ended; 0: never
    task: int | None = None  # the part of a build that this process makes, 0 to tasks - 1; null: the SLURM array's
    tasks: int | None = None  # parts that a build is made in; null: the SLURM array's number of tasks, else 1
    allow_quarantine: bool = False  # finish a build without the segments that failed, listed in quarantine.jsonl
    world: TabletopConfig = field(default_factory=TabletopConfig)


@dataclass
class VideoConfig:
    """The video encoder. `frames` is the length of the checkpoint's `time_embed`, resized to the clip's."""

    tower: str = "timesformer"  # timesformer | vit (an image model on every frame) | spacetime (LaViLa's)
    clip_style: bool = False  # of vit and spacetime: CLIP's norm before the blocks, QuickGELU, no patch bias
    pooling: str = "mean"  # of vit: mean over frames | frames: keep them, for model.spotting
    temporal_layers: int = 0  # of vit: transformer layers over the frames' embeddings
    prompt_tokens: int = 0  # of vit: learned tokens a block
    prompt_depth: int = 9  # of vit: blocks that have them, counted from the first
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    image_size: int = 224
    frames: int = 8
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    embed_dim: int = 512
    time_embed_resize: str = "nearest"  # nearest | linear
    attention: str = "auto"  # auto | triton | xformers | sdpa
    trained_blocks: int = 3  # counted from the last
    train_head: bool = False
    train_norm: bool = False
    train_time_embed: bool = False
    activation_checkpointing: bool = False  # compute trained blocks again in the backward pass: less memory, slower
    compile: str = "none"  # none | default | reduce-overhead (CUDA graphs) | max-autotune: torch.compile of the blocks
    weights: str | None = None  # safetensors file


@dataclass
class TextConfig:
    """The text tower: CLIP's text transformer at any width, or all-MiniLM-L6-v2."""

    tower: str = "clip"  # clip | minilm
    prompts: list[str] = field(default_factory=lambda: ["{}"])  # a phrase is encoded as the mean over these sentences
    prompt_tokens: int = 0  # of clip: learned tokens before the phrase
    prompt_depth: int = 9  # of clip: layers that have their own, counted from the first
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp_ratio: float = 4.0
    embed_dim: int = 512
    trained_layers: int = 0  # counted from the last
    train_projection: bool = True
    release_frozen: bool = True  # free the weights that only new phrases need; those of the run folder serve them
    weights: str | None = None  # safetensors file


@dataclass
class SimilarityConfig:
    """How videos are compared with labels. ACE: the mean cosine over a class's phrases, at a fixed temperature."""

    learn_temperature: bool = False  # times a learned factor that starts at 1 (CLIP's logit scale)
    spotting: bool = False  # BIKE: frames weighed by each phrase; needs model.video.pooling=frames
    attributes: str | None = None  # of spotting: text file, an attribute a line
    attribute_share: float = 0.3  # of spotting: weight of the attributes' score
    top: int = 5  # of spotting: attributes taken for a video


@dataclass
class ModelConfig:
    """Both encoders. `init: random` builds them untrained, `random_video` the video side alone (Table 5)."""

    init: str = "weights"  # weights | random | random_video
    video: VideoConfig = field(default_factory=VideoConfig)
    text: TextConfig = field(default_factory=TextConfig)
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)


@dataclass
class MethodConfig:
    """The objective: ACE with its ablation switches (Table 3), or a baseline."""

    name: str = "ace"  # ace | procvlr | vifi_ft | vifi_pr | bike | text4vis | lavila | random
    temperature: float = 0.02
    label_smoothing: float = 0.0  # of the baselines with a plain cross-entropy
    leaf_augmentation: bool = True  # Eq. 3: average over the children of a label's verb
    shadow_negatives: bool = True  # Eq. 6 to 8
    fixed_labels: bool = True  # L_fixed
    random_labels: bool = True  # L_rand
    children: int | None = None  # M of the first order; null: all children of the tree file
    grandchildren: int | None = None  # M of the second order; null: all
    children_include_parent: bool = True  # M counts the parent verb itself
    exclude_real_classes: bool = False  # a shadow negative may not equal a seen class
    independent_draws: bool = False  # draw per class instead of once per root verb


@dataclass
class LoaderConfig:
    """Decoding and augmentation. Training: short side uniform in [min, max], random crop, flip; test: centre crop."""

    backend: str = "auto"  # auto | dali | pyav
    threads: int = 2
    prefetch: int = 2  # batches decoded ahead
    crop: int = 224
    short_side_min: int = 256
    short_side_max: int = 320
    test_short_side: int = 256
    flip: float = 0.5  # probability
    augment: bool = True  # false: training clips are cropped as test views are, and not flipped
    trunk_cache: str | None = None  # folder that keeps what the frozen video blocks make of a clip; needs augment=false
    trunk_cache_gib: float = 50.0  # the most that this folder may hold
    mean: list[float] = field(default_factory=lambda: [0.45, 0.45, 0.45])  # of RGB in [0, 1]
    std: list[float] = field(default_factory=lambda: [0.225, 0.225, 0.225])
    dtype: str = "float32"  # float32: the loader normalises; uint8: a TimeSformer's patch embedding does, from bytes


@dataclass
class MetersConfig:
    """What a run measures of its speed beside clips/s."""

    mfu: bool | None = None  # time large matrix products for half a second at the start, the ceiling; null: on CUDA


@dataclass
class ProfileConfig:
    """Which steps are profiled. `profile=true` is short for `training.profile.steps=3`."""

    steps: int = 0  # recorded, one after the other; 0: none
    after: int = 5  # steps of this start that go before them
    trace: bool = True  # a torch-profiler trace, which slows the recorded steps; without it times by part alone
    memory_snapshot: bool = True  # of CUDA's allocator


@dataclass
class TrainingConfig:
    """The optimisation. Batch sizes are global; learning rates are functions of the step."""

    device: str = "auto"  # auto | cpu | cuda
    precision: str = "auto"  # auto | fp32 | bf16; auto: bf16 on CUDA devices that have it
    epochs: float = 15.0
    batch_size: int = 16  # clips per optimizer step, over all ranks
    accumulation: int = 1  # micro-batches that make one optimizer step
    lr_video: float = 0.005
    lr_text: float = 0.005
    optimizer: str = "sgd"  # sgd | adamw
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of adamw
    momentum: float = 0.9  # of sgd, as is nesterov
    nesterov: bool = True
    weight_decay: float = 1e-4
    clip_norm: float = 0.0  # largest norm of the gradient of all that trains; 0: none (DeepSpeed's own default is 1)
    schedule: str = "steps"  # steps | cosine | constant
    milestones: list[float] = field(default_factory=lambda: [0.7333, 0.9333])  # of `steps`: shares of the run
    gamma: float = 0.1
    warmup: float = 0.0  # share of the run
    ema_decay: float = 0.0  # of a running average of the weights, which is then tested and exported; 0: none
    log_every_steps: int = 10
    trackers: list[str] = field(
        default_factory=lambda: ["tensorboard"]
    )  # wandb, trackio; metrics.jsonl is always there
    save_every_steps: int = 200
    save_every_minutes: float = 15.0  # save also when the last one is this old
    keep_checkpoints: int = 2
    keep_best: bool = False  # test and export the weights that validated best, not the last; keeps their checkpoint too
    early_stopping_patience: int = 0  # finish after so many validations that are no better than the best; 0: never
    stop_after_steps: int | None = None  # stop early and save, as a preempted job would
    max_steps: int | None = None  # shortens the schedule itself
    stall_after_s: float = 120.0  # a stage of a step (data, forward, ...) that takes longer is named, with stacks
    collective_timeout_s: float = 600.0  # a rank that the others wait for longer is given up, and the run with it
    gc_every_steps: int = 0  # collect garbage at these steps alone, on all ranks at once; 0: whenever Python likes
    deterministic: bool = False  # equal runs give equal bits on a GPU too, or the operator that cannot is named
    meters: MetersConfig = field(default_factory=MetersConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)


@dataclass
class EvaluationConfig:
    """How a test video is scored (spec, section 2 and 4)."""

    batch_size: int = 16  # clips per forward pass of one rank
    view_fusion: str = "softmax_sum"  # softmax_sum | logit_mean | logit_max | embedding_mean
    synonyms: str | None = None  # synonym trees of the test (Table 4); null: those of the training
    srt_leaves: bool = True  # with leaf augmentation: SRT labels too are averaged over their children
    every_steps: int = 0  # validate this often on clips of the training split that are held out for it; 0: never
    validation_groups: list[str] = field(default_factory=list)  # the groups (people, cameras) held out; or instead
    validation_share: float = 0.0  # this share of the groups, drawn by `seed`


@dataclass
class Config:
    """A whole run."""

    name: str = MISSING
    run_dir: str = "runs/${name}"
    seed: int = 0
    profile: bool = False  # record a few steps: see training.profile
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    deepspeed: dict[str, Any] = field(default_factory=dict)  # passed to DeepSpeed as it is


WANTED = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "ListConfig": "a list; write '[spin block, hammer pin]'",
}
GROUPS = ("experiment", "dataset", "model", "method", "loader", "deepspeed")  # folders of configs/ to choose from
REFUSALS = {  # what a file system may refuse, and what its owner can do
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or write to another disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "write to a folder of yours"),
}
PROFILED_STEPS = 3  # of profile=true
METHODS = ("ace", "procvlr", "vifi_ft", "vifi_pr", "bike", "text4vis", "lavila", "random")

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("assets", lambda: str(assets_dir()), replace=True)


def config_dir() -> Path:
    """Folder of the YAML files: `configs/` of the checkout, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "configs", package / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"no configs/config.yaml beside or inside {package}; reinstall ace-dist or run from a checkout")


def assets_dir() -> Path:
    """Folder of the shipped data: weights, synonym trees, label sets, class lists, the paper's tables."""
    return Path(__file__).resolve().parents[1] / "assets"


def load_config(argv: Sequence[str]) -> Config:
    """Compose the configuration from `configs/` and Hydra overrides such as `experiment=demo training.epochs=2`.

    The flag `--local_rank`, which DeepSpeed's launcher adds, is ignored. Relative paths stay relative to the working
    folder; `${assets:}` in a YAML file stands for the folder of shipped data. `--help` prints the choices and exits.
    Raises `ConfigError`, with the nearest existing name when a key or a file does not exist.
    """
    if help_asked(argv):
        show_help(
            [*choices_help(), "every key: ace_dist/config.py; what a run would use: launchers/train.py ... --cfg"]
        )
    overrides = [arg for arg in argv if not re.match(r"--?local[_-]rank", arg)]
    if not overrides and os.environ.get("RANK", "0") == "0":
        print("no setting is given: this is experiment=demo (--help lists what there is)", file=sys.stderr)
    for flag in overrides:
        if flag.startswith("-"):
            raise ConfigError(f"{flag!r} is not an option; settings are written key=value, for example seed=1")
        if "=" not in flag and not flag.startswith("~"):
            raise ConfigError(f"{flag!r} is not a setting; settings are written key=value, for example seed=1")
        key = flag.split("=")[0].lstrip("+~")
        if key not in known_keys() and not key.startswith("deepspeed."):
            near = [
                known for known in known_keys() if "." in known or "." not in key
            ]  # training.lr is no typo of training
            raise ConfigError(f"unknown setting {key!r} in {flag!r}{did_you_mean(key, near)}")
        if key in GROUPS and "=" in flag:
            check_choice(key, flag)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose("config", overrides=[quoted(override) for override in overrides])
        return validated(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(str(error), error.__cause__)) from error


def check_choice(group: str, flag: str) -> None:
    """Raise `ConfigError` when a choice such as `dataset=null` is no name; Hydra answers with a traceback."""
    value = OverridesParser.create().parse_override(quoted(flag)).value()
    if not isinstance(value, str | QuotedString) or not str(value):
        known = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        raise ConfigError(
            f"{flag} names no file of configs/{group}/; there are {', '.join(known)}; leave {group} out for the default"
        )


def validated(composed: DictConfig) -> Config:
    """Resolve, convert to `Config`, and check what the types cannot say."""
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    choices = {
        "dataset.kind": (config.dataset.kind, ("csv", "gtea", "ikea", "ata", "webdataset", "tabletop")),
        "dataset.encoding.codec": (config.dataset.encoding.codec, ("vp9", "mjpeg", "h264")),
        "model.init": (config.model.init, ("weights", "random", "random_video")),
        "model.text.tower": (config.model.text.tower, ("clip", "minilm")),
        "model.video.tower": (config.model.video.tower, ("timesformer", "vit", "spacetime")),
        "model.video.pooling": (config.model.video.pooling, ("mean", "frames")),
        "model.video.time_embed_resize": (config.model.video.time_embed_resize, ("nearest", "linear")),
        "model.video.compile": (config.model.video.compile, ("none", "default", "reduce-overhead", "max-autotune")),
        "model.video.attention": (config.model.video.attention, ("auto", "triton", "xformers", "sdpa")),
        "method.name": (config.method.name, METHODS),
        "loader.backend": (config.loader.backend, ("auto", "dali", "pyav")),
        "training.device": (config.training.device, ("auto", "cpu", "cuda")),
        "training.precision": (config.training.precision, ("auto", "fp32", "bf16")),
        "training.optimizer": (config.training.optimizer, ("sgd", "adamw")),
        "training.schedule": (config.training.schedule, ("steps", "cosine", "constant")),
        "evaluation.view_fusion": (
            config.evaluation.view_fusion,
            ("softmax_sum", "logit_mean", "logit_max", "embedding_mean"),
        ),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"{key}={value} is not one of {', '.join(allowed)}{did_you_mean(value, allowed)}")
    positive = {
        "dataset.clip.frames": config.dataset.clip.frames,
        "dataset.clip.seconds": config.dataset.clip.seconds,
        "dataset.clip.views": config.dataset.clip.views,
        "method.temperature": config.method.temperature,
        "loader.crop": config.loader.crop,
        "training.batch_size": config.training.batch_size,
        "training.accumulation": config.training.accumulation,
        "training.epochs": config.training.epochs,
        "training.log_every_steps": config.training.log_every_steps,
        "training.save_every_steps": config.training.save_every_steps,
        "training.save_every_minutes": config.training.save_every_minutes,
        "training.keep_checkpoints": config.training.keep_checkpoints,
        "training.stall_after_s": config.training.stall_after_s,
        "training.collective_timeout_s": config.training.collective_timeout_s,
        "evaluation.batch_size": config.evaluation.batch_size,
        "loader.trunk_cache_gib": config.loader.trunk_cache_gib,
    }
    for key, number in positive.items():
        if number <= 0:
            raise ConfigError(f"{key}={number} must be greater than zero")
    for key, number in {"workers": config.dataset.workers, "timeout_s": config.dataset.timeout_s}.items():
        if not number >= 0:
            raise ConfigError(f"dataset.{key}={number} must be at least 0")
    at_least_zero = {
        "training.gc_every_steps": config.training.gc_every_steps,
        "evaluation.every_steps": config.evaluation.every_steps,
        "training.early_stopping_patience": config.training.early_stopping_patience,
        "training.profile.steps": config.training.profile.steps,
        "training.profile.after": config.training.profile.after,
    }
    for key, number in at_least_zero.items():
        if number < 0:
            raise ConfigError(f"{key}={number} must not be negative")
    if not 0 <= config.training.ema_decay < 1:
        raise ConfigError(f"training.ema_decay={config.training.ema_decay} must lie in [0, 1); 0 switches it off")
    check_combinations(config)
    if config.profile and not config.training.profile.steps:
        config.training.profile.steps = PROFILED_STEPS
    return config


def check_combinations(config: Config) -> None:
    """Settings that contradict each other; each message names both."""
    if not (config.method.fixed_labels or config.method.random_labels):
        raise ConfigError("method.fixed_labels=false and method.random_labels=false leave no loss; switch one on")
    if config.model.similarity.spotting != (config.model.video.pooling == "frames"):
        raise ConfigError(
            f"model.similarity.spotting={config.model.similarity.spotting} does not go with model.video.pooling="
            f"{config.model.video.pooling}: spotting weighs frames, so both or neither"
        )
    if config.loader.crop != config.model.video.image_size:
        raise ConfigError(
            f"loader.crop={config.loader.crop} differs from model.video.image_size={config.model.video.image_size}"
        )
    if config.model.video.embed_dim != config.model.text.embed_dim:
        raise ConfigError(
            f"model.video.embed_dim={config.model.video.embed_dim} differs from "
            f"model.text.embed_dim={config.model.text.embed_dim}: both towers must end in one space"
        )
    if not config.loader.short_side_min <= config.loader.short_side_max:
        raise ConfigError(
            f"loader.short_side_min={config.loader.short_side_min} exceeds "
            f"loader.short_side_max={config.loader.short_side_max}"
        )
    for key in ("short_side_min", "test_short_side"):
        if getattr(config.loader, key) < config.loader.crop:
            raise ConfigError(
                f"loader.{key}={getattr(config.loader, key)} is smaller than loader.crop={config.loader.crop}"
            )
    if config.loader.dtype not in ("float32", "uint8"):
        raise ConfigError(f"loader.dtype={config.loader.dtype} is not one of float32, uint8")
    if config.loader.dtype == "uint8" and config.model.video.tower != "timesformer":
        raise ConfigError(
            f"loader.dtype=uint8 is for model.video.tower=timesformer, not {config.model.video.tower}; set "
            f"loader.dtype=float32"
        )
    if config.loader.trunk_cache is not None and config.loader.augment:
        raise ConfigError(
            f"loader.trunk_cache={config.loader.trunk_cache} needs loader.augment=false: with random crops no clip is "
            f"shown twice alike"
        )
    if config.model.video.compile != "none" and config.deepspeed.get("zero_optimization", {}).get("stage") == 3:
        raise ConfigError(
            f"model.video.compile={config.model.video.compile} does not go with deepspeed=zero3, whose weights come "
            f"and go within a block; set model.video.compile=none or another stage"
        )
    if config.model.video.compile != "none" and config.profile:
        raise ConfigError(
            f"profile=true does not go with model.video.compile={config.model.video.compile}: the parts of a compiled "
            f"step cannot be told apart; set one of them back"
        )
    check_validation(config)
    if config.training.batch_size % config.training.accumulation:
        raise ConfigError(
            f"training.batch_size={config.training.batch_size} is not a multiple of "
            f"training.accumulation={config.training.accumulation}"
        )


def check_validation(config: Config) -> None:
    """Validation while training: what is held out is looked at, and what looks has something held out."""
    groups, share, every = (
        getattr(config.evaluation, key) for key in ("validation_groups", "validation_share", "every_steps")
    )
    if not 0 <= share < 1:
        raise ConfigError(f"evaluation.validation_share={share} must lie in [0, 1)")
    if groups and share:
        raise ConfigError(
            f"evaluation.validation_groups={groups} and evaluation.validation_share={share} both choose what is held "
            f"out; set one of them"
        )
    if every and not groups and not share:
        raise ConfigError(
            f"evaluation.every_steps={every} has nothing to look at: hold groups of training clips out with "
            f"evaluation.validation_groups='[NAME, ...]' or evaluation.validation_share=0.2"
        )
    if not every and (groups or share):
        raise ConfigError(
            "evaluation.validation_groups or validation_share hold clips out that nothing looks at; set "
            "evaluation.every_steps too (dataset.left_out_groups leaves groups out of training and test)"
        )
    if not every and (config.training.keep_best or config.training.early_stopping_patience):
        raise ConfigError(
            "training.keep_best and training.early_stopping_patience go by validation, which is off; set "
            "evaluation.every_steps, and evaluation.validation_share or evaluation.validation_groups"
        )


def quoted(override: str) -> str:
    """`key=value` with quotes wherever Hydra's grammar wants them around a path or label: umlauts, spaces, brackets.

    A value that the grammar reads is left as it is. Raises `ConfigError` when it is neither that nor plain text.
    """
    parser = OverridesParser.create()
    key, equals, value = override.partition("=")
    listed = re.sub(r"[^\[\]{}()'\",:=]*[^\x00-\x7f][^\[\]{}()'\",:=]*", lambda found: quote(found[0].strip()), value)
    structure = value.startswith(("[", "{", "'", '"'))
    for candidate in (value, listed if structure else quote(value)):
        try:
            parser.parse_override(f"{key}{equals}{candidate}")
        except HydraException:
            continue
        return f"{key}{equals}{candidate}"
    raise ConfigError(f"{override!r} is not closed or quoted as a list: write '{key}=[spin block, \"any text\"]'")


def quote(text: str) -> str:
    """Text in quotes, as Hydra reads them."""
    escaped = re.sub(r"(\\*)'", r"\1\1\'", text)
    return f"'{escaped}'"


def explain(message: str, cause: BaseException | None) -> str:
    """One line out of Hydra's message, with the nearest existing key or file."""
    first = message.split("\n")[0].strip() + (f": {str(cause).splitlines()[0]}" if cause else "")
    missing_file = re.search(r"Could not find '([\w-]+)/([^']+)'", message)
    if missing_file:
        group, name = missing_file.groups()
        known = sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
        if group == "experiment" and (assets_dir() / "tables" / f"{name}.yaml").is_file():
            return f"{name} is a table of the paper: python launchers/sweep.py experiment={name} dataset=NAME runs it"
        return f"{group}={name} does not exist in configs/{group}/; there are {', '.join(known)}" + did_you_mean(
            name, known
        )
    if first.startswith("Ambiguous value"):
        setting = first.removeprefix("Ambiguous value for argument ")
        return f"{setting} gives several values to one run; launchers/sweep.py runs a grid"
    if wanted := wanted_type(str(cause)):
        return f"{first.split(': ')[0].removeprefix('Error merging override ')} is not {wanted}"
    if missing := re.search(r"issing mandatory value: (\S+)", message):
        key = missing[1]
        return f"{key} is not set; give it on the command line as {key}=VALUE"
    return first


def wanted_type(message: str) -> str | None:
    """What OmegaConf's message says a value should have been, in words."""
    found = re.search(r"could not be converted to (\w+)|not a valid (\w+)|not a (ListConfig)", message)
    return WANTED.get(next(filter(None, found.groups()))) if found else None


def known_keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, groups included."""
    keys = [] if prefix else ["experiment"]
    probe = schema()
    for entry in fields(schema):
        keys.append(prefix + entry.name)
        value = getattr(probe, entry.name)
        if is_dataclass(value):
            keys += known_keys(type(value), f"{prefix}{entry.name}.")
    return keys


def help_asked(argv: Sequence[str]) -> bool:
    """Whether a launcher was asked what it does."""
    return not {"-h", "--help"}.isdisjoint(argv)


def show_help(settings: Iterable[str]) -> NoReturn:
    """Print the running launcher's docstring and its settings, and exit with 0."""
    lines = ["", "settings, written key=value:", *(f"  {line}" for line in settings)]
    print((sys.modules["__main__"].__doc__ or "").strip(), *lines, sep="\n")
    raise SystemExit(0)


def choices_help() -> list[str]:
    """The configuration groups with their choices, for `--help`."""
    return [f"{group}=  {', '.join(sorted(p.stem for p in (config_dir() / group).glob('*.yaml')))}" for group in GROUPS]


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` when a known word is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, sorted as the schema is."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def read_config(run_dir: Path) -> Config:
    """Read back `config.yaml` of a run folder. Raises `ConfigError` when there is none or it does not fit."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        near = sorted(str(found.parent) for found in run_dir.glob("*/config.yaml"))[:5]
        hint = f"; inside it are {', '.join(near)}" if near else " (launchers/train.py run_dir=FOLDER makes one)"
        raise ConfigError(f"{path} does not exist: run={run_dir} is not a run folder{hint}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        assert isinstance(merged, DictConfig)
        return validated(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} does not fit this version: {' '.join(str(error).split())}") from error


def resolve_path(value: str) -> Path:
    """A path of a setting, with `~` and environment variables expanded."""
    return Path(os.path.expandvars(value)).expanduser()


def run_launcher(main: Any) -> None:
    """Call `main(argv)`; print a `UserError` as one line on stderr and exit with 2; with 130 after Ctrl-C.

    A full disk and a folder that may not be written are the user's too; any other `OSError` is a bug and stays one.
    """
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        where = f"{error.filename or 'writing'}: {error.strerror}"
        remedy = f"{REFUSALS[error.errno]} (run_dir=, dataset.shards=, out= or output=), then give the command again"
        print(f"error: {where}; {remedy}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def typed_settings(argv: Sequence[str], schema: type[Settings]) -> Settings:
    """Settings of a launcher with a schema of its own, a dataclass: `key=value`, values in YAML's grammar."""
    names = [entry.name for entry in fields(schema)]  # type: ignore[arg-type]
    if help_asked(argv):
        show_help(f"{name}={value}" for name, value in vars(schema()).items())
    for arg in argv:
        key, equals, _ = arg.partition("=")
        if not equals:
            raise ConfigError(f"{arg!r} is not a setting; settings are written key=value, for example {names[0]}=...")
        if key.split(".")[0] not in names:
            raise ConfigError(f"unknown setting {key!r}{did_you_mean(key, names)}; there are {', '.join(names)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist(list(argv)))
        settings = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        wrong, wanted = getattr(error, "full_key", None), wanted_type(str(error))
        given = [arg for arg in argv if wrong and arg.startswith(f"{wrong}=")]
        message = f"{given[-1]} is not {wanted}" if given and wanted else " ".join(str(error).split())
        raise ConfigError(message) from error
    assert isinstance(settings, schema)
    return settings


def simple_settings(
    argv: Sequence[str], required: dict[str, str], optional: dict[str, str] | None = None
) -> dict[str, Any]:
    """Settings of a launcher that works on a run folder: `key=value`, no composition.

    `required` and `optional` map each key to what it is, for messages. `actions` is a list in Hydra's grammar, `*_s` a
    number of seconds, anything else the text as it stands. A missing optional key is `None`.
    """
    meanings = {**required, **(optional or {})}
    given: dict[str, Any] = dict.fromkeys(meanings)
    if help_asked(argv):
        show_help(f"{key}={'...' if key in required else ''}   {meaning}" for key, meaning in meanings.items())
    for arg in argv:
        if re.match(r"--?local[_-]rank", arg):
            continue
        key, equals, text = arg.partition("=")
        if not equals:
            raise ConfigError(f"{arg!r} is not a setting; settings are written key=value: {', '.join(meanings)}")
        if key not in meanings:
            raise ConfigError(
                f"unknown setting {key!r}{did_you_mean(key, list(meanings))}; there are {', '.join(meanings)}"
            )
        given[key] = parse_value(key, text)
    for key, meaning in required.items():
        if given[key] is None:
            raise ConfigError(f"{key} is not set: give {meaning} as {key}=...")
    return given


def parse_value(key: str, text: str) -> Any:
    """The value of a simple setting."""
    if key == "actions":
        try:
            value = OverridesParser.create().parse_override(quoted(f"{key}={text}")).value()
        except (HydraException, ConfigError) as error:
            raise ConfigError(f"actions={text} is not a list; write actions='[spin block, hammer pin]'") from error
        if not isinstance(value, list):
            raise ConfigError(f"actions={text} is not a list; write actions='[spin block, hammer pin]'")
        return [str(item) for item in value]
    if key.endswith("_s"):
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"{key}={text} is not a number of seconds") from None
    return text
