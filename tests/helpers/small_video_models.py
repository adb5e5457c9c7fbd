"""Small video models of transformers, built by the library itself, and our settings of the same size."""

import json
from dataclasses import replace
from functools import lru_cache

from image_text_models import SMALL, settings, shaken
from safetensors.torch import save_file
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from ace_dist.config import load_config

FRAMES = 4
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@lru_cache
def video_base(model):
    changes = [f"model.text.embed_dim={SMALL['embed_dim']}", f"dataset.clip.frames={FRAMES}"]
    return load_config([*settings(model), *changes]).model


def video_model_settings(model, **video):
    base = video_base(model)
    return replace(base, video=replace(base.video, **video))


def library_shape(frames=FRAMES, size=SMALL["image_size"], labels=SMALL["embed_dim"], **others):
    """The library's own configuration of the small size."""
    return VideoMAEConfig(
        image_size=size, patch_size=SMALL["patch"], num_frames=frames, hidden_size=SMALL["width"],
        num_hidden_layers=SMALL["depth"], num_attention_heads=SMALL["heads"], intermediate_size=4 * SMALL["width"],
        num_labels=labels, decoder_hidden_size=24, decoder_num_attention_heads=2, decoder_num_hidden_layers=1,
        decoder_intermediate_size=48, **others,
    )  # fmt: skip


def classifier(**shape):
    """The library's model for classification, with random weights."""
    return shaken(VideoMAEForVideoClassification(library_shape(**shape))).eval()


def pretraining():
    """As the authors release it: a norm over tokens where fine-tuning has one over their mean, and a decoder."""
    return shaken(VideoMAEForPreTraining(library_shape(use_mean_pooling=False))).eval()


def released_folder(model, folder):
    """A folder as the hub has it: the authors' names of biases, and how clips must look."""
    folder.mkdir()
    names = {".query.bias": ".q_bias", ".value.bias": ".v_bias"}
    state = {}
    for name, tensor in model.state_dict().items():
        end = next((end for end in names if name.endswith(end)), None)
        state[name.replace(end, names[end]) if end else name] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return folder
