"""Reads text that others have written: JSON and YAML of runs, exports, shards, trees, sweeps and people.

Size, encoding, depth and length of numbers are bounded before anything is built from a file, and every fault is one
sentence that names the file. YAML is data: no anchors (a few lines of them unfold to gigabytes) and no `${...}`, which
would put this machine's environment into what is shown or passed on.
"""

import functools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml  # type: ignore[import-untyped]
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, Strict, TypeAdapter, ValidationError

from ace_dist.utils.errors import DataError, UserError

LARGEST_FILE = 1 << 30  # bytes: predictions of a million clips take 100 MB
DEEPEST = 32  # lists and objects within one another
MOST_DIGITS = 19  # of a whole number: 64 bits

# Values of a schema for `check_shape`; none is made out of another type.
Kind = TypeVar("Kind")
Text = Annotated[str, Strict()]
Whole = Annotated[int, Strict(), Field(ge=0, lt=1 << 53)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Score = Annotated[float, Strict()]


class Fault(ValueError):
    """What is wrong with a text, without the name of its file."""


def why_no_file(path: Path) -> str:
    """What `path` is, which is no plain file, as the end of a sentence that begins with it."""
    if os.path.isdir(path):  # `Path.is_dir` raises for a name that is too long
        return "is a folder, not a file"
    if os.path.exists(path):
        return "is no plain file but a pipe, a socket or a device"
    return f"is a link to {os.readlink(path)}, which does not exist" if os.path.islink(path) else "does not exist"


def files_below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """All files below a folder, in the order of their paths, also behind links to folders; hidden ones are left out.

    A link to one of the folders `above` is not followed, or the walk would not end. Raises `DataError` for a link to
    nothing, such as a disk that is not mounted.
    """
    above |= {os.path.realpath(folder)}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from files_below(path, above)
        elif path.is_file():
            yield path
        elif not path.exists():
            raise DataError(f"{path} {why_no_file(path)}; mount or fetch that, or delete the link")


def read_text(path: Path, error: type[UserError], advice: str = "", largest: int = LARGEST_FILE) -> str:
    """UTF-8 text of a plain file; raises `error` for one that is too large, is binary, or cannot be read."""
    try:
        if not path.is_file():  # a pipe would wait for ever, and a device has no end
            raise Fault(why_no_file(path))
        if (size := path.stat().st_size) > largest:
            raise Fault(f"has {size:,} bytes, more than the {largest:,} that such a file may have")
        text = path.read_text(encoding="utf-8")
        if "\0" in text:
            raise Fault("holds a NUL character, so it is no text")
    except OSError as problem:  # `advice` is about what a file holds
        raise error(f"{path} cannot be read ({problem.strerror}); `ls -ld {path}` shows who may") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text (byte {problem.start}){advice}") from problem
    except Fault as problem:
        raise error(f"{path} {problem}{advice}") from problem
    return text


def read_json(path: Path, error: type[UserError], advice: str = "", largest: int = LARGEST_FILE) -> Any:
    """The content of a JSON file; `advice` ends every message, and begins with a mark: `; build it again`."""
    return parse_json(read_text(path, error, advice, largest), str(path), error, advice)


def parse_json(text: str | bytes, where: str, error: type[UserError], advice: str = "") -> Any:
    """The content of JSON text that stands in `where`."""
    try:
        value = json.loads(text, parse_int=whole_number, object_pairs_hook=unique_names)
        if "\\u0000" in (text if isinstance(text, str) else text.decode("utf-8", "replace")):
            raise Fault("it holds a NUL character")
        check_depth(value)
    except RecursionError:
        raise error(f"{where} is not valid JSON (deeper than {DEEPEST} levels){advice}") from None
    except ValueError as problem:  # JSONDecodeError, UnicodeDecodeError, Fault
        raise error(f"{where} is not valid JSON ({problem}){advice}") from problem
    return value


def read_object(path: Path, error: type[UserError], advice: str = "") -> dict[str, Any]:
    """The content of a JSON file that holds one object."""
    content = read_json(path, error, advice)
    if not isinstance(content, dict):
        raise error(f"{path} must hold one JSON object, found {type(content).__name__}{advice}")
    return content


def read_yaml(path: Path, error: type[UserError], advice: str = "") -> dict[str, Any]:
    """The mapping of a YAML file, read as OmegaConf reads it (`1e-3` is a number, a key stands once), unresolved."""
    text = read_text(path, error, advice, largest=16 << 20)
    try:
        check_yaml(text)
        content = OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}
    except (yaml.YAMLError, OmegaConfBaseException, RecursionError, ValueError) as problem:
        raise error(f"{path} is not valid YAML ({' '.join(str(problem).split())}){advice}") from problem
    if not isinstance(content, dict):
        raise error(f"{path} must hold one YAML mapping, found {type(content).__name__}{advice}")
    return {str(key): value for key, value in content.items()}


def check_shape(value: Any, kind: type[Kind], where: str, error: type[UserError], advice: str = "") -> Kind:
    """`value` as `kind`: a dataclass, a `TypedDict`, a list of them. The message names the first place that differs."""
    try:
        fitting: Kind = type_adapter(kind).validate_python(value)  # type: ignore[arg-type]
        return fitting
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
        found = repr(first["input"])
        said = f"is {found if len(found) <= 60 else f'{found[:60]}...'}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise error(
            f"{where}: {place or 'it'} {'is missing' if first['type'] == 'missing' else said}{advice}"
        ) from None


@functools.cache
def type_adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def whole_number(text: str) -> int:
    if len(text.lstrip("-")) > MOST_DIGITS:
        raise Fault(f"it holds a number of {len(text)} digits")
    return int(text)


def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a name that stands in it twice would hide what the first one says."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise Fault(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return content


def check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        groups = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [child for group in groups for child in group]
        if not level:
            return
    raise Fault(f"it is deeper than {DEEPEST} levels")


def check_yaml(text: str) -> None:
    """Look at YAML event by event, before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = f"line {event.start_mark.line + 1}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise Fault(f"{line}: it is deeper than {DEEPEST} levels")
        if isinstance(event, yaml.AliasEvent):
            raise Fault(f"{line}: it repeats a part by an anchor (*{event.anchor}); write the part out")
        if isinstance(event, yaml.ScalarEvent):
            if "${" in event.value:
                raise Fault(f"{line}: it holds ${{...}}, which is resolved on a command line alone; write the value")
            if event.style is None and re.fullmatch(rf"[-+]?[\d_]{{{MOST_DIGITS + 1},}}", event.value):
                raise Fault(f"{line}: it holds a number of {len(event.value)} digits")
