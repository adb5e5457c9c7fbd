"""The frozen weights of runs: one file for all runs that lie side by side and begin from the same weights.

`<parent of run_dir>/.frozen/<sha256>.safetensors` is the file, `<run_dir>/model/frozen.safetensors` a hard link to it:
a hundred runs of a sweep cost one copy, and a run folder copied or moved elsewhere has its weights with it. A file that
no run links to any more (`find .frozen -links 1`) can be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ace_dist.utils.files import write_pieces

TYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}  # safetensors'


def store_frozen(run_dir: Path, state: Mapping[str, Tensor]) -> str:
    """Make sure that the run has these weights as `model/frozen.safetensors`; returns the SHA-256 of the file."""
    whole = hashlib.sha256()
    for piece in file_pieces(state):
        whole.update(piece)
    digest = whole.hexdigest()
    shared = run_dir.parent / ".frozen" / f"{digest}.safetensors"
    own = run_dir / "model" / "frozen.safetensors"
    shared.parent.mkdir(parents=True, exist_ok=True)
    own.parent.mkdir(parents=True, exist_ok=True)
    if not is_whole(shared, digest):
        write_pieces(shared, file_pieces(state))
    if own.exists() and own.samefile(shared):
        return digest
    link = own.with_name(f".{own.name}.{os.getpid()}.tmp")
    try:
        os.link(shared, link)
        os.replace(link, own)
    except OSError as error:  # a file system without hard links
        print(f"frozen weights are copied into {own}, not linked to {shared}: {error.strerror}", flush=True)
        write_pieces(own, file_pieces(state))
    return digest


def file_pieces(state: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of `safetensors.torch.save`, which holds all of them in memory at one time; here it is one tensor."""
    ordered = sorted(state, key=lambda name: (-state[name].itemsize, name))  # as the library does, for alignment
    header, end = {}, 0
    for name in ordered:
        start, end = end, end + state[name].nbytes
        shape = list(state[name].shape)
        header[name] = {"dtype": TYPE_NAMES[state[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        tensor = state[name].detach().cpu().contiguous()
        yield tensor.flatten().view(torch.uint8).numpy().data


def is_whole(path: Path, digest: str) -> bool:
    """Whether the file is there with this SHA-256; says so when it is there with another."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        whole = hashlib.file_digest(file, "sha256").hexdigest() == digest
    if not whole:
        print(f"{path} is damaged (its SHA-256 is not its name); it is written again", flush=True)
    return whole
