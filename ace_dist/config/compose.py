"""Composes a run's configuration from `configs/` and `key=value` overrides, and reads it back from a run folder."""

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ace_dist.config.checks import check_config, check_tower
from ace_dist.config.schema import Config
from ace_dist.config.settings import (
    QUOTES,
    TEXT_LISTS,
    as_list,
    check_renamed,
    did_you_mean,
    help_asked,
    quoted,
    type_in_words,
)
from ace_dist.utils.errors import ConfigError
from ace_dist.utils.reading import read_yaml
from ace_dist.utils.secrets import redacted

GROUPS = (
    "experiment",
    "dataset",
    "model",
    "method",
    "loader",
    "deepspeed",
    "prompts",
)  # folders of configs/ to choose from
OPEN_MAPPINGS = ("dataset.world.", "dataset.columns.")  # whose names the schema does not know
OWN_FILE = re.compile(rf"({'|'.join(GROUPS)})=.*\.yaml$")

ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("assets", lambda: str(assets_dir()), replace=True)
OmegaConf.register_new_resolver("scaled", lambda size, of, pixels: round(size * pixels / of), replace=True)


def config_dir() -> Path:
    """Folder of the YAML files: `configs/` of the checkout, or the copy inside an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package.parent / "configs", package / "configs"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"no configs/config.yaml beside or inside {package}; reinstall ace-dist or run from a checkout")


def choices(group: str) -> list[str]:
    """The names of the YAML files in a folder of `configs/`."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def shipped_file(group: str, name: str) -> Path:
    """A YAML file of `configs/`. Raises `ConfigError` with the nearest name when there is none such."""
    if name not in (names := choices(group)):
        near = did_you_mean(name, names)
        raise ConfigError(f"{group}={name} does not exist in configs/{group}/; there are {', '.join(names)}{near}")
    return config_dir() / group / f"{name}.yaml"


def own_file(override: str) -> str:
    """`group=FILE.yaml` as Hydra is told of a file of the user's, which it then treats as one of `configs/group/`."""
    group, _, text = override.partition("=")
    path = resolve_path(text)
    if not path.is_file():
        raise ConfigError(
            f"{override}: the file does not exist; `ace config get {group}=NAME` prints one to begin with"
        )
    try:
        node, package = OmegaConf.load(path), re.search(r"^# @package (\S+)", path.read_text("utf-8"), re.MULTILINE)
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{override} is not YAML: {' '.join(str(error).split())}") from error
    name = f"{path.stem}-{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]}"
    ConfigStore.instance().store(name, node, group=group, package=package[1] if package else None)
    return f"{group}={name}"


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
        groups = [f"{group}=  {', '.join(choices(group))}" for group in GROUPS]
        print("", *groups, f"every key: {Path(__file__).with_name('schema.py')}", sep="\n  ")
        raise SystemExit(0)
    overrides = [arg for arg in argv if not re.match(r"--?local[_-]rank", arg)]
    if not overrides and os.environ.get("RANK", "0") == "0":
        print("no setting is given: this is experiment=demo (--help lists what there is)", file=sys.stderr)
    keys = known_keys()
    overrides = [own_file(text) if OWN_FILE.match(text) else text for text in overrides]
    for flag in overrides:
        if flag.startswith("-"):
            raise ConfigError(f"{flag!r} is not an option; settings are written key=value, for example seed=1")
        if "=" not in flag and not flag.startswith("~"):
            raise ConfigError(f"{flag!r} is not a setting; settings are written key=value, for example seed=1")
        key = flag.split("=")[0].lstrip("+~")
        check_renamed(key)
        if key not in keys and not key.startswith(("deepspeed.", *OPEN_MAPPINGS)):
            near = [known for known in keys if "." in known or "." not in key]  # training.lr is no typo of training
            raise ConfigError(f"unknown setting {key!r} in {flag!r}{did_you_mean(key, near)}")
        if key == "method.name":
            raise ConfigError(f"{flag}: a method is more than its name; choose one with method=NAME")
        if key in GROUPS and "=" in flag:
            name = OverridesParser.create().parse_override(quoted(flag)).value()
            if not isinstance(name, str | QuotedString) or not str(name):  # Hydra answers with a traceback
                raise ConfigError(
                    f"{flag} names no file of configs/{key}/; there are {', '.join(choices(key))}; leave {key} out for "
                    f"the default"
                )
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            composed = compose("config", overrides=[spelled_out(text, keys) for text in overrides])
        config = validated(composed)
        check_tower(config.model.video)
        config.run = str(resolve_path(config.run))  # the other paths are kept as they were given, and so move along
        return config
    except yaml.YAMLError as error:
        raise ConfigError(f"a file of configs/ is not YAML: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(str(error), error.__cause__)) from error


def spelled_out(override: str, keys: Mapping[str, Any]) -> str:
    """An override as Hydra wants it: quotes where its grammar needs them, brackets around a list of one text.

    A name may be new to a mapping such as `dataset.world`, which Hydra wants to be told.
    """
    key, equals, text = override.partition("=")
    if f"{key}.".startswith(OPEN_MAPPINGS) and text not in ("", "null"):
        return f"++{quoted(override)}"
    several = "," in text and not text.startswith(QUOTES)
    return as_list(key, text) if equals and keys.get(key) in TEXT_LISTS and not several else quoted(override)


def validated(composed: DictConfig) -> Config:
    """Resolve, convert to `Config`, and check what the types cannot say."""
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check_config(config)
    return config


def explain(message: str, cause: BaseException | None) -> str:
    """One line out of Hydra's message, with the nearest existing key or file."""
    first = message.split("\n")[0].strip() + (f": {str(cause).splitlines()[0]}" if cause else "")
    if missing_file := re.search(r"Could not find '([\w-]+)/([^']+)'", message):
        group, name = missing_file.groups()
        if group == "experiment" and (assets_dir() / "tables" / f"{name}.yaml").is_file():
            return f"{name} is a table of the paper: ace sweep experiment={name} dataset=NAME runs it"
        names = choices(group)
        near = did_you_mean(name, names)
        return f"{group}={name} does not exist in configs/{group}/; there are {', '.join(names)}{near}"
    if first.startswith("Ambiguous value"):
        setting = first.removeprefix("Ambiguous value for argument ").strip("'")
        key, _, values = setting.partition("=")
        if known_keys().get(key) in TEXT_LISTS:
            return f"{setting} is not a list; write '{key}=[{values}]'"
        return f"{setting!r} gives several values to one run; `ace sweep` runs a grid"
    if wrong := re.match(r"In '([^']+)': \w+ raised while composing config:\n(.*)\n +full_key: (\S+)", message):
        file, fault, key = f"configs/{wrong[1]}.yaml", wrong[2], wrong[3]
        if fault.startswith("Key "):
            return f"unknown setting {key!r} in {file}{did_you_mean(key, known_keys())}"
        kind = type_in_words(fault)
        return f"{key} in {file} is not {kind}" if kind else f"{key} in {file}: {fault}"
    if kind := type_in_words(str(cause)):
        return f"{first.split(': ')[0].removeprefix('Error merging override ')} is not {kind}"
    if missing := re.search(r"issing mandatory value: (\S+)", message):
        key = missing[1]
        return f"{key} is not set; give it on the command line as {key}=VALUE"
    return first


def known_keys(schema: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the schema, groups included, with its type."""
    keys: dict[str, Any] = {} if prefix else {"experiment": str, "prompts": str}
    for name, kind in get_type_hints(schema).items():
        keys[prefix + name] = kind
        if is_dataclass(kind):
            keys |= known_keys(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return keys


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, sorted as the schema is, every secret in it replaced by `<hidden>`."""
    return OmegaConf.to_yaml(OmegaConf.create(to_values(config)))


def to_values(config: Config) -> dict[str, Any]:
    """The configuration as plain dictionaries and lists, as `config.yaml` gives it back: without secrets."""
    values: dict[str, Any] = redacted(OmegaConf.to_container(OmegaConf.structured(config)))
    return values


def read_config(run_dir: Path) -> Config:
    """Read back `config.yaml` of a run folder. Raises `ConfigError` when there is none or it does not fit.

    The folder may be somebody else's: nothing in the file is resolved, only the user's own command line is.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        found = [config.parent for config in run_dir.glob("*/config.yaml")]
        near = sorted(str(folder) for folder in found if not (folder / "provenance.json").is_file())[:5]  # no exports
        hint = f"; inside it are {', '.join(near)}" if near else " (`ace train run=FOLDER` makes one)"
        raise ConfigError(f"{path} does not exist: {run_dir} is not a run folder{hint}")
    advice = (
        "; bring it back from a backup, or delete it and give the command that trained the run, which writes it again"
    )
    try:
        stored = read_yaml(path, ConfigError, advice)
        check_seal(path, advice)
        if not isinstance(method := stored.get("method"), dict) or method.get("objective") is None:
            raise ConfigError(
                f"{path} has no method.objective: the run was made by an earlier version of ace-dist, which reads it; "
                f"train it again to use it with this version"
            )
        merged = OmegaConf.merge(OmegaConf.structured(Config), stored)
        assert isinstance(merged, DictConfig)
        return validated(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path} does not fit this version: {' '.join(str(error).split())}") from error


def sealed(text: str) -> str:
    """`config.yaml` as a run keeps it: a first line tells how many lines follow, and their SHA-256."""
    return f"# {len(text.splitlines())} lines, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def check_seal(path: Path, advice: str) -> None:
    """Raise `ConfigError` when a run's `config.yaml` is not as it was written: half of it is YAML too.

    One without the first line, of an export or of an earlier version, is taken as it is.
    """
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    if first.startswith("#") and sealed(rest).partition("\n")[0] != first:
        raise ConfigError(
            f"{path} is cut, damaged or edited since the run wrote it{advice}; an edited one: drop line 1"
        )


def resolve_path(value: str) -> Path:
    """A path of a setting, with `~` and environment variables expanded."""
    return Path(os.path.expandvars(value)).expanduser()
