"""The rows of `method_study.py`, where what several of them compute alike is computed once.

    python benchmarks/method_shared.py stage=full cell='long 0.4 1 clip'

It takes the settings of `method_study.py` and writes the same lines. Trainings are forked from this process, which has
imported everything. Rows of one cell and seed share decoded batches and what frozen blocks give for them, in files
that are deleted with their last row; reports are not written. On Intel's CPUs without tiles for bfloat16 (AMX), whose
products of it are slow, these are taken in fp32 of the same numbers and rounded once, as they are by definition: only
the order of sums differs.
Several processes may share the work: each takes a cell and seed that no other has.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest.mock import patch

import method_study
import numpy as np
import torch
from method_study import PlannedRow, Settings
from torch import Tensor
from torch.nn import functional

from ace_dist.cli import execute
from ace_dist.config.settings import parse_settings
from ace_dist.data.loader.base import ThreadedLoader
from ace_dist.data.loader.feature_cache import as_bytes
from ace_dist.data.loader.pyav import PyavLoader
from ace_dist.data.sampling import ClipRequest
from ace_dist.models.timesformer import TimeSformer
from ace_dist.utils.errors import RunError, UserError
from ace_dist.utils.files import write_bytes
from ace_dist.utils.locks import lock

FEW = 4096  # numbers of an operand, below which a product's cost is its calls
# What a training imports where it needs it, the slowest of them.
IMPORTS = (
    "ace_dist.evaluate.report", "ace_dist.evaluate.runs", "ace_dist.train.trainer", "deepspeed.runtime.engine",
    "torch._inductor.compile_fx", "torch.utils.tensorboard", "transformers.models.clip.modeling_clip",
)  # fmt: skip


class Shared:
    """Files of decoded batches and of frozen features. A model is given the batch that the loader finished last."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.waiting: dict[int, Path] = {}  # files of the batches being decoded, by the address of their pixels
        self.current: Path | None = None

    def submit(self, loader: ThreadedLoader, requests: Sequence[ClipRequest]) -> Any:
        """`ThreadedLoader.submit`; a batch that is there is read."""
        shown = [asdict(request) | {"record": request.record.sha256, "label": 0, "view": 0} for request in requests]
        digest = hashlib.sha256(json.dumps([str(loader.files.folder), shown], sort_keys=True).encode()).hexdigest()
        path = self.folder / f"{digest[:24]}.npy"
        decoded = (requests, torch.from_numpy(np.load(path)), []) if path.is_file() else own_submit(loader, requests)
        self.waiting[decoded[1].data_ptr()] = path
        return decoded

    def finish(self, loader: PyavLoader, video: Tensor) -> Tensor:
        """`PyavLoader.finish`; a batch that was not there is kept."""
        self.current = self.waiting.pop(video.data_ptr())
        keep(self.current, video)
        return own_finish(loader, video)

    def frozen(self, tower: TimeSformer, video: Tensor) -> tuple[Tensor, Tensor]:
        """`TimeSformer.frozen`; features are those of the batch, of its pixels as normalised, and of the weights."""
        if self.current is None or not tower.frozen_depth:
            return own_frozen(tower, video)
        facts = tower.__dict__.setdefault("shared_digest", digest_of(tower.frozen_features_state().values()))
        pixels = digest_of([video.flatten()[:: max(1, video.numel() // FEW)].contiguous()])
        path = self.current.with_suffix(f".{facts}.{pixels}.{tower.training:d}.npy")
        if path.is_file():
            both = torch.from_numpy(np.load(path)).view(video.dtype)
        else:
            cls, patches = own_frozen(tower, video)
            both = torch.cat([cls, patches.flatten(1, 2)], dim=1).contiguous()
            keep(path, both.view(torch.int16) if both.dtype == torch.bfloat16 else both)
        return both[:, :1], both[:, 1:].unflatten(1, (tower.patch_embed.num_patches, -1))


class Product(torch.autograd.Function):
    """`functional.linear` of bfloat16 [..., I] with [O, I]: fp32 products of the same numbers, rounded once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, weight_fp32 = x.reshape(-1, x.shape[-1]).float(), weight.float()
        ctx.save_for_backward(rows, weight_fp32)
        ctx.shape = x.shape
        product = functional_linear(rows, weight_fp32, None if bias is None else bias.float())
        return product.bfloat16().view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        rows, weight = ctx.saved_tensors
        wanted, out = ctx.needs_input_grad, gradient.reshape(-1, gradient.shape[-1]).float()
        of_x = (out @ weight).bfloat16().view(ctx.shape) if wanted[0] else None
        of_weight = (out.T @ rows).bfloat16() if wanted[1] else None
        return of_x, of_weight, out.sum(0).bfloat16() if wanted[2] else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype != torch.bfloat16 or x.is_meta or x.numel() < FEW:
        return functional_linear(x, weight, bias)
    product: Tensor = Product.apply(x, weight, bias)
    return product


own_submit, own_finish, own_frozen = ThreadedLoader.submit, PyavLoader.finish, TimeSformer.frozen
functional_linear = functional.linear


def keep(path: Path, tensor: Tensor) -> None:
    """Write a tensor for NumPy, unless it is there."""
    if not path.is_file():
        file = io.BytesIO()
        np.save(file, tensor.numpy())
        write_bytes(path, file.getvalue())


def digest_of(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(as_bytes(tensor))
    return digest.hexdigest()[:16]


def slow_bfloat16() -> bool:
    """Whether fp32 products are the faster ones: 110 against 65 GFLOP/s of a core where it was measured."""
    return "GenuineIntel" in Path("/proc/cpuinfo").read_text() and not torch.cpu._is_amx_tile_supported()


@contextmanager
def sharing(folder: Path) -> Iterator[None]:
    """While it lasts, trainings of this process and those forked from it share what `Shared` keeps in `folder`."""
    shared = Shared(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        patch.object(ThreadedLoader, "submit", lambda loader, requests: shared.submit(loader, requests)),
        patch.object(PyavLoader, "finish", lambda loader, video: shared.finish(loader, video)),
        patch.object(TimeSformer, "frozen", lambda tower, video: shared.frozen(tower, video)),
        patch("ace_dist.evaluate.report.write_report", lambda run_dir, **_: run_dir / "report.html"),
        patch.object(functional, "linear", linear if slow_bfloat16() else functional_linear),
    ):
        yield


def train(words: list[str]) -> None:
    """`launchers/train.py` in a fork of this process, which writes to `train.log` beside the run's folder."""
    run = Path(next(word for word in words if word.startswith("run=")).removeprefix("run="))
    run.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    if not (child := os.fork()):
        code = 1
        try:
            with run.with_suffix(".log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                try:
                    code = execute(["train", *words])
                except Exception:
                    traceback.print_exc()
        finally:
            os._exit(code)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RunError(f"exit status {code}; see {run.with_suffix('.log')}")


def run_command(words: list[str]) -> None:
    """`method_study.run_command`, which forks trainings."""
    if words[1].endswith("train.py"):
        train(words[2:])
    else:
        own_run_command(words)


own_run_command = method_study.run_command


def main() -> None:
    settings = parse_settings(sys.argv[1:], Settings)
    folder = Path(settings.folder).absolute() / "shared"
    torch.set_num_threads(1)
    for name in IMPORTS:
        importlib.import_module(name)
    failed: list[str] = []

    def group(row: PlannedRow) -> tuple[int, str]:
        return row.seed, row.cell

    for (seed, cell), _ in groupby(method_study.planned(settings), group):
        place = folder / f"{cell} {seed}".replace(" ", "_")
        with lock(place.with_suffix(".lock"), wait=False) as held:
            if held:
                with sharing(place), patch.object(method_study, "run_command", run_command):
                    failed += method_study.run(replace(settings, cell=cell, seed=seed))
                shutil.rmtree(place)
    method_study.end(failed)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
