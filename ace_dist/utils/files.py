"""Writes files so that a crash leaves either the old one or the new one, whole, and finds out what was damaged since.

A folder of weights has a `SHA256SUMS` of its files, which `sha256sum -c SHA256SUMS` checks too.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from ace_dist.utils.console import say_once
from ace_dist.utils.errors import ConfigError, RunError
from ace_dist.utils.reading import parse_json

CHECKSUMS = "SHA256SUMS"
LEAST_FREE_GIB = 2.0  # of the disk of a run; preflight and doctor ask for it


def write_bytes(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, bring it to the disk, rename. What failed leaves nothing behind."""
    write_pieces(path, [data])


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """`write_bytes` of pieces one after another, which need not be in memory at one time."""
    # A name that nobody else has: on other hosts, and in containers, other processes have the same number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # which a user has named, and not the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise the `OSError` that `write_bytes` of this file would end in. Makes nothing, no missing folder either."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    there = next(folder for folder in path.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        error.filename = str(path)
        raise


def check_is_no_input(path: Path, *inputs: str | None) -> None:
    """Raise `ConfigError` where writing `path`, an `output=`, would replace a file that is read."""
    for source in inputs:
        if source and path.exists() and os.path.exists(source) and path.samefile(source):
            raise ConfigError(f"output={path} is a file that is read here, and would be lost; name another one")


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines of a run's `metrics.jsonl`, and the numbers of those that are damaged or that a kill has cut short.

    Every line that is returned has its `step`. A file that does not exist has no lines.
    """
    rows, damaged = list[dict[str, Any]](), list[int]()
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else [], start=1):
        try:
            row = parse_json(line, str(path), RunError)
        except RunError:
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        else:
            damaged.append(number)
    return rows, damaged


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path, digests: Mapping[str, str]) -> None:
    """Write `SHA256SUMS` of a folder: the SHA-256 of each file by its name."""
    write_text(folder / CHECKSUMS, "".join(f"{digest}  {name}\n" for name, digest in digests.items()))


def read_checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by its name, as `SHA256SUMS` of a folder has them; none when there is no such file."""
    path = folder / CHECKSUMS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_checksums(folder: Path, needed: Iterable[str], remedy: str) -> bool:
    """Compare every file of a folder's `SHA256SUMS`; False when it has none, as those that earlier versions wrote.

    Raises `RunError` for a damaged file, and for one of `needed` that is not listed; it ends with `remedy`, what makes
    the files again.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return False
    digests = read_checksums(folder)
    for name in needed:
        digests.setdefault(name, "")
    for name, digest in digests.items():
        if not digest or not (folder / name).is_file():
            raise RunError(f"{folder / name} is missing, or {path}, which lists it, is damaged; {remedy}")
        if file_sha256(folder / name) != digest:
            raise RunError(f"{folder / name} is damaged: its SHA-256 is not the one in {path}; {remedy}")
    return True


def is_listed(folder: Path, name: str) -> bool:
    """Whether a folder has a file that may be missing, and its `SHA256SUMS`, where there is one, lists it."""
    if not (folder / name).is_file():
        return False
    if not (folder / CHECKSUMS).is_file() or name in read_checksums(folder):
        return True
    say_once(f"{folder / name} is not read: {CHECKSUMS} beside it does not list it")
    return False


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (new names, renames) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def private_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder that its owner alone can read, removed at the end, also at that of SIGTERM and SIGHUP.

    These end a process without a word to Python where nobody handles them; while the folder exists they are exits.
    """

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    unhandled = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if threading.current_thread() is threading.main_thread() and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in unhandled:
        signal.signal(number, leave)
    try:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as folder:
            yield Path(folder)
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)
