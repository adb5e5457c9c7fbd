"""Weights of transformers' video models become the file of our tubelet tower, strictly, and its layout again."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ace_dist.config import VideoConfig
from ace_dist.models.convert.layouts import SAME, WB, Rule, State, apply_rules, rename
from ace_dist.models.tubelets import TUBELET_TOWERS, TubeletTower, VJepa2Tower
from ace_dist.models.weights import save_safetensors
from ace_dist.utils.errors import ModelError
from ace_dist.utils.reading import read_object

SETTINGS_FILE = "config.json"
SEEN_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")  # say how clips must look
# As its authors' files have them and as transformers 5 has; None: of its pretraining, or the classes of its data set.
RULES = {
    "videomae": (
        Rule(r"(?:videomae\.)?(encoder\.layer\.\d+\.attention\.attention\.)q_bias", r"videomae.\1query.bias"),
        Rule(r"(?:videomae\.)?(encoder\.layer\.\d+\.attention\.attention\.)v_bias", r"videomae.\1value.bias"),
        Rule(r"(?:videomae\.)?((?:embeddings|encoder)\..*)", r"videomae.\1"),
        Rule(rf"fc_norm\.{WB}", SAME),
        Rule(r"(?:videomae\.)?layernorm\..*|encoder_to_decoder\..*|mask_token|decoder\..*|classifier\..*", None),
    ),
    "vjepa2": (
        Rule(r"(?:vjepa2\.)?(encoder\..*)", r"vjepa2.\1"),
        Rule(r"(?:vjepa2\.)?predictor\..*|pooler\..*|classifier\..*", None),
    ),
}
LICENCES = {
    "videomae": "as its model card says; the released VideoMAEs are CC-BY-NC 4.0: non-commercial",
    "vjepa2": "as its model card says; the released V-JEPA 2 are MIT or Apache-2.0",
}
TOLD = ("patch_size", "tubelet_size", "num_attention_heads", "hidden_act", "layer_norm_eps")
TOLD_BY = {  # of a file's settings, what its tensors do not tell or not alone
    "videomae": ("image_size", "qv_bias", *TOLD),
    "vjepa2": ("crop_size", "qkv_bias", *TOLD),
}


def video_state(config: VideoConfig, raw: Mapping[str, Tensor], source: Path) -> State:
    """A file's tensors under our names, with what no rule knows; prints what is left out.

    Raises `ModelError` when the settings beside the file are of another model, or of another normalisation.
    """
    check_beside(config, source if source.is_dir() else source.parent, source)
    converted = apply_rules(raw, RULES[str(config.arch)])
    if converted.dropped:
        parts = dict.fromkeys(name.removeprefix(f"{config.arch}.").split(".")[0] for name in converted.dropped)
        print(f"left out, of its pretraining: {len(converted.dropped)} tensors of {', '.join(parts)}")
    return converted.state | {name: raw[name] for name in converted.unexpected}


def check_beside(config: VideoConfig, folder: Path, source: Path) -> None:
    advice = f"; it should say how {source} was made"
    about, *seen = (
        read_object(path, ModelError, advice) if (path := folder / name).is_file() else {}
        for name in (SETTINGS_FILE, *SEEN_FILES)
    )
    ours = TUBELET_TOWERS[str(config.arch)].library_config(config).to_dict()
    for key in ("model_type", *TOLD_BY[str(config.arch)]):
        if key in about and about[key] != ours[key]:
            raise ModelError(
                f"{source} has {key}={about[key]} ({SETTINGS_FILE}), and this model {key}={ours[key]}: it is another "
                f"model's file; choose the model whose file it is (`ace models`)"
            )
    for each in seen:
        for key, own in (("mean", config.mean), ("std", config.std)):
            given = each.get(f"image_{key}", own)
            if not torch.allclose(torch.tensor(given), torch.tensor(own), atol=1e-6):
                raise ModelError(
                    f"{source} was trained on clips of {key} {given} ({' or '.join(SEEN_FILES)}), and this model has "
                    f"model.video.{key}={own}: it is another model's file"
                )


def our_names(tower: TubeletTower, state: Mapping[str, Tensor]) -> State:
    """The tensors of `save_video_model`, with the head, under our names."""
    heads = {name: tensor for name, tensor in state.items() if tower.head_names.match(name)}
    return rename(state, RULES[str(tower.config.arch)]) | heads


def save_video_model(tower: TubeletTower, folder: Path, frames: int) -> str:
    """transformers' layout, for clips of `frames`; its "classes" are the dimensions of the shared space.

    In place of V-JEPA 2's predictor, which belongs to its pretraining, stands the smallest that the library builds.
    """
    shape, state = tower.library_config(tower.config), tower.state_dict()
    if isinstance(tower, VJepa2Tower):
        from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Predictor

        name, shape.frames_per_clip = "VJEPA2ForVideoClassification", frames
        predictor = VJEPA2Predictor(shape).state_dict()
        state = state | {f"vjepa2.predictor.{key}": torch.zeros_like(tensor) for key, tensor in predictor.items()}
    else:
        name, shape.num_frames = "VideoMAEForVideoClassification", frames
    shape.architectures = [name]
    save_safetensors(released_names(state), folder / "model.safetensors", metadata={"format": "pt"})
    shape.save_pretrained(folder)
    return f'transformers.{name}.from_pretrained("{folder.name}").logits'


def released_names(state: Mapping[str, Tensor]) -> State:
    """VideoMAE's biases under the names that the released files have: every version of transformers reads them."""
    return {re.sub(r"(attention\.attention\.)(query|value)\.bias$", short_bias, name): state[name] for name in state}


def short_bias(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2][0]}_bias"
