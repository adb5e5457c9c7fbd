"""Checkpoints: written whole or not at all, found again, and checked against the run that continues them.

    checkpoints/step-00000200/
        weights.safetensors     what trains, fp32, by name
        momentum.safetensors    the optimizer's state of it (adamw: mean, square)
        average.safetensors     with training.ema_decay or swa_start: the running average of the weights
        generators.safetensors  torch's random generators of every rank
        checkpoint.json         step, ranks, ZeRO stage, precision; SHA-256 of the frozen weights, of each file and of
                                what it says itself; states of the loop's callbacks (the open line of the log, ...)

A folder is written under `*.partial` and renamed, and renamed back before it is removed, so a folder with the final
name was complete, and what it lacks is damage. Its content depends on
no number of ranks and no ZeRO stage, and nothing in it is a pickle. Everything else a run needs (data order, crops,
drawn labels, learning rates) is a function of the step.

Frozen weights are one file for all runs that lie side by side and begin from the same weights:
`<parent of run_dir>/.frozen/<sha256>.safetensors`, to which `<run_dir>/model/frozen.safetensors` is a hard link. A
hundred runs of a sweep cost one copy, and a run folder copied elsewhere has its weights with it. The same holds for
`start.safetensors`, the trained weights as they were before training. A file that no run links to any more
(`find .frozen -links 1`) can be deleted.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from ace_dist.config import Config
from ace_dist.models.weights import FROZEN
from ace_dist.train.engine import Engine
from ace_dist.utils.distributed import on_first
from ace_dist.utils.errors import RunError
from ace_dist.utils.files import file_sha256, sync_folder, write_bytes, write_json, write_pieces
from ace_dist.utils.reading import read_object

FORMAT = 2
OLDEST = 1  # whose `checkpoint.json` has no checksum of itself
TYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}  # safetensors'
BLENDS = ("mixup", "cutmix", "color_jitter", "gray_scale")  # settings of the loader that work on a micro-batch
Parts = Mapping[str, Mapping[str, Tensor]]  # file name without suffix -> tensors


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole: its folder, `checkpoint.json`, and its tensors by part and name."""

    path: Path
    about: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]


class CheckpointFolder:
    """The checkpoints of one run on disk. Knows nothing of ranks or engines; one process writes."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def write(self, step: int, parts: Parts, about: Mapping[str, Any], best: int | None = None) -> Path:
        """Write one checkpoint, then remove the oldest beyond `keep`, but not that of step `best`.

        Raises `RunError` when a tensor is not finite (such a state must not replace a good one), and when the
        file system refuses; what was there before is untouched in both cases.
        """
        for part, tensors in parts.items():
            for name, tensor in tensors.items():
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise RunError(
                        f"{part} of {name} are not finite after step {step}: not saved. Train in another folder "
                        f"(run=DIR) with a lower training.lr_video or training.lr_text"
                    )
        path = self.at(step)
        partial = path.with_name(path.name + ".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.clean()
            partial.mkdir()
            files = {}
            for name, tensors in parts.items():
                data = safetensors.save(dict(tensors))
                write_bytes(partial / f"{name}.safetensors", data)
                files[f"{name}.safetensors"] = size_and_hash(data)
            text = {"format": FORMAT, "step": step, **about, "files": files}
            write_json(partial / "checkpoint.json", {**text, "sha256": json_sha256(text)})
            sync_folder(partial)
            remove(path)  # a damaged one of the same step
            os.rename(partial, path)
            sync_folder(self.folder)
            for old in self.complete()[: -self.keep]:
                if best is None or old != self.at(best):
                    remove(old)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.complete()
            raise RunError(
                f"{path} could not be written: {error.strerror or error}; "
                + (f"the last checkpoint, {kept[-1].name}, is intact. " if kept else "")
                + "Free space or set run=DIR on another disk, then run the same command again"
            ) from error
        return path

    def at(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint; None when there is none at all. Damaged ones are named and skipped.

        Raises `RunError` when all are damaged: beginning again is for the user to decide.
        """
        paths = self.complete()
        for path in reversed(paths):
            try:
                return read(path)
            except (OSError, RunError) as error:
                print(f"checkpoint skipped: {error}", flush=True)
        if paths:
            raise RunError(
                f"no checkpoint in {self.folder} is whole ({len(paths)} damaged, named above); restore one from a "
                f"backup, or delete the folder to begin again at step 0"
            )
        return None

    def set_aside(self, good: Path) -> None:
        """Rename what is newer than `good` and therefore damaged: it must not count among the newest `keep`."""
        for path in self.complete():
            if path > good:
                remove(path.with_name(path.name + ".damaged"))
                os.rename(path, path.with_name(path.name + ".damaged"))

    def complete(self) -> list[Path]:
        """Folders with their final name, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir() and not path.suffix)

    def clean(self) -> None:
        """Remove what an interrupted save or an interrupted removal left."""
        for path in self.folder.glob("step-*.partial"):
            shutil.rmtree(path)


def read_description(path: Path) -> dict[str, Any]:
    """Read and verify `checkpoint.json`. Raises `RunError`, which says how it is damaged."""
    about = read_object(path / "checkpoint.json", RunError)
    try:
        if about["format"] > OLDEST and about.pop("sha256") != json_sha256(about):
            raise ValueError("its SHA-256 is not the one that was written")
        about["files"] = {
            name: {key: entry[key] for key in ("bytes", "sha256")} for name, entry in about["files"].items()
        }
        version, step = about.get("format"), int(path.name.removeprefix("step-"))
        if about["step"] != step:  # one flipped bit makes another step of it, and so other clips and rates
            raise ValueError(f"step {about['step']} in the folder of step {step}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}/checkpoint.json is damaged ({type(error).__name__}: {error})") from error
    if version not in (OLDEST, FORMAT):
        raise RunError(f"{path} has format {version}, this version reads {OLDEST} and {FORMAT}")
    return about


def read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint. Raises `RunError`, which names the file that is damaged and how."""
    about, parts = read_description(path), {}
    for name, entry in about["files"].items():
        file = path / name
        data = file.read_bytes() if file.is_file() else None
        if data is None:
            raise RunError(f"{file} is missing")
        if len(data) != entry["bytes"]:
            raise RunError(f"{file} has {len(data)} bytes of {entry['bytes']}")
        if size_and_hash(data) != entry:
            raise RunError(f"{file} is damaged (its SHA-256 is not the one that was written)")
        try:
            parts[file.stem] = safetensors.load(data)
        except SafetensorError as error:
            raise RunError(f"{file} is not a safetensors file ({error})") from error
    return Checkpoint(path, about, parts)


def size_and_hash(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def json_sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def remove(path: Path) -> None:
    """Remove a checkpoint, under another name first: a kill in between leaves nothing that looks whole or damaged."""
    removed = path.with_name(path.name + ".removed.partial")  # `write` has built its new one as .partial
    if path.exists():
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(path, removed)
        shutil.rmtree(removed)


class Checkpoints:
    """Saves and restores an engine. `save`, `finish` and `restore` are collective: every rank calls them."""

    def __init__(self, run_dir: Path, engine: Engine, config: Config, frozen: str) -> None:
        self.folder = CheckpointFolder(run_dir / "checkpoints", config.training.keep_checkpoints)
        self.engine, self.ranks, self.config, self.settings = engine, engine.ranks, config, config.training
        self.frozen = frozen  # SHA-256 of the frozen weights' file, on rank 0
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[Path] | None = None  # on rank 0
        self.last_step: int | None = None
        self.last_s = time.monotonic()
        self.callbacks: dict[str, Any] = {}  # their states, in the checkpoint that `restore` found

    def due(self, step: int) -> bool:
        """Whether the number of steps asks for a save after `step` steps; the same on every rank."""
        return step % self.settings.save_every_steps == 0

    def overdue(self) -> bool:
        """Whether this rank's clock asks for a save; `Health.check` tells all ranks."""
        return time.monotonic() - self.last_s > 60 * self.settings.save_every_minutes

    def save(self, step: int, callbacks: Mapping[str, Any], best: int | None = None) -> None:
        """Save the state after `step` steps; does nothing when that is saved already.

        `callbacks` are the states of the loop's callbacks by name, as rank 0 has them, in JSON's types.
        The checkpoint of step `best` is kept beside the newest.
        The ranks wait while the state is gathered; rank 0 writes it in a thread while training goes on. What a write
        raised, the next `save` or `finish` raises on every rank.
        """
        if self.last_step == step:
            return
        self.finish()
        state = self.engine.state()
        # No step of today's methods depends on these, each draw has a generator of its own; a layer with dropout would.
        own = {f"cpu.{self.ranks.rank}": torch.get_rng_state()}
        if self.ranks.device.type == "cuda":
            own[f"cuda.{self.ranks.rank}"] = torch.cuda.get_rng_state(self.ranks.device)
        generators = {name: part for parts in self.ranks.gather(own) for name, part in parts.items()}
        if self.ranks.is_first:
            about = {**self.about(), "carried": callbacks}
            self.writing = self.writer.submit(self.folder.write, step, {**state, "generators": generators}, about, best)
        self.last_step, self.last_s = step, time.monotonic()

    def has(self, step: int) -> bool:
        """Whether the checkpoint of a step is there, as rank 0 sees it. Collective."""
        return self.ranks.gather(self.folder.at(step) in self.folder.complete())[0]

    def finish(self) -> None:
        """Wait until what was saved is on the disk."""
        on_first(self.ranks, self.close)

    def close(self) -> None:
        """`finish` for this rank alone; not collective, so it may follow an error."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def about(self) -> dict[str, Any]:
        return {
            "world_size": self.ranks.world,
            "accumulation": self.settings.accumulation,
            "zero_stage": self.engine.stage,
            "precision": "bf16" if self.engine.bf16 else "fp32",
            "frozen_sha256": self.frozen,
        }

    def restore(self) -> int:
        """Load the newest whole checkpoint; returns the number of steps done, 0 when there is none.

        Rank 0 reads and the others receive, so the folder need not be shared. Raises `RunError` when the
        checkpoint holds other tensors than this model trains, or belongs to other frozen weights.
        """
        state = self.engine.state()  # names and shapes
        newest = on_first(self.ranks, self.check_newest, state)
        place = self.ranks.gather((newest.path, newest.about) if newest else None)[0]
        if place is None:
            return 0
        path, about = place
        for part, tensors in state.items():
            for name, tensor in tensors.items():
                received = (newest.parts[part][name] if newest else tensor).to(self.ranks.device)
                dist.broadcast(received, 0)
                tensors[name] = received.cpu()
        self.engine.load_state(state)
        if about["world_size"] == self.ranks.world:
            generators = self.ranks.gather(newest.parts["generators"] if newest else {})[0]
            # A generator that the checkpoint's machine had not stays as it is.
            if (name := f"cpu.{self.ranks.rank}") in generators:
                torch.set_rng_state(generators[name])
            if self.ranks.device.type == "cuda" and (name := f"cuda.{self.ranks.rank}") in generators:
                torch.cuda.set_rng_state(generators[name], self.ranks.device)
        self.last_step = int(about["step"])
        self.callbacks = about.get("carried", {})
        if self.ranks.is_first:
            print(
                f"continuing after step {self.last_step} from {path}{what_changed(self.config, about, self.about())}",
                flush=True,
            )
        return self.last_step

    def check_newest(self, state: Parts) -> Checkpoint | None:
        """The newest checkpoint, if it is one of this model, whose `state` gives names and shapes."""
        newest = self.folder.newest()
        if newest is None:
            begin_again(self.folder.folder.parent)
            return None
        check_frozen(newest.path, newest.about, self.frozen)
        for part, tensors in state.items():
            ours = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            theirs = {name: tuple(tensor.shape) for name, tensor in newest.parts.get(part, {}).items()}
            if ours != theirs:
                differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
                raise RunError(
                    f"{newest.path} holds other {part} than this model trains ({', '.join(differing[:3])}); choose "
                    f"another folder with run=DIR"
                )
        self.folder.set_aside(newest.path)
        return newest


def what_changed(config: Config, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is no longer exact when a run goes on in another way than its checkpoint says; empty when nothing is.

    BIKE's loss is within a micro-batch of all ranks; blends and colours are drawn for a micro-batch of one.
    """
    names = {
        "world_size": "rank(s)", "accumulation": "micro-batch(es)", "zero_stage": "as ZeRO stage",
        "precision": "as precision",
    }  # fmt: skip
    was = {"accumulation": now["accumulation"], **was}  # which earlier versions did not store
    changed = [f"{now[key]} {name} (was {was[key]})" for key, name in names.items() if now[key] != was[key]]
    if not changed:
        return ""
    others = []
    if config.method.objective == "bike" and was["accumulation"] != now["accumulation"]:
        others.append("method.objective=bike")
    if was["world_size"] * was["accumulation"] != now["world_size"] * now["accumulation"]:
        others += [f"loader.{key}" for key in BLENDS if getattr(config.loader, key)]
    effect = "sums are taken in another order or precision, so what follows agrees within rounding and not bit for bit"
    if others:
        effect = f"but not what goes by micro-batch ({', '.join(others)}), so losses differ from here on"
    return (
        f", now with {', '.join(changed)}. Clips, crops and labels of every step stay the same, and so do weights and "
        f"momentum; {effect}"
    )


def begin_again(run_dir: Path) -> None:
    """Say it when a run that has logged steps begins at step 0; its log is kept as `metrics.before-N.jsonl`.

    Raises `RunError` when it has finished: its weights must not be replaced because somebody has freed some space.
    """
    log, weights = run_dir / "metrics.jsonl", run_dir / "model" / "trained.safetensors"
    if not log.is_file() or not log.stat().st_size:
        return
    if weights.is_file():
        raise RunError(
            f"run {run_dir} has finished, but {run_dir / 'checkpoints'} holds no checkpoint to continue from: "
            f"ace evaluate run={run_dir} tests its weights; to train it anew, delete {weights}, or choose "
            f"another folder with run=DIR"
        )
    kept = log.with_name(f"metrics.before-{len(list(run_dir.glob('metrics.before-*.jsonl'))) + 1}.jsonl")
    os.replace(log, kept)
    print(
        f"WARNING: run {run_dir} has logged steps, but {run_dir / 'checkpoints'} holds no checkpoint (none was saved, "
        f"or all were deleted): it begins again at step 0; its log so far is kept as {kept.name}",
        flush=True,
    )


def check_frozen(path: Path, about: Mapping[str, Any], digest: str) -> None:
    if about["frozen_sha256"] != digest:
        raise RunError(
            f"{path} was trained on other frozen weights than those of model.video.weights and model.text.weights, or, "
            f"where they are gone, of the run's own model/{FROZEN}; bring the old files back, or choose another folder "
            f"with run=DIR"
        )


def weights_digest(run_dir: Path, state: Mapping[str, Tensor], name: str = FROZEN) -> str:
    """SHA-256 of these weights as the file `model/<name>` of the run.

    Raises `RunError` when the run's checkpoints were trained on other frozen weights.
    """
    whole = hashlib.sha256()
    for piece in file_pieces(state):
        whole.update(piece)
    digest = whole.hexdigest()
    for path in CheckpointFolder(run_dir / "checkpoints", keep=1).complete() if name == FROZEN else ():
        try:
            about = read_description(path)
        except RunError:
            continue  # damaged, and named when it is read
        check_frozen(path, about, digest)
    return digest


def store_frozen(run_dir: Path, state: Mapping[str, Tensor], name: str = FROZEN) -> str:
    """Make sure that the run has these weights as `model/<name>`; returns the SHA-256 of the file.

    Raises `RunError` as `weights_digest` does, and leaves what is there.
    """
    digest = weights_digest(run_dir, state, name)
    shared = run_dir.parent / ".frozen" / f"{digest}.safetensors"
    own = run_dir / "model" / name
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
        print(f"weights are copied into {own}, not linked to {shared}: {error.strerror}", flush=True)
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
    whole = file_sha256(path) == digest
    if not whole:
        print(f"{path} is damaged (its SHA-256 is not its name); it is written again", flush=True)
    return whole
