"""Small video towers of every kind; those of transformers, built by the library itself, in our settings."""

import json
from dataclasses import replace
from functools import lru_cache

from image_text_models import SMALL, settings, shaken
from safetensors.torch import save_file
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from ace_dist.config import VideoConfig, load_config

FRAMES = 4
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TOWER = VideoConfig(
    width=48, depth=3, heads=2, patch=12, image_size=48, frames=4, embed_dim=24, drop_path=0.0, trained_blocks=2
)
TOWERS = {
    "timesformer": TOWER,
    "vit": replace(TOWER, tower="vit", clip_style=True),
    "spacetime": replace(TOWER, tower="spacetime", clip_style=True),
    "viclip": replace(TOWER, tower="open_clip", arch="ViT-B-16-quickgelu", temporal="joint"),
    "videomae": replace(TOWER, tower="transformers", arch="videomae"),
    "vjepa2": replace(TOWER, tower="transformers", arch="vjepa2"),
    "internvideo2": replace(TOWER, tower="internvideo2"),
}


@lru_cache
def video_base(model):
    changes = [f"model.text.embed_dim={SMALL['embed_dim']}", f"dataset.clip.frames={FRAMES}"]
    return load_config([*settings(model), *changes]).model


def video_model_settings(model, **video):
    base = video_base(model)
    return replace(base, video=replace(base.video, **video))


def library_shape(model, frames=FRAMES, size=SMALL["image_size"], labels=SMALL["embed_dim"], **others):
    """The library's own configuration of the small size; V-JEPA 2's pool without layers before it, as in our head."""
    same = {"patch_size": SMALL["patch"], "hidden_size": SMALL["width"], "num_hidden_layers": SMALL["depth"],
            "num_attention_heads": SMALL["heads"], "num_labels": labels}  # fmt: skip
    if model.startswith("vjepa2"):
        about = {
            "pred_hidden_size": 24,
            "pred_num_attention_heads": 2,
            "pred_num_hidden_layers": 1,
            "num_pooler_layers": 0,
        }
        return VJEPA2Config(crop_size=size, frames_per_clip=frames, **{**same, **about, **others})
    about = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
             "decoder_intermediate_size": 48, "intermediate_size": 4 * SMALL["width"]}  # fmt: skip
    return VideoMAEConfig(image_size=size, num_frames=frames, **{**same, **about, **others})


def classifier(model, **shape):
    """The library's model for classification, with random weights."""
    kind = VJEPA2ForVideoClassification if model.startswith("vjepa2") else VideoMAEForVideoClassification
    return shaken(kind(library_shape(model, **shape))).eval()


def pretraining(model):
    """As its authors release it: VideoMAE with a norm over tokens where fine-tuning has one over their mean, and a
    decoder; V-JEPA 2 with a predictor.
    """
    if model.startswith("vjepa2"):
        return shaken(VJEPA2Model(library_shape(model))).eval()
    return shaken(VideoMAEForPreTraining(library_shape(model, use_mean_pooling=False))).eval()


def released_folder(model, folder):
    """A folder as the hub has it: the authors' names of biases, and how clips must look."""
    folder.mkdir()
    names = {"attention.attention.query.bias": "attention.attention.q_bias"}
    names["attention.attention.value.bias"] = "attention.attention.v_bias"
    state = {}
    for name, tensor in model.state_dict().items():
        end = next((end for end in names if name.endswith(end)), None)
        state[name.replace(end, names[end]) if end else name] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    seen = "video_preprocessor_config.json" if model.config.model_type == "vjepa2" else "preprocessor_config.json"
    (folder / seen).write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return folder
