"""What the types of settings cannot say: choices, ranges, and settings that contradict each other."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from operator import attrgetter
from typing import Any

from ace_dist.config.schema import Config, VideoConfig
from ace_dist.config.settings import DEFAULTS, did_you_mean
from ace_dist.utils.errors import ConfigError

CHOICES = {
    "dataset.kind": ("csv", "mstcn", "gtea", "ikea", "ata", "webdataset", "tabletop"),
    "dataset.encoding.codec": ("vp9", "mjpeg", "h264"),
    "dataset.clip.view_spacing": ("ends", "slowfast"),
    "dataset.clip.sampling": ("window", "segments"),
    "model.init": ("weights", "random", "random_video"),
    "model.video.tower": ("timesformer", "vit", "spacetime", "open_clip", "transformers", "internvideo2"),
    "model.video.temporal": ("mean", "transformer", "adapter", "joint"),
    "model.video.pooling": ("mean", "frames"),
    "model.video.time_embed_resize": ("nearest", "linear"),
    "model.video.trunk_precision": ("same", "fp8"),
    "model.video.recompute": ("auto", "none", "norms", "blocks"),
    "model.video.compile": ("auto", "none", "cudagraphs", "default", "reduce-overhead", "max-autotune"),
    "model.video.attention": ("auto", "triton", "xformers", "sdpa"),
    "model.text.tower": ("clip", "open_clip", "bert", "minilm"),
    "method.objective": ("concept", "label", "bike", "sigmoid"),
    "loader.backend": ("auto", "dali", "pyav", "torchcodec"),
    "loader.dtype": ("float32", "uint8"),
    "training.device": ("auto", "cpu", "cuda"),
    "training.precision": ("auto", "fp32", "bf16"),
    "training.keep_best": (False, True, "base_srt"),
    "training.optimizer": ("sgd", "adamw"),
    "training.schedule": ("steps", "cosine", "constant"),
    "evaluation.scorer": ("similarity", "chance"),
    "evaluation.labels_without_node": ("alone", "wordnet", "all_alone_when_any_is"),
    "evaluation.view_fusion": ("softmax_sum", "logit_mean", "logit_max", "embedding_mean"),
}
POSITIVE = (
    "dataset.clip.frames", "dataset.clip.seconds", "dataset.clip.views", "method.temperature", "loader.crop",
    "loader.feature_cache_gib", "training.batch_size", "training.accumulation", "training.epochs",
    "training.keep_checkpoints", "training.log_every_steps", "training.save_every_steps",
    "training.save_every_minutes", "training.stall_after_s", "training.collective_timeout_s", "evaluation.batch_size",
    "model.similarity.top",
)  # fmt: skip
POSITIVE_OR_NULL = ("method.children", "method.grandchildren", "evaluation.children", "evaluation.grandchildren")
NOT_NEGATIVE_OR_NULL = ("training.lr_new", "training.max_steps")
NOT_NEGATIVE = (
    "dataset.workers", "dataset.timeout_s", "training.gc_every_steps", "training.early_stopping_patience",
    "training.profile.steps", "training.profile.after", "evaluation.every_steps", "loader.mixup", "loader.cutmix",
    "loader.color_jitter", "loader.gray_scale", "loader.threads", "loader.prefetch", "training.lr_video",
    "training.lr_text", "training.weight_decay",
    "method.l2_sp", "method.distil", "method.margin", "training.clip_norm", "training.gamma", "seed",
    "model.video.lora_rank", "model.text.lora_rank",
)  # fmt: skip
LARGEST = {  # beyond any model or clip; a larger number would take the memory before anything else is looked at
    "model.video.width": 65536, "model.video.depth": 1024, "model.video.heads": 1024, "model.video.embed_dim": 65536,
    "model.video.image_size": 8192, "model.video.patch": 8192, "model.video.frames": 65536, "model.text.width": 65536,
    "model.text.depth": 1024, "model.text.heads": 1024, "model.text.embed_dim": 65536,
    "model.text.vocabulary": 2**20, "model.text.context": 65536, "dataset.clip.frames": 65536,
    "dataset.clip.views": 1024, "loader.crop": 8192,
}  # fmt: skip
OF_TOWERS = {  # settings of model.video that other towers have no use for
    "clip_style": ("vit", "spacetime"),
    "temporal_layers": ("vit", "open_clip"),
    "prompt_tokens": ("vit",),
    "train_time_embed": ("timesformer", "spacetime"),
}
UP_TO_ONE = {
    "evaluation.interpolate": "; 1 takes the trained weights as they are",
    "loader.flip": "; it is a probability",
    "model.similarity.attribute_share": "",
}
BELOW_ONE = {
    "training.ema_decay": "; 0 switches it off",
    "training.momentum": "",
    "training.warmup": "",
    "method.label_smoothing": "",
    "evaluation.validation_share": "",
    "evaluation.validation_words": "; 0 holds none out",
}


def check_config(config: Config) -> None:
    """Raise `ConfigError` for the first setting that cannot be, and for the first two that contradict each other."""
    for key, allowed in CHOICES.items():
        if (value := attrgetter(key)(config)) not in allowed:
            names = [DEFAULTS.get(str(name), str(name)) for name in allowed]
            raise ConfigError(f"{key}={value} is not one of {', '.join(names)}{did_you_mean(str(value), names)}")
    for key, number in numbers(config):
        if not math.isfinite(number):
            raise ConfigError(f"{key}={number} is not a finite number")
    for key in POSITIVE:
        if not (value := attrgetter(key)(config)) > 0:
            raise ConfigError(f"{key}={value} must be greater than zero")
    for key, most in LARGEST.items():
        if not 1 <= (value := attrgetter(key)(config)) <= most:
            raise ConfigError(f"{key}={value} must lie in [1, {most}]")
    for key in POSITIVE_OR_NULL:
        if (value := attrgetter(key)(config)) is not None and value < 1:
            raise ConfigError(f"{key}={value} must be at least 1; null is all that the tree file has")
    for key in NOT_NEGATIVE:
        if not (value := attrgetter(key)(config)) >= 0:
            raise ConfigError(f"{key}={value} must be at least 0")
    for key in NOT_NEGATIVE_OR_NULL:
        if (value := attrgetter(key)(config)) is not None and not value >= 0:
            raise ConfigError(f"{key}={value} must be at least 0, or null")
    for key, hint in BELOW_ONE.items():
        if not 0 <= (value := attrgetter(key)(config)) < 1:
            raise ConfigError(f"{key}={value} must lie in [0, 1){hint}")
    for key, hint in UP_TO_ONE.items():
        if not 0 <= (value := attrgetter(key)(config)) <= 1:
            raise ConfigError(f"{key}={value} must lie in [0, 1]{hint}")
    for wrong, message in (
        *data_rules(config),
        *augmentation_rules(config),
        *model_rules(config),
        *frame_rules(config),
        *similarity_rules(config),
        *lora_rules(config),
        *training_rules(config),
        *validation_rules(config),
    ):
        if wrong:
            raise ConfigError(message)


def check_tower(video: VideoConfig) -> None:
    """Raise `ConfigError` for a setting of the video side that its tower would ignore.

    Asked of what a user writes alone: runs that were trained with such a setting can still be read.
    """
    for name, towers in OF_TOWERS.items():
        if (value := getattr(video, name)) and video.tower not in towers:
            raise ConfigError(
                f"model.video.{name}={value} is for model.video.tower={' or '.join(towers)}, and {video.tower} would "
                f"ignore it; leave it out"
            )


def numbers(part: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every setting that is a number with a fraction, and its dotted key."""
    for entry in fields(part):
        value = getattr(part, entry.name)
        if is_dataclass(value):
            yield from numbers(value, f"{prefix}{entry.name}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float):
                yield prefix + entry.name, number


def data_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Whether each rule is broken, and what to say then."""
    loader = config.loader
    yield (
        bool(config.dataset.columns) and config.dataset.kind != "csv",
        f"dataset.columns is of CSV files (dataset=csv), and dataset.kind={config.dataset.kind} has its own layout",
    )
    yield (
        loader.short_side_min > loader.short_side_max,
        f"loader.short_side_min={loader.short_side_min} exceeds loader.short_side_max={loader.short_side_max}",
    )
    for key in ("short_side_min", "test_short_side"):
        size = getattr(loader, key)
        yield size < loader.crop, f"loader.{key}={size} is smaller than loader.crop={loader.crop}"
    yield (
        loader.feature_cache is not None and loader.augment,
        f"loader.feature_cache={loader.feature_cache} needs loader.augment=false: with random crops no clip is shown "
        f"twice alike",
    )


def augmentation_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same for what blends and recolours training clips."""
    loader = config.loader
    for key in ("mixup", "cutmix", "color_jitter", "gray_scale"):
        value = getattr(loader, key)
        yield (
            value > 0 and (not loader.augment or loader.dtype != "float32"),
            f"loader.{key}={value} needs loader.augment=true and loader.dtype=float32",
        )
        blends = key in ("mixup", "cutmix")
        yield (
            blends and value > 0 and config.method.objective != "label",
            f"loader.{key}={value} makes labels of several classes, which method.objective={config.method.objective} "
            f"cannot take; set it to 0",
        )
        yield not blends and value > 1, f"loader.{key}={value} is a probability and must lie in [0, 1]"


def model_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same for the model, its method and what the loader must give it."""
    video, text, loader, method = config.model.video, config.model.text, config.loader, config.method
    yield (
        not (method.fixed_labels or method.random_labels),
        "method.fixed_labels=false and method.random_labels=false leave no loss; switch one on",
    )
    beyond = {key: getattr(method, key) for key in ("l2_sp", "distil", "margin") if getattr(method, key)}
    trains = text.train_projection or text.trained_layers > 0 or text.prompt_tokens > 0
    for key, value in beyond.items():
        yield (
            method.objective != "concept" or not trains,
            f"method.{key}={value} is for method.objective=concept with a text side that trains; set it to 0, or "
            f"method=ace",
        )
    yield (
        method.l2_sp > 0 and config.deepspeed.get("zero_optimization", {}).get("stage") == 3,
        f"method.l2_sp={method.l2_sp} does not go with deepspeed=zero3, which shares out the weights that it compares; "
        f"set another stage",
    )
    band = method.shadow_band
    yield (
        len(band) != 2 or not 0 <= band[0] < band[1] <= 1,
        f"method.shadow_band={band} must be two shares, as [0, 1] (all shadow negatives) or [0, 0.9]",
    )
    yield (
        band != [0, 1] and not method.shadow_negatives,
        f"method.shadow_band={band} chooses among shadow negatives, which are off; set method.shadow_negatives=true",
    )
    for key in ("random_labels", "shadow_negatives"):
        yield (
            method.objective not in ("concept", "sigmoid") and getattr(method, key),
            f"method.{key}=true does not go with method.objective={method.objective}, whose loss is on fixed labels "
            f"alone; set method.{key}=false, or method=ace",
        )
    yield (
        loader.crop != video.image_size,
        f"loader.crop={loader.crop} differs from model.video.image_size={video.image_size}",
    )
    yield (
        video.embed_dim != text.embed_dim,
        f"model.video.embed_dim={video.embed_dim} differs from model.text.embed_dim={text.embed_dim}: both towers must "
        f"end in one space",
    )
    yield (
        loader.dtype == "uint8" and video.tower != "timesformer",
        f"loader.dtype=uint8 is for model.video.tower=timesformer, not {video.tower}; set loader.dtype=float32",
    )


def similarity_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same for how videos are compared with labels, which an objective may leave aside."""
    similarity, method, pooling = config.model.similarity, config.method, config.model.video.pooling
    sigmoid = method.objective == "sigmoid"
    yield (
        similarity.bias != sigmoid or (sigmoid and not similarity.learn_temperature),
        f"method.objective={method.objective} does not go with model.similarity.bias={similarity.bias} and "
        f"model.similarity.learn_temperature={similarity.learn_temperature}: the sigmoid loss needs both, and no other "
        f"loss changes with a bias; take method=ace_sigmoid, or leave both out",
    )
    yield (
        similarity.spotting != (pooling == "frames"),
        f"model.similarity.spotting={similarity.spotting} does not go with model.video.pooling={pooling}: spotting "
        f"weighs frames, so both or neither",
    )
    for key in ("learn_temperature", "spotting"):
        yield (
            method.objective == "concept" and getattr(similarity, key),
            f"model.similarity.{key}=true does not go with method.objective=concept, whose loss is on mean cosines at "
            f"a fixed temperature; leave it out, or take method.objective=label",
        )
    yield (
        method.label_smoothing > 0 and method.objective != "label",
        f"method.label_smoothing={method.label_smoothing} is for method.objective=label, not {method.objective}; set "
        f"it to 0",
    )


def frame_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same for towers of other libraries, whose pretraining says how clips must look and what they are told by."""
    video, text, loader, frames = config.model.video, config.model.text, config.loader, config.dataset.clip.frames
    library = video.tower in ("open_clip", "transformers", "internvideo2")
    for key in ("mean", "std"):
        own, given = getattr(video, key), getattr(loader, key)
        yield (
            library and own != given,
            f"loader.{key}={given} differs from model.video.{key}={own}, by which {video.arch or video.tower} was "
            f"trained to see; leave loader.{key} out",
        )
    yield (
        video.tower == text.tower == "open_clip" and text.arch != video.arch,
        f"model.text.arch={text.arch} differs from model.video.arch={video.arch}: each was trained with its own other "
        f"side and its own tokens; leave model.text.arch out",
    )
    yield (
        video.tower != "open_clip" and video.temporal != "mean",
        f"model.video.temporal={video.temporal} is for model.video.tower=open_clip, not {video.tower}; set it to mean",
    )
    yield (
        video.tower == "transformers" and frames % 2 > 0,
        f"dataset.clip.frames={frames} is odd, and a token of model.video.arch={video.arch} is of two frames; set "
        f"dataset.clip.frames={frames + 1}",
    )
    whole = "joint" if video.temporal == "joint" else video.tower if video.tower not in ("vit", "open_clip") else None
    yield (
        video.pooling == "frames" and whole is not None,
        f"model.video.pooling=frames is for model.video.tower=vit or open_clip, and {whole} has no embedding of a "
        f"frame; set it to mean",
    )
    yield (
        video.temporal == "transformer" and video.temporal_layers < 1,
        f"model.video.temporal=transformer has no layers: set model.video.temporal_layers, 6 as Text4Vis, not "
        f"{video.temporal_layers}",
    )


def lora_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same for LoRA, which takes the place of the weights of blocks that train."""
    video, text, method = config.model.video, config.model.text, config.method
    for side, part, count in (("video", video, "trained_blocks"), ("text", text, "trained_layers")):
        rank, alpha = part.lora_rank, part.lora_alpha
        yield (
            rank > 0 and not getattr(part, count),
            f"model.{side}.lora_rank={rank} is of the layers that train, and there is none; set model.{side}.{count}",
        )
        yield (
            rank > part.width,
            f"model.{side}.lora_rank={rank} is more than any matrix of model.{side}.width={part.width} can have; 4 to "
            f"16 are usual",
        )
        yield (
            alpha is not None and not (rank > 0 and alpha > 0),
            f"model.{side}.lora_alpha={alpha} scales updates of model.{side}.lora_rank={rank}: both must be above 0; "
            f"null is twice the rank",
        )
    yield (
        text.lora_rank > 0 and method.l2_sp > 0,
        f"method.l2_sp={method.l2_sp} pulls weights to where they began and would see LoRA's factors instead "
        f"(model.text.lora_rank={text.lora_rank}); set it to 0: training.weight_decay pulls the update itself to 0",
    )


def training_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same for the optimiser, the average of weights, and the compiled step."""
    training, compiled = config.training, config.model.video.compile
    yield (
        training.batch_size % training.accumulation > 0,
        f"training.batch_size={training.batch_size} is not a multiple of training.accumulation={training.accumulation}",
    )
    yield (
        config.method.objective == "bike" and training.batch_size // training.accumulation < 2,
        f"training.accumulation={training.accumulation} leaves one clip of training.batch_size={training.batch_size} "
        f"to a micro-batch, within which method.objective=bike compares clips: its loss would be 0; give it more",
    )
    yield (
        len(training.betas) != 2 or not all(0 <= beta < 1 for beta in training.betas),
        f"training.betas={training.betas} must be two numbers in [0, 1)",
    )
    yield (
        not 0 < training.layer_decay <= 1,
        f"training.layer_decay={training.layer_decay} must lie in (0, 1]; 1 gives all layers of a side one rate",
    )
    yield (
        not all(0 < milestone < 1 for milestone in training.milestones),
        f"training.milestones={training.milestones} must be shares of the run in (0, 1), as 0.7333 is epoch 11 of 15",
    )
    yield (
        training.stop_after_steps is not None and training.stop_after_steps < 1,
        f"training.stop_after_steps={training.stop_after_steps} must be at least 1; null trains to the end",
    )
    swa = training.swa_start
    yield (
        swa is not None and (not 0 <= swa < 1 or training.ema_decay > 0),
        f"training.swa_start={swa} must lie in [0, 1), with training.ema_decay=0: there is one average",
    )
    yield (
        compiled not in ("auto", "none") and config.deepspeed.get("zero_optimization", {}).get("stage") == 3,
        f"model.video.compile={compiled} does not go with deepspeed=zero3, whose weights come and go within a block; "
        f"set model.video.compile=none or another stage",
    )
    yield (
        compiled not in ("auto", "none") and config.profile,
        f"profile=true does not go with model.video.compile={compiled}: the parts of a compiled step cannot be told "
        f"apart; set one of them back",
    )


def validation_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The same for what is held out, what looks at it, and what goes by it."""
    training, evaluation = config.training, config.evaluation
    held_out = bool(evaluation.validation_groups or evaluation.validation_share)
    yield (
        bool(evaluation.validation_groups and evaluation.validation_share),
        f"evaluation.validation_groups={evaluation.validation_groups} and evaluation.validation_share="
        f"{evaluation.validation_share} both choose what is held out; set one of them",
    )
    yield (
        evaluation.every_steps > 0 and not held_out,
        f"evaluation.every_steps={evaluation.every_steps} has nothing to look at: hold groups of training clips out "
        f"with evaluation.validation_groups='[NAME, ...]' or evaluation.validation_share=0.2",
    )
    yield (
        not (evaluation.test or evaluation.every_steps),
        "evaluation.test=false leaves a run without any result; set evaluation.every_steps and "
        "evaluation.validation_share=0.25, or test",
    )
    yield (
        held_out and not evaluation.every_steps,
        "evaluation.validation_groups or validation_share hold clips out that nothing looks at; set "
        "evaluation.every_steps too (dataset.left_out_groups leaves groups out of training and test)",
    )
    yield (
        evaluation.validation_words > 0 and not evaluation.every_steps,
        f"evaluation.validation_words={evaluation.validation_words} holds words out that nothing asks for; set "
        f"evaluation.every_steps, and evaluation.validation_share or evaluation.validation_groups",
    )
    yield (
        training.keep_best == "base_srt" and not evaluation.validation_words,
        "training.keep_best=base_srt needs words that training never draws; set evaluation.validation_words=0.4",
    )
    yield (
        not evaluation.every_steps and (bool(training.keep_best) or training.early_stopping_patience > 0),
        "training.keep_best and training.early_stopping_patience go by validation, which is off; set "
        "evaluation.every_steps, and evaluation.validation_share or evaluation.validation_groups",
    )
