"""Builds the encoders that a configuration names, with their weights."""

from pathlib import Path

import torch

from ace_dist.config import ModelConfig, resolve_path
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.similarity import Spotting
from ace_dist.models.weights import TensorFile, load_text_weights, load_video_weights
from ace_dist.utils.distributed import say_once
from ace_dist.utils.errors import UserError
from ace_dist.utils.files import CHECKSUMS, check_checksums


def build_model(settings: ModelConfig, seed: int, trained: Path | None = None) -> DualEncoder:
    """Both encoders: with the weights of the configuration, of a run (`trained` = its model folder), or untrained.

    Random weights depend on `seed` alone, so every rank builds the same.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DualEncoder(settings.video, settings.text, settings.similarity)
    if trained is not None:
        load_run_weights(model, trained)
        return model
    if settings.init != "random":
        paths = (settings.video.weights, settings.text.weights)
        video, text = (None if path is None else resolve_path(path) for path in paths)
        if settings.init == "weights":
            load_video_weights(model.video, video)
        if settings.text.tower == "clip" or text is not None:
            load_text_weights(model.text, text)
    if isinstance(model.similarity, Spotting):
        model.similarity.embed_attributes(model.text)
    return model


@torch.no_grad()
def load_run_weights(model: DualEncoder, folder: Path) -> None:
    """Load `frozen.safetensors` and `trained.safetensors` of a run. Raises `UserError` unless they are whole.

    Every byte is compared with the checksum that the training wrote: 2 ms a MiB on one core.
    """
    paths = [folder / "frozen.safetensors", folder / "trained.safetensors"]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"{path} does not exist: the run has not finished training (launchers/train.py continues it)"
            )
    again = "the command that trained the run writes it again out of the last checkpoint"
    if not check_checksums(folder, [path.name for path in paths], again):
        say_once(f"{folder} has no {CHECKSUMS}: its weights are used unchecked, as by the version that wrote them")
    files = [TensorFile(path) for path in paths]
    own, stored = model.state_dict(), {name for file in files for name in file}
    if own.keys() != stored:
        raise UserError(f"{folder} does not hold this model: {sorted(own.keys() ^ stored)[:4]} differ")
    for file in files:
        for name, tensor in file.items():
            shape, expected = list(tensor.shape), list(own[name].shape)
            if shape != expected:
                raise UserError(f"{file.path}: {name} is {shape}, not {expected} as config.yaml says")
            own[name].copy_(tensor)
