"""Owns the frozen weights of runs: one file for all runs that lie side by side and begin from the same weights.

`<parent of run_dir>/.frozen/<sha256>.safetensors` is the file, `<run_dir>/model/frozen.safetensors` a hard link to it:
a hundred runs of a sweep cost one copy, and a run folder copied or moved elsewhere has its weights with it. A file that
no run links to any more (`find .frozen -links 1`) can be deleted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import torch as safetensors
from torch import Tensor

from ace_dist.files import write_bytes

__all__ = ["store_frozen"]


def store_frozen(run_dir: Path, state: Mapping[str, Tensor]) -> str:
    """Make sure that the run has these weights as `model/frozen.safetensors`; returns the SHA-256 of the file."""
    data = safetensors.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    digest = hashlib.sha256(data).hexdigest()
    shared = run_dir.parent / ".frozen" / f"{digest}.safetensors"
    own = run_dir / "model" / "frozen.safetensors"
    shared.parent.mkdir(parents=True, exist_ok=True)
    own.parent.mkdir(parents=True, exist_ok=True)
    if not is_whole(shared, digest):
        write_bytes(shared, data)
    if own.exists() and own.samefile(shared):
        return digest
    link = own.with_name(f".{own.name}.{os.getpid()}.tmp")
    try:
        os.link(shared, link)
        os.replace(link, own)
    except OSError as error:  # a file system without hard links
        print(f"frozen weights are copied into {own}, not linked to {shared}: {error.strerror}", flush=True)
        write_bytes(own, data)
    return digest


def is_whole(path: Path, digest: str) -> bool:
    """Whether the file is there with this SHA-256; says so when it is there with another."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest() == digest
    if not whole:
        print(f"{path} is damaged (its SHA-256 is not its name); it is written again", flush=True)
    return whole
