"""Builds the encoders that a configuration names, with their weights."""

from collections.abc import Sequence, Set
from pathlib import Path

import torch
from torch import Tensor

from ace_dist.config import ModelConfig, read_config, resolve_path
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.interpolation import load_interpolated
from ace_dist.models.lora import plain_state
from ace_dist.models.similarity import Spotting
from ace_dist.models.weights import TensorFile, load_text_weights, load_video_weights, read_logits
from ace_dist.utils.console import say_once
from ace_dist.utils.errors import ModelError, UserError
from ace_dist.utils.files import CHECKSUMS, check_checksums

RUN_FILES = ("frozen.safetensors", "trained.safetensors")  # of a run's model folder
ATTRIBUTES = "similarity.attributes"  # of BIKE: embeddings of a text file, and so of a data set


def build_model(
    settings: ModelConfig,
    seed: int,
    trained: Path | None = None,
    parent: Path | None = None,
    temperature: float = 1.0,
) -> DualEncoder:
    """Both encoders: with the weights of the configuration, of a run (`trained` = its model folder), or untrained.

    Those of a `parent`, the model folder of another run, are the same but for the attributes, which are of its data
    set, and for LoRA, which begins anew from its merged weights. Random weights depend on `seed` alone, so every rank
    builds the same. `temperature` is what the method divides cosines by: a learned scale of the weights' logits starts
    beside it.
    """
    if (folder := trained or parent) is not None:
        check_size(settings, [folder / name for name in RUN_FILES])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DualEncoder(settings.video, settings.text, settings.similarity)
    if trained is not None:
        load_run_weights(model, trained)
        return model
    if parent is not None:
        load_parent_weights(model, settings, seed, parent)
    elif settings.init != "random":
        paths = (settings.video.weights, settings.text.weights)
        video, text = (None if path is None else resolve_path(path) for path in paths)
        if settings.init == "weights":
            load_video_weights(model.video, video)
            model.similarity.start_at(read_logits(video), temperature)
        if settings.text.tower != "minilm" or text is not None:  # which has the weights of its package
            load_text_weights(model.text, text)
    if isinstance(model.similarity, Spotting):
        model.similarity.embed_attributes(model.text)
    return model


def check_size(settings: ModelConfig, files: Sequence[Path]) -> None:
    """Raise `ModelError` when the settings describe more weights than the files hold, before memory is taken for them.

    Somebody else's `config.yaml` may ask for any width. A stored weight has one byte at least.
    """
    with torch.device("meta"):
        model = DualEncoder(settings.video, settings.text, settings.similarity)
    weights = sum(tensor.numel() for tensor in model.state_dict().values())
    held = sum(file.stat().st_size for file in files if file.is_file())
    if all(file.is_file() for file in files) and weights > held:
        raise ModelError(
            f"{files[0].parent} holds {held:,} bytes of weights and its config.yaml describes {weights:,} weights "
            f"(model.video, model.text): they do not belong together; bring both back from where they came"
        )


@torch.no_grad()
def load_run_weights(model: DualEncoder, folder: Path, left_out: Set[str] = frozenset()) -> None:
    """Load `frozen.safetensors` and `trained.safetensors` of a run. Raises `UserError` unless they are whole.

    Tensors that are `left_out` stay as they are.

    Every byte is compared with the checksum that the training wrote: 2 ms a MiB on one core.
    """
    paths = [folder / name for name in RUN_FILES]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist: the run has not finished training (`ace train` continues it)")
    again = "the command that trained the run writes it again out of the last checkpoint"
    if not check_checksums(folder, [path.name for path in paths], again):
        say_once(f"{folder} has no {CHECKSUMS}: its weights are used unchecked, as by the version that wrote them")
    files = [TensorFile(path) for path in paths]
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    stored = {name for file in files for name in file if name not in left_out}
    if own.keys() != stored:
        raise UserError(
            f"{folder} does not hold this model: {sorted(own.keys() ^ stored)[:4]} differ; the model's settings are in "
            f"{folder.parent / 'config.yaml'}"
        )
    for file in files:
        for name in own.keys() & file.keys():
            tensor = file[name]
            shape, expected = list(tensor.shape), list(own[name].shape)
            if shape != expected:
                raise UserError(f"{file.path}: {name} is {shape}, not {expected} as config.yaml says")
            own[name].copy_(tensor)


@torch.no_grad()
def load_parent_weights(model: DualEncoder, settings: ModelConfig, seed: int, folder: Path) -> None:
    """Load the weights that another run is tested with, LoRA's updates merged, but for its attributes.

    Raises `UserError` when they are not of this model.
    """
    config = read_config(folder.parent)
    theirs, share = config.model, config.evaluation.interpolate
    if share == 1 and not any(side.lora_rank for side in (settings.video, settings.text, theirs.video, theirs.text)):
        return load_run_weights(model, folder, {ATTRIBUTES})
    parent = build_model(theirs, seed, folder)
    if share != 1:
        load_interpolated(parent, folder, share)
    parent.merge_lora()
    own, stored = plain_state(model), parent.state_dict()
    if wrong := [name for name in own.keys() | stored.keys() if not is_alike(own.get(name), stored.get(name))]:
        raise UserError(
            f"{folder} does not hold this model: {sorted(wrong)[:4]} differ; the model's settings are in "
            f"{folder.parent / 'config.yaml'}"
        )
    for name in own.keys() - {ATTRIBUTES}:
        own[name].copy_(stored[name])


def is_alike(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape
