"""Answers on disk, one file each, so that the same question is paid for once and gives the same tree again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ace_dist.utils.errors import UserError


class CacheError(UserError):
    """A cache folder that cannot be used."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a server. Texts are untrusted and hold no key."""

    text: str
    finish: str  # finish_reason as the server says: stop, length, content_filter, ...
    served_model: str  # the model as the server names it
    tokens_in: int
    tokens_out: int
    counted: bool  # False: the server reported no usable count, the numbers are estimates
    date: str  # UTC, ISO 8601


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/ace-dist/synonyms`, in `~/.cache` when the variable is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ace-dist" / "synonyms"


class AnswerCache:
    """A folder of answers by (model, prompt, settings). Builds may share it: a file appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"cache={folder} cannot be made: {error.strerror}") from error

    def get(self, prompt: str, settings: dict[str, Any]) -> Reply | None:
        """The stored answer, or `None`. A damaged file raises `CacheError`: asking again would cost again."""
        path = self._path(prompt, settings)
        if not path.is_file():
            return None
        try:
            return Reply(**json.loads(path.read_text(encoding="utf-8"))["reply"])
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(f"the cached answer {path} is damaged ({error}); delete it to ask again") from error

    def put(self, prompt: str, settings: dict[str, Any], reply: Reply) -> None:
        """Store an answer with the question beside it, for people who look."""
        path = self._path(prompt, settings)
        path.parent.mkdir(exist_ok=True)
        record = {"settings": settings, "prompt": prompt, "reply": asdict(reply)}
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            file.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        os.replace(file.name, path)

    def _path(self, prompt: str, settings: dict[str, Any]) -> Path:
        identity = json.dumps([settings, prompt], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest}.json"
