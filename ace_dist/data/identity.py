"""Owns the proof that a continued run reads the very clips it began with.

Which clips a step shows is a function of (seed, step) over the list of training clips, so that list must not change
under a run: an added clip would silently give every later step other clips. `clips.json` in the run folder holds the
list's digest, shard by shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ace_dist.utils.errors import DataError
from ace_dist.utils.files import write_json

if TYPE_CHECKING:
    from ace_dist.data.shards import ClipRecord


# What decides a training clip's pixels and label; not where its bytes lie, so that shards may be moved or packed anew.
IDENTITY = ("key", "sha256", "frames", "fps", "segment_start_s", "segment_end_s")


def describe_clips(records: Sequence[ClipRecord], labels: Sequence[int]) -> dict[str, Any]:
    """Number of clips, digest of all in order, and of each shard's: what `clips.json` says."""
    lines = [
        json.dumps([*(getattr(record, name) for name in IDENTITY), label])
        for record, label in zip(records, labels, strict=True)
    ]
    shards: dict[str, list[str]] = {}
    for record, line in zip(records, lines, strict=True):
        shards.setdefault(record.shard, []).append(line)
    return {
        "clips": len(lines),
        "sha256": digest(lines),
        "shards": {name: {"clips": len(part), "sha256": digest(part)} for name, part in shards.items()},
    }


def digest(lines: Sequence[str]) -> str:
    """SHA-256 of lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def claim_clips(run_dir: Path, shards_dir: str, records: Sequence[ClipRecord], labels: Sequence[int]) -> None:
    """Write `clips.json` into a new run folder; in one that is continued compare with it.

    Raises `DataError` naming the first shards whose training clips or labels differ, and the setting.
    """
    path, found = run_dir / "clips.json", describe_clips(records, labels)
    if not path.is_file():
        write_json(path, found)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["sha256"] != found["sha256"]:
        raise DataError(
            f"dataset.shards={shards_dir} holds other training clips than run {run_dir} began with: "
            f"{'; '.join(differences(before, found))}. Continue with the shards it began with, or choose another "
            "folder for the run: run=..."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, which shards differ, at most four."""
    changes = []
    for name in sorted({*before["shards"], *now["shards"]}):
        old, new = before["shards"].get(name), now["shards"].get(name)
        if old is None or new is None:
            state = "is new" if old is None else "is gone"
            changes.append(f"{name} {state} ({(old or new)['clips']} clips)")
        elif old["clips"] != new["clips"]:
            changes.append(f"{name} had {old['clips']} clips, has {new['clips']}")
        elif old["sha256"] != new["sha256"]:
            changes.append(f"{name} has other clips or labels")
    more = [f"and {len(changes) - 4} more shards"] if len(changes) > 4 else []
    return [*changes[:4], *more] or ["the same clips in another order"]
