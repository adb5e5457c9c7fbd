"""The parser of `key=value`: Hydra's grammar for the settings of every command, and help out of their comments."""

import difflib
import inspect
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_type_hints

import yaml  # type: ignore[import-untyped]
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ace_dist.utils.errors import ConfigError

Settings = TypeVar("Settings")
TYPES_IN_WORDS = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "ListConfig": "a list; write it in brackets, as '[A, B]'",
}
TEXT_LISTS: tuple[Any, ...] = (list[str], list[str] | None)
TEXT_MAPPING: Any = dict[str, str]
QUOTES = ("'", '"')
HELP = {"-h", "--help"}
PLACES = {  # settings of commands that name files and folders
    "run", "runs", "output", "folder", "figures", "compare", "videos", "procedure", "procedures", "cache",
}  # fmt: skip
RENAMED = {  # settings of the version before, for one release
    "run_dir": "run",
    "out": "output",
    "loader.trunk_cache": "loader.feature_cache",
    "loader.trunk_cache_gib": "loader.feature_cache_gib",
    "model.video.activation_checkpointing": "model.video.recompute",
    "pretrain.seeing_steps": "pretrain.supervised_steps",
    "pretrain.seeing_batch": "pretrain.supervised_batch",
    "pretrain.seeing_lr": "pretrain.supervised_lr",
    "pretrain.seen": "pretrain.supervised_weights",
}


DEFAULTS = {"None": "null", "True": "true", "False": "false", MISSING: "..."}  # as a command line writes them


def parse_settings(argv: Sequence[str], schema: type[Settings]) -> Settings:
    """The settings of a command that composes no run. Raises `ConfigError` with the nearest name for an unknown key."""
    settings, _ = split_settings(argv, schema, alone=True)
    if help_asked(argv):
        raise SystemExit(0)
    return settings


def split_settings(
    argv: Sequence[str],
    schema: type[Settings],
    prefix: str = "",
    base: Mapping[str, Any] | None = None,
    alone: bool = False,
) -> tuple[Settings, list[str]]:
    """Divide `key=value` arguments into those of `schema`, a dataclass, and the others, such as a run's.

    With a `prefix`, such as `cluster.`, all keys that begin with it are the schema's; with `alone` there may be no
    others. `base` holds defaults that win over the schema's. A field whose default is MISSING must be given. `--help`
    prints the fields with their comments and stays among the others; DeepSpeed's `--local_rank` is dropped.
    """
    kinds = get_type_hints(schema)
    names = list(kinds)
    merged, rest = OmegaConf.merge(OmegaConf.structured(schema), base or {}), list[str]()
    if help_asked(argv):
        print("", *describe_fields(schema, prefix), sep="\n  ")
    for arg in argv:
        key, equals, text = arg.partition("=")
        check_renamed(key)
        own = key.removeprefix(prefix) if key.startswith(prefix) else ""
        if re.match(r"--?local[_-]rank", arg):
            continue
        if own.split(".")[0] in names and equals:
            try:
                OmegaConf.update(merged, own, parse_value(own, text, kinds.get(own)))
            except OmegaConfBaseException as error:
                kind = type_in_words(str(error))
                said = f"{arg} is not {kind}" if kind else f"{arg}: {' '.join(str(error).split())}"
                raise ConfigError(said) from error
        elif not equals and not key.startswith(("-", "~")):
            raise ConfigError(f"{arg!r} is not a setting; settings are written key=value, without spaces around =")
        elif (alone or (prefix and own)) and key not in HELP:
            known = [f"{prefix}{name}" for name in names]
            raise ConfigError(f"unknown setting {key!r}{did_you_mean(key, known)}; there are {', '.join(known)}")
        else:
            rest.append(arg)
    if help_asked(rest):
        return schema(), rest
    for name in [name for name in names if OmegaConf.is_missing(merged, name)]:
        raise ConfigError(f"{prefix}{name} is not set: give {comments(schema).get(name, name)} as {prefix}{name}=...")
    settings = OmegaConf.to_object(merged)
    assert isinstance(settings, schema)
    for name in () if prefix else sorted(PLACES & kinds.keys()):
        setattr(settings, name, expanded(getattr(settings, name)))
    return settings, rest


def expanded(place: Any) -> Any:
    """A path of a setting, or a list of them, with `~` and environment variables expanded."""
    if isinstance(place, list):
        return [expanded(one) for one in place]
    return os.path.expanduser(os.path.expandvars(place)) if isinstance(place, str) else place


def parse_value(key: str, text: str, kind: Any) -> Any:
    """A value in Hydra's grammar. Text where text is meant needs no quotes; a list of one needs no brackets."""
    if kind in (str, str | None) and not text.startswith(QUOTES) and text != "null":
        return text
    if kind == TEXT_MAPPING:
        return as_mapping(key, text)
    spelled = as_list(key, text) if kind in TEXT_LISTS else quoted(f"{key}={text}")
    override = OverridesParser.create().parse_override(spelled)
    return text if override.is_sweep_override() else override.value()


def as_list(key: str, text: str) -> str:
    """`key=value` for a list of texts: a plain text is a list of one."""
    if text.startswith(("[", "$")) or text in ("", "null"):
        return quoted(f"{key}={text}")
    return f"{key}=[{text if text.startswith(QUOTES) else quote(text)}]"


def as_mapping(key: str, text: str) -> dict[str, str]:
    """Texts by texts, read as YAML where all is text: names in Hydra's grammar have neither umlauts nor quotes."""
    try:
        values = yaml.load(re.sub(r":(?=\S)", ": ", text), Loader=yaml.BaseLoader)  # nosec B506: only text
    except yaml.YAMLError:
        values = None
    if isinstance(values, dict) and all(isinstance(value, str) and value for value in values.values()):
        return values
    raise ConfigError(f"{key}={text} is not a mapping: write {key}='{{NAME: value, \"any text\": value}}'")


def quoted(override: str) -> str:
    """`key=value` with quotes wherever Hydra's grammar wants them around a path or label: umlauts, spaces, brackets.

    A value that the grammar reads is left as it is. Raises `ConfigError` when it is neither that nor plain text.
    """
    parser = OverridesParser.create()
    key, equals, value = override.partition("=")
    listed = re.sub(r"[^\[\]{}()'\",:=]*[^\x00-\x7f][^\[\]{}()'\",:=]*", lambda found: quote(found[0].strip()), value)
    candidates = [value, listed if value.startswith(("[", "{", "'", '"')) else quote(value)]
    if re.fullmatch(r"\[[^\[\]\"{}]*\]", value):
        candidates.append(f"[{','.join(quote(item.strip()) for item in value[1:-1].split(','))}]")
    for candidate in candidates:
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


def check_renamed(key: str) -> None:
    """Raise `ConfigError` with the new name of a setting that the version before had under another one."""
    if key in RENAMED:
        raise ConfigError(f"{key} is now {RENAMED[key]}: write {RENAMED[key]}=...")


def type_in_words(message: str) -> str | None:
    """What OmegaConf's message says a value should have been, in words."""
    found = re.search(r"could not be converted to (\w+)|not a valid (\w+)|not a (ListConfig)", message)
    return TYPES_IN_WORDS.get(next(filter(None, found.groups()))) if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` when a known word is near, else nothing.

    Near are another case ("ACE"), dotted names that the word ends or is a part of ("lr": "training.lr_video", at most
    three, the shortest first), and else the most alike one.
    """
    names, asked = list(known), word.lower()
    asked = "cuda" if asked == "gpu" and "cuda" in names else asked  # it is spelled like cpu, and its opposite
    near = [name for name in names if name.lower() == asked] or dotted_names(asked, names)
    near = near or difflib.get_close_matches(asked, names, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def dotted_names(asked: str, names: Iterable[str]) -> list[str]:
    group, dot, last = asked.rpartition(".")
    ends = [name for name in names if "." in name and name.startswith(group + dot)]
    parts = {name: name.rpartition(".")[2].split("_") for name in ends}
    found = [name for name in ends if last in ("_".join(parts[name]), *parts[name])]
    return sorted(found, key=lambda name: (len(parts[name]), name.count(".")))[:3]


def help_asked(argv: Sequence[str]) -> bool:
    return not HELP.isdisjoint(argv)


def describe_fields(schema: type, prefix: str = "") -> list[str]:
    """A line a field: its name, default and comment."""
    return [f"{name}={default}   {note}".rstrip() for name, default, note in documented_fields(schema, prefix)]


def documented_fields(schema: type, prefix: str = "") -> list[tuple[str, str, str]]:
    """Name, default (`...`: must be given) and comment of each field, those of nested dataclasses by dotted names."""
    notes, kinds, rows = comments(schema), get_type_hints(schema), list[tuple[str, str, str]]()
    defaults: Any = OmegaConf.to_container(OmegaConf.structured(schema), resolve=False)
    for name, default in defaults.items():
        if is_dataclass(kinds[name]):
            rows += documented_fields(kinds[name], f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            rows.append((f"{prefix}{name}", DEFAULTS.get(str(default), str(default)), notes.get(name, "")))
    return rows


def comments(schema: type) -> dict[str, str]:
    """The comment behind each field in the source of a dataclass and those that it extends."""
    sources = [inspect.getsource(base) for base in reversed(schema.__mro__[:-1])]
    in_brackets = r"(?:[^#\n]*\(\n)?"  # a default that the formatter put on a line of its own
    return dict(re.findall(rf"^    (\w+): {in_brackets}[^#\n]*# (.*)$", "".join(sources), re.M))
