"""Reads and writes weight files (safetensors), and loads towers by exact key, with every difference reported."""

import hashlib
from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ace_dist.config import assets_dir
from ace_dist.models.lora import is_factor, plain_state
from ace_dist.models.video import VideoTower
from ace_dist.utils.errors import ModelError
from ace_dist.utils.files import write_bytes
from ace_dist.utils.reading import why_no_file

VIDEO_SETTING, TEXT_SETTING = "model.video.weights", "model.text.weights"
FROZEN, TRAINED = "frozen.safetensors", "trained.safetensors"  # of a run's model folder: together its whole model
START = "start.safetensors"  # beside them: what trains, as it was before
IMAGE_SIDE_OF_CLIP = ("vision_model.", "visual_projection.", "logit_scale")  # in the files of a whole CLIP model
LOGITS = "similarity.logit_"  # scale and bias of an image-text model, beside its image side
OWN_LICENCE = "Apache-2.0"  # of what ships with ace-dist, and of what `ace weights pretrain` makes anew
LICENCE = "licence_of_released_files"  # in a file's metadata
NOT_RECORDED = "not recorded in the file"
POSITION_IDS = "text_model.embeddings.position_ids"  # a constant buffer in files of older transformers


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each mapped anew when it is asked for.

    So a model can be filled without a second copy of it: what was copied out of a tensor leaves memory with the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(path, "pt") as file:
            self.names = list(file.keys())
            self.metadata: dict[str, str] = file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            return cast(Tensor, file.get_tensor(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class LoadReport:
    path: Path
    loaded: int = 0
    missing: list[str] = field(default_factory=list)  # the model has it, the file has not
    unexpected: list[str] = field(default_factory=list)  # the file has it, the model has not
    mismatched: list[str] = field(default_factory=list)  # both have it, in shapes that do not fit
    resized: list[str] = field(default_factory=list)  # position or time embedding brought to the model's length
    started: list[str] = field(default_factory=list)  # parts of a method that no weight file has: they begin anew
    ignored: list[str] = field(default_factory=list)  # known to belong to another part, such as CLIP's image side

    def __str__(self) -> str:
        parts = [f"{self.path}: {self.loaded} tensors loaded"]
        for name in ("resized", "started", "ignored", "missing", "unexpected", "mismatched"):
            if keys := getattr(self, name):
                first = ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")
                parts.append(f"{len(keys)} {name} ({first})")
        return "; ".join(parts)

    @property
    def complete(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)


def load_video_weights(model: VideoTower, path: Path | str | None) -> LoadReport:
    """Load a video tower from safetensors with the keys of its `state_dict`. Raises `ModelError` for any difference.

    Except: position and time embeddings of other lengths are resized (`VideoTower.fit_positions`), and what the tower
    adds to its kind (learned prompts, layers over frames) stays as it is when the file has none of it.
    """
    stored = read_safetensors(path, VIDEO_SETTING)
    state: ChainMap[str, Tensor] = ChainMap({}, stored)  # type: ignore[arg-type]  # writes go to the first
    report = LoadReport(stored.path)
    model.check_origin(stored.names, stored.metadata)
    report.resized += model.fit_positions(state)
    report.ignored += [name for name in stored if name.startswith(LOGITS)]
    return assign(model, state, report, VIDEO_SETTING)


def read_logits(path: Path | str | None) -> dict[str, Tensor]:
    """Scale and bias of an image-text model's logits, as far as the file of its image side has them."""
    return {name: tensor for name, tensor in read_safetensors(path, VIDEO_SETTING).items() if name.startswith(LOGITS)}


def read_licence(path: Path) -> str:
    """The licence of the released weights that a file was made from, as `ace weights` wrote it there.

    What ships with ace-dist is ours, whatever the layout that two of its files were made through says of them.
    """
    if path.resolve().is_relative_to(assets_dir()):
        return OWN_LICENCE
    with safe_open(path, "pt") as file:
        return str((file.metadata() or {}).get(LICENCE, NOT_RECORDED))


def load_text_weights(tower: nn.Module, path: Path | str | None) -> LoadReport:
    """Load a text tower from safetensors with the keys of its `state_dict`; for CLIP these are Hugging Face's.

    The image side of a whole CLIP file is ignored. Raises `ModelError` for any other difference.
    """
    stored = read_safetensors(path, TEXT_SETTING)
    ignored = [key for key in stored if key.startswith(IMAGE_SIDE_OF_CLIP) or key == POSITION_IDS]
    return assign(tower, stored, LoadReport(stored.path, ignored=ignored), TEXT_SETTING)


def save_safetensors(
    state: Mapping[str, Tensor],
    path: Path | str,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Write tensors through a temporary name, so that no half-written file ever has the name; returns its SHA-256.

    Floating tensors are stored as `dtype` if given. Raises `ModelError` when a finite value would overflow in it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {}
    for key, tensor in state.items():
        target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        stored[key] = tensor.detach().to("cpu", target).contiguous().clone()
        if target.is_floating_point and not bool(stored[key].isfinite().all()) and bool(tensor.isfinite().all()):
            raise ModelError(f"{key} overflows {target}; store it in another type")
    data = save(stored, dict(metadata) if metadata else None)  # `save_file` hides a full disk's OSError
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_safetensors(path: Path | str | None, setting: str) -> TensorFile:
    """The tensors of a file, on the CPU. Raises `ModelError`, which names the setting."""
    if path is None:
        raise ModelError(f"{setting} is not set; give a safetensors file, or model.init=random to train from nothing")
    file = Path(path)
    if not file.is_file():
        raise ModelError(
            f"{file} {why_no_file(file)} ({setting}); give a safetensors file (`ace models` says where from), or "
            f"model.init=random"
        )
    try:
        return TensorFile(file)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a readable safetensors file ({setting}): {error}") from error


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file, on the CPU. Raises `ModelError` naming the file."""
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is missing or not a readable safetensors file: {error}") from error


def assign(model: nn.Module, state: Mapping[str, Tensor], report: LoadReport, setting: str) -> LoadReport:
    """Copy the tensors into the model when the report has no fault. Raises `ModelError`, which names the setting."""
    own = plain_state(model)
    fresh = {name for name in getattr(model, "fresh", ()) if not any(key.split(".")[0] == name for key in state)}
    report.missing = [key for key in own if key not in state and key.split(".")[0] not in fresh]
    report.started = [key for key in own if key.split(".")[0] in fresh]
    report.started += [key for key in model.state_dict() if is_factor(key)]
    report.unexpected = [key for key in state if key not in own and key not in report.ignored]
    shapes = {key: (list(state[key].shape), list(own[key].shape)) for key in own if key in state}
    report.mismatched = [f"{key} {theirs} for {ours}" for key, (theirs, ours) in shapes.items() if theirs != ours]
    if not report.complete:
        raise ModelError(
            f"{setting} does not fit the model: {report}; `ace weights` brings others' files, or another "
            f"tower's, under its names"
        )
    with torch.no_grad():
        for key in shapes:
            own[key].copy_(state[key])
    report.loaded = len(shapes)
    return report


@torch.no_grad()
def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load these tensors by name; the others stay as they are."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
