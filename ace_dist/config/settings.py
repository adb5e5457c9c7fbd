"""Settings of a launcher on its command line, `key=value`, and how a user's mistake is answered."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from ace_dist.utils.errors import ConfigError, UserError

Settings = TypeVar("Settings")
WANTED = {
    "Integer": "a whole number",
    "Float": "a number",
    "bool": "true or false",
    "ListConfig": "a list; write '[spin block, hammer pin]'",
}
RENAMED = {  # settings of the version before, for one release
    "run_dir": "run",
    "out": "output",
    "loader.trunk_cache": "loader.feature_cache",
    "loader.trunk_cache_gib": "loader.feature_cache_gib",
    "pretrain.seeing_steps": "pretrain.supervised_steps",
    "pretrain.seeing_batch": "pretrain.supervised_batch",
    "pretrain.seeing_lr": "pretrain.supervised_lr",
    "pretrain.seen": "pretrain.supervised_weights",
}
REFUSALS = {  # what a file system may refuse, and what its owner can do
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space or write to another disk"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "write to a folder of yours"),
}


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


def wanted_type(message: str) -> str | None:
    """What OmegaConf's message says a value should have been, in words."""
    found = re.search(r"could not be converted to (\w+)|not a valid (\w+)|not a (ListConfig)", message)
    return WANTED.get(next(filter(None, found.groups()))) if found else None


def check_renamed(key: str) -> None:
    """Raise `ConfigError` with the new name of a setting that the version before had under another one."""
    if key in RENAMED:
        raise ConfigError(f"{key} is now {RENAMED[key]}: write {RENAMED[key]}=...")


def help_asked(argv: Sequence[str]) -> bool:
    """Whether a launcher was asked what it does."""
    return not {"-h", "--help"}.isdisjoint(argv)


def show_help(settings: Iterable[str]) -> NoReturn:
    """Print the running launcher's docstring and its settings, and exit with 0."""
    lines = ["", "settings, written key=value:", *(f"  {line}" for line in settings)]
    print((sys.modules["__main__"].__doc__ or "").strip(), *lines, sep="\n")
    raise SystemExit(0)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` when a known word is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


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
        remedy = f"{REFUSALS[error.errno]} (run=, dataset.shards= or output=), then give the command again"
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
        check_renamed(key)
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
        check_renamed(key)
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
