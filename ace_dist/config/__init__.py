"""The settings of a run: schema, composition from `configs/`, checks, and the parser of `key=value`."""

from ace_dist.config.compose import (
    GROUPS,
    assets_dir,
    choices,
    config_dir,
    known_keys,
    load_config,
    read_config,
    resolve_path,
    sealed,
    shipped_file,
    to_values,
    to_yaml,
)
from ace_dist.config.schema import (
    ClipConfig,
    Config,
    DatasetConfig,
    EncodingConfig,
    EvaluationConfig,
    LoaderConfig,
    MetersConfig,
    MethodConfig,
    ModelConfig,
    ProfileConfig,
    SimilarityConfig,
    TextConfig,
    TrainingConfig,
    VideoConfig,
)
from ace_dist.config.settings import did_you_mean, help_asked, parse_settings, quoted, split_settings
from ace_dist.utils.errors import ConfigError

__all__ = [
    "GROUPS",
    "ClipConfig", "Config", "ConfigError", "DatasetConfig", "EncodingConfig", "EvaluationConfig", "LoaderConfig",
    "MetersConfig",
    "MethodConfig", "ModelConfig", "ProfileConfig", "SimilarityConfig", "TextConfig", "TrainingConfig",
    "VideoConfig", "assets_dir", "choices", "config_dir", "did_you_mean", "help_asked",
    "known_keys", "load_config", "parse_settings", "quoted", "read_config", "resolve_path", "sealed",
    "shipped_file", "split_settings", "to_values", "to_yaml",
]  # fmt: skip
