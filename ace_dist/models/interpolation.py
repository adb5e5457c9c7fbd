"""Weights between those before and after training (WiSE-FT: Wortsman et al., Robust fine-tuning, CVPR 2022)."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.lora import LORA_IN
from ace_dist.models.weights import START, TRAINED, TensorFile, load_tensors
from ace_dist.utils.errors import RunError


def interpolate(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`share` of each trained tensor and the rest of the one before training, by name; exact at 0 and at 1.

    An update B A of LoRA began at B = 0, so that its share is that share of B beside the trained A.
    """
    return {name: tensor if LORA_IN in name else start[name].lerp(tensor, share) for name, tensor in trained.items()}


def read_start(folder: Path) -> Mapping[str, Tensor]:
    return TensorFile(folder / START) if (folder / START).is_file() else {}


def keeps_start(folder: Path) -> bool:
    """Whether a run's `model` folder holds what each trained tensor was before training; earlier versions kept less."""
    return TensorFile(folder / TRAINED).keys() <= read_start(folder).keys()


def load_interpolated(model: DualEncoder, folder: Path, share: float) -> None:
    """Give a model the weights of a run's `model` folder at `share` of the way from its start to its end.

    Raises `RunError` for a run of an earlier version, which kept no weights of the video side from before training.
    """
    if not keeps_start(folder):
        raise RunError(
            f"evaluation.interpolate={share:g} needs the weights from before training, and {folder / START} does not "
            f"hold them: an earlier version trained this run; train it again, or set evaluation.interpolate=1"
        )
    load_tensors(model, interpolate(read_start(folder), TensorFile(folder / TRAINED), share))
