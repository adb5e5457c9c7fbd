"""Settings of different sections that contradict each other; each message names both."""

from __future__ import annotations

from ace_dist.config.schema import Config
from ace_dist.utils.errors import ConfigError


def check_combinations(config: Config) -> None:
    """Raise `ConfigError` for the first contradiction."""
    video, loader = config.model.video, config.loader
    if config.model.similarity.spotting != (video.pooling == "frames"):
        raise ConfigError(
            f"model.similarity.spotting={config.model.similarity.spotting} does not go with model.video.pooling="
            f"{video.pooling}: spotting weighs frames, so both or neither"
        )
    if loader.crop != video.image_size:
        raise ConfigError(f"loader.crop={loader.crop} differs from model.video.image_size={video.image_size}")
    if video.embed_dim != config.model.text.embed_dim:
        raise ConfigError(
            f"model.video.embed_dim={video.embed_dim} differs from model.text.embed_dim="
            f"{config.model.text.embed_dim}: both towers must end in one space"
        )
    if loader.dtype == "uint8" and video.tower != "timesformer":
        raise ConfigError(
            f"loader.dtype=uint8 is for model.video.tower=timesformer, not {video.tower}; set loader.dtype=float32"
        )
    if video.compile != "none" and config.deepspeed.get("zero_optimization", {}).get("stage") == 3:
        raise ConfigError(
            f"model.video.compile={video.compile} does not go with deepspeed=zero3, whose weights come and go within a "
            f"block; set model.video.compile=none or another stage"
        )
    if video.compile != "none" and config.profile:
        raise ConfigError(
            f"profile=true does not go with model.video.compile={video.compile}: the parts of a compiled step cannot "
            f"be told apart; set one of them back"
        )
    if not config.evaluation.every_steps and (config.training.keep_best or config.training.early_stopping_patience):
        raise ConfigError(
            "training.keep_best and training.early_stopping_patience go by validation, which is off; set "
            "evaluation.every_steps, and evaluation.validation_share or evaluation.validation_groups"
        )
