"""Weights of open_clip's models become the files of our two towers, strictly, and become open_clip's again.

The image side keeps its names. The text side is grouped as the text cache runs it, and a projection without a bias,
which open_clip multiplies from the right, is the weight of a linear layer. Scale and bias of the logits go with the
image side, under `similarity.`.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ace_dist.config import ModelConfig, load_config, shipped_file
from ace_dist.models.convert.importing import ImportConfig, check_tower, read_source, weight_file
from ace_dist.models.convert.internvideo2 import split_sides
from ace_dist.models.convert.layouts import CARD, HF_PAIR, VICLIP, rename
from ace_dist.models.convert.video_models import LICENCES, video_state
from ace_dist.models.open_clip import arch_config
from ace_dist.models.weights import save_safetensors
from ace_dist.utils.errors import ConfigError, ModelError
from ace_dist.utils.files import file_sha256, write_text
from ace_dist.utils.reading import read_object

State = dict[str, Tensor]
SETTINGS_FILE = "open_clip_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
EMBEDDINGS = ("token_embedding.weight", "positional_embedding")
TEXT = re.compile(
    r"(?:text\.)?(token_embedding|positional_embedding|transformer\.resblocks|ln_final|text_projection)\b"
)
LAYERS = "transformer.resblocks."
CLIP_TEXT = "clip_text.safetensors"  # of CLIP ViT-B/16
SCALARS = ("logit_scale", "logit_bias")
CONSTANTS = re.compile(r"(?:text\.)?attn_mask|input_resolution|context_length|vocab_size")


def split_state(state: Mapping[str, Tensor]) -> tuple[State, State, State]:
    """Image side, text side, and `similarity.logit_scale` and `similarity.logit_bias`, under our names.

    What is of neither keeps its name and comes with the image side, where loading it names it as unexpected.
    """
    video, text, scale = State(), State(), State()
    for name, tensor in state.items():
        if name in SCALARS:
            scale[f"similarity.{name}"] = tensor.reshape(1)
        elif TEXT.match(name):
            text |= text_entry(name.removeprefix("text."), tensor)
        elif not CONSTANTS.fullmatch(name):
            video[name] = tensor
    return video, text, scale


def text_entry(name: str, tensor: Tensor) -> State:
    if name in EMBEDDINGS:
        return {f"embeddings.{name}": tensor}
    if name == "text_projection":
        return {"text_projection.weight": tensor.T.contiguous()}
    return {name.replace(LAYERS, "layers."): tensor}


def join_state(video: Mapping[str, Tensor], text: Mapping[str, Tensor], custom_text: bool) -> State:
    """The state dict of open_clip's model, the inverse of `split_state`; `custom_text` names texts with a prefix."""
    prefix = "text." if custom_text else ""
    state = State(video)
    has_bias = "text_projection.bias" in text
    for name, tensor in text.items():
        if name == "text_projection.weight" and not has_bias:
            state[f"{prefix}text_projection"] = tensor.T.contiguous()
        else:
            theirs = re.sub(r"^layers\.", LAYERS, name.removeprefix("embeddings."))
            state[prefix + theirs] = tensor
    return state


def import_pair(settings: ImportConfig, licence: str | None = None) -> None:
    """`ace weights import model=NAME`: writes the files that `configs/model/NAME.yaml` names, into a folder.

    Of a video model of transformers that is its video file; its text tower is another model's. Raises `ModelError` when
    a tensor is missing, left over or of another shape, or when the settings beside the weights are of another
    architecture, image size, normalisation or tokenizer; then nothing is written.
    """
    for key in ("kind", "tower", "frames", "image_size", "embed_dim"):
        if getattr(settings, key) is not None:
            raise ConfigError(f"{key}={getattr(settings, key)} does not go with model={settings.model}, which says it")
    if not settings.source or settings.output.endswith(".safetensors"):
        raise ConfigError(f"model={settings.model} makes several files: give source=FILE or FOLDER, and output=FOLDER")
    config, source = pair_config(settings.model), Path(settings.source).expanduser()
    output, arch = Path(settings.output or "weights"), config.video.arch or config.video.tower
    raw = read_source(source, settings.allow_pickle)
    if config.video.tower == "open_clip":
        states, extra = pair_states(config, raw, source)
    elif config.video.tower == "internvideo2":
        states, extra = split_sides(raw), State()
    else:
        states, extra = {"video": video_state(config.video, raw, source)}, State()
    tokenizer = read_tokenizer(source, config) if config.text.tokenizer else None
    for name, state in states.items():
        check_tower(getattr(config, name), state, source, name == "text")
    states["video"] |= extra
    licence = licence or LICENCES.get(arch, CARD)
    facts = {
        "format": "pt", "source": source.name, "source_sha256": file_sha256(weight_file(source)),
        "kind": config.video.tower, "arch": arch, "image_size": str(config.video.image_size),
        "frames": str(config.video.frames),
        "licence_of_released_files": licence,
    }  # fmt: skip
    for name, state in states.items():
        part = getattr(config, name)
        path = output / Path(str(part.weights)).name
        save_safetensors(state, path, metadata={**facts, "tower": part.tower})
        print(f"{path}: {len(state)} tensors")
    if tokenizer is not None:
        path = output / Path(str(config.text.tokenizer)).name
        write_text(path, tokenizer)
        print(f"{path}: the tokenizer")
    print(f"licence of the released files: {licence}; keep to that of yours")
    print(
        f"use it with: model={settings.model}" + ("" if output == Path("weights") else f", whose files lie in {output}")
    )
    if "text" not in states:
        brings = ", which `ace weights get clip_b16` brings" if str(config.text.weights).endswith(CLIP_TEXT) else ""
        print(f"its text tower is that of model.text.weights={config.text.weights}{brings}")


def pair_states(config: ModelConfig, raw: Mapping[str, Tensor], source: Path) -> tuple[dict[str, State], State]:
    """Both sides of open_clip's model, or of ViCLIP, and scale and bias of its logits."""
    if any(name.startswith("vision_model.") for name in raw):
        raw = rename(raw, HF_PAIR)
    if config.video.temporal == "joint":
        raw = rename(raw, VICLIP)
    check_settings(config, settings_beside(source), source)
    video, text, scale = split_state(raw)
    return {"video": video, "text": text}, scale


@lru_cache
def pair_config(model: str | None) -> ModelConfig:
    """The settings of a file of configs/model, or of one of the user's, that names a model of another library."""
    if not str(model).endswith(".yaml"):
        shipped_file("model", str(model))
    config = load_config(["experiment=demo", f"model={model}"]).model
    towers = ("open_clip", "transformers", "internvideo2")
    if config.video.tower not in towers or config.video.weights is None or config.text.weights is None:
        raise ConfigError(
            f"model={model} has no tower of {', '.join(towers)} with weights; leave model out, and give tower="
        )
    return config


def settings_beside(source: Path) -> dict[str, Any]:
    """`open_clip_config.json` of the weights' folder; nothing when there is none."""
    path = (source if source.is_dir() else source.parent) / SETTINGS_FILE
    return read_object(path, ModelError, f"; it should say how {source} was made") if path.is_file() else {}


def check_settings(config: ModelConfig, about: Mapping[str, Any], source: Path) -> None:
    """Raise `ModelError` when the settings beside a file are of another kind than the model's."""
    video, model, seen = config.video, about.get("model_cfg") or {}, about.get("preprocess_cfg") or {}
    for key, own in (("mean", video.mean), ("std", video.std)):
        if key in seen and not torch.allclose(torch.tensor(seen[key]), torch.tensor(own), atol=1e-6):
            raise ModelError(
                f"{source} was trained on clips of {key} {seen[key]} ({SETTINGS_FILE}), and this model has "
                f"model.video.{key}={own}: it is another model's file"
            )
    if not model:
        return
    theirs, ours = signature(model), signature(arch_config(video.arch, "model.video.arch"))
    if differing := [key for key in ours if theirs[key] != ours[key]]:
        key = differing[0]
        raise ModelError(
            f"{source} has {key}={theirs[key]} ({SETTINGS_FILE}), and model.video.arch={video.arch} {ours[key]}: it is "
            f"another model's file"
        )


def signature(config: Mapping[str, Any]) -> dict[str, Any]:
    """What tells models of equal tensors apart: activation, pooling and tokens, by open_clip's names."""
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    return {
        "quick_gelu": bool(config.get("quick_gelu", False)), "embed_dim": config.get("embed_dim"),
        "timm_model_name": vision.get("timm_model_name"), "image_size": vision.get("image_size", 224),
        "context_length": text.get("context_length", 77), "vocab_size": text.get("vocab_size", 49408),
        "no_causal_mask": bool(text.get("no_causal_mask", False)), "pool_type": text.get("pool_type", "argmax"),
    }  # fmt: skip


def read_tokenizer(source: Path, config: ModelConfig) -> str:
    """The tokenizer of a folder as one file that says how texts are padded. Raises `ModelError` for another's."""
    folder = source if source.is_dir() else source.parent
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json, and {config.text.arch} has tokens of its own: put "
            f"{', '.join(TOKENIZER_FILES)} of its repository beside the weights"
        )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)  # a folder  # nosec B615
    if len(tokenizer) > config.text.vocabulary:
        raise ModelError(
            f"{folder / 'tokenizer.json'} has {len(tokenizer)} tokens and {config.text.arch} {config.text.vocabulary}: "
            f"it is another model's tokenizer"
        )
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder / 'tokenizer_config.json'} names no padding token; it is not {config.text.arch}'s")
    whole = tokenizer.backend_tokenizer
    whole.no_truncation()
    whole.enable_padding(
        pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token, direction=tokenizer.padding_side,
        length=config.text.context,
    )  # fmt: skip
    return json.dumps(json.loads(whole.to_str()), ensure_ascii=False)
