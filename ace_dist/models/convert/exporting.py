"""Writes the encoders in their libraries' layouts, which transformers and open_clip load, and reads them back."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ace_dist.models.convert.internvideo2 import join_sides, split_sides
from ace_dist.models.convert.layouts import VICLIP, VICLIP_BACK, convert, rename
from ace_dist.models.convert.open_clip import SETTINGS_FILE, join_state, split_state
from ace_dist.models.convert.video_models import our_names, save_video_model
from ace_dist.models.dual_encoder import DualEncoder
from ace_dist.models.frames import FrameTower
from ace_dist.models.internvideo2 import InternVideo2Tower
from ace_dist.models.joint import JointTower
from ace_dist.models.open_clip import arch_config
from ace_dist.models.text_bert import BertTextTower
from ace_dist.models.text_clip import ClipTextTower, PromptedClipTextTower
from ace_dist.models.text_open_clip import OpenClipTextTower
from ace_dist.models.timesformer import NORM_EPS, TimeSformer
from ace_dist.models.tokenizer import CONTEXT_LENGTH, load_bpe
from ace_dist.models.tubelets import TubeletTower
from ace_dist.models.video import resize_times
from ace_dist.models.weights import load_safetensors, save_safetensors
from ace_dist.utils.files import is_listed, write_json, write_text

WEIGHTS = "model.safetensors"
REST = "rest.safetensors"  # of the similarity: a learned scale and bias, attributes
PAIR = "open_clip/open_clip_model.safetensors"  # of both towers
VICLIP_FILE = "viclip/model.safetensors"  # of both of ViCLIP's
INTERNVIDEO2_FILE = "internvideo2/model.safetensors"  # of both of InternVideo2's
TEXT_CALLS = {"ViCLIP": "get_text_features", "InternVideo2_Stage2": "get_txt_feat"}
FORMAT = {"format": "pt"}  # transformers asks for it


def save_encoders(model: DualEncoder, folder: Path, frames: int, temperature: float = 1.0) -> dict[str, str]:
    """Write `video/`, `text/` and, for what belongs to neither, `rest.safetensors`; says how to load each.

    A TimeSformer becomes transformers' `TimesformerForVideoClassification`, whose "classes" are the dimensions of the
    shared space; its time positions are stored at `frames`, since transformers takes the length from its configuration.
    A video model of transformers becomes its own for classification, in the same way.
    A CLIP text tower becomes `CLIPTextModelWithProjection` with its tokenizer. Both towers of open_clip become its own
    model, whose scale is 1/`temperature` times what was learned; those of ViCLIP and InternVideo2 their authors'. Other
    towers are stored under our names.
    """
    loads = {"video": "ace_dist.Classifier only", "text": "ace_dist.Classifier only"}
    if isinstance(model.video, FrameTower) and isinstance(model.text, OpenClipTextTower):
        return save_pair(model, folder, temperature)
    if isinstance(model.video, InternVideo2Tower) and isinstance(model.text, BertTextTower):
        whole = join_sides(model.video.state_dict(), model.text.state_dict())
        return save_whole(model, whole, folder, INTERNVIDEO2_FILE, "InternVideo2_Stage2")
    if isinstance(model.video, TimeSformer):
        loads["video"] = save_timesformer(model.video, folder / "video", frames)
    elif isinstance(model.video, TubeletTower):
        loads["video"] = save_video_model(model.video, folder / "video", frames)
    else:
        save_safetensors(model.video.state_dict(), folder / "video" / WEIGHTS)
    if isinstance(model.text, ClipTextTower) and not isinstance(model.text, PromptedClipTextTower):
        loads["text"] = save_clip_text(model.text, folder / "text")
    else:
        save_safetensors(model.text.state_dict(), folder / "text" / WEIGHTS)
    if rest := model.similarity.state_dict():
        save_safetensors(rest, folder / REST)
    return loads


def load_encoders(model: DualEncoder, folder: Path) -> None:
    """Fill a model of the same configuration, strictly, from what `save_encoders` wrote."""
    video, text = load_safetensors(folder / "video" / WEIGHTS), load_safetensors(folder / "text" / WEIGHTS)
    if is_listed(folder, pair := whole_file(model)):
        stored = load_safetensors(folder / pair)
        if isinstance(model.video, InternVideo2Tower):
            sides = split_sides(stored)
            video, text = sides["video"], sides["text"]
        else:
            whole = split_state(rename(stored, VICLIP) if isinstance(model.video, JointTower) else stored)
            video, text = video | whole[0], text | whole[1]
    if isinstance(model.video, TimeSformer):
        video = convert(video, "hf_timesformer", "timesformer").state
    if isinstance(model.video, TubeletTower):
        video = our_names(model.video, video)
    model.video.load_state_dict(video)
    model.text.load_state_dict(text)
    model.similarity.load_state_dict(load_safetensors(folder / REST) if is_listed(folder, REST) else {})


def save_pair(model: DualEncoder, folder: Path, temperature: float) -> dict[str, str]:
    """`open_clip/` as open_clip reads it, and in `video/` what looks at several frames, which it does not know."""
    tower, text = model.video, model.text
    state = tower.state_dict()
    own = {name: tensor for name, tensor in state.items() if name.split(".")[0] in tower.fresh}
    about = pair_settings(model)
    config = about["model_cfg"]
    video = {name: tensor for name, tensor in state.items() if name not in own}
    is_joint = isinstance(tower, JointTower)
    whole = join_state(video, text.state_dict(), bool(config.get("custom_text")) and not is_joint)
    similarity = model.similarity
    learned = 0.0 if similarity.log_scale is None else float(similarity.log_scale.detach())
    whole["logit_scale"] = torch.tensor(learned - math.log(temperature))
    if is_joint:
        return save_whole(model, rename(whole, VICLIP_BACK), folder, VICLIP_FILE, "ViCLIP")
    if "init_logit_bias" in config:
        bias = config["init_logit_bias"] if similarity.bias is None else float(similarity.bias.detach())
        whole["logit_bias"] = torch.tensor(float(bias))
    save_safetensors(whole, folder / PAIR, metadata=FORMAT)
    write_json(folder / PAIR.replace(Path(PAIR).name, SETTINGS_FILE), about)
    save_safetensors(own, folder / "video" / WEIGHTS, metadata=FORMAT)
    save_safetensors({}, folder / "text" / WEIGHTS, metadata=FORMAT)
    if rest := similarity.state_dict():
        save_safetensors(rest, folder / REST)
    if not library_reads(config, whole):
        return {"video": "ace_dist.Classifier only", "text": "ace_dist.Classifier only"}
    call = 'open_clip.create_model("local-dir:open_clip")'
    frames = "each frame, then their mean" if not own else "each frame alone, without what looks at several"
    return {"video": f"{call}.encode_image, {frames}", "text": f"{call}.encode_text"}


def save_whole(model: DualEncoder, whole: Mapping[str, Tensor], folder: Path, file: str, name: str) -> dict[str, str]:
    """Both towers in one file under their authors' names, which their code reads."""
    save_safetensors(whole, folder / file, metadata=FORMAT)
    for part in ("video", "text"):
        save_safetensors({}, folder / part / WEIGHTS, metadata=FORMAT)
    if rest := model.similarity.state_dict():
        save_safetensors(rest, folder / REST)
    call = f'safetensors.torch.load_file("{file}") into OpenGVLab\'s {name}'
    return {"video": f"{call}, get_vid_features", "text": f"{call}, {TEXT_CALLS[name]}"}


def whole_file(model: DualEncoder) -> str:
    """Where the export of a model has both towers, if it has them in one file."""
    if isinstance(model.video, InternVideo2Tower):
        return INTERNVIDEO2_FILE
    return VICLIP_FILE if isinstance(model.video, JointTower) else PAIR


def library_reads(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether open_clip's model of these settings has these tensors: timm's towers have one size a name there."""
    import open_clip

    shape = dict(config)
    kind = open_clip.CustomTextCLIP if shape.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        theirs = kind(**shape).state_dict()
    return {name: each.shape for name, each in theirs.items()} == {name: each.shape for name, each in state.items()}


def pair_settings(model: DualEncoder) -> dict[str, Any]:
    """`open_clip_config.json` of the model: open_clip's own configuration of its kind, with its sizes."""
    video, text = model.video.config, model.text.config
    config = arch_config(video.arch, "model.video.arch")
    config["embed_dim"] = video.embed_dim
    vision = config["vision_cfg"]
    vision["image_size"] = video.image_size
    if "timm_model_name" not in vision:
        vision |= {"width": video.width, "layers": video.depth, "patch_size": video.patch, "mlp_ratio": video.mlp_ratio}
        vision["head_width"] = video.width // video.heads
    config["text_cfg"] |= {
        "width": text.width, "layers": text.depth, "heads": text.heads, "mlp_ratio": text.mlp_ratio,
        "context_length": text.context, "vocab_size": text.vocabulary,
    }  # fmt: skip
    seen = {"size": [video.image_size] * 2, "mean": list(video.mean), "std": list(video.std), "mode": "RGB"}
    return {"model_cfg": config, "preprocess_cfg": seen}


def save_timesformer(tower: TimeSformer, folder: Path, frames: int) -> str:
    """transformers' layout. The mapping is that of the import, read from the other side."""
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    config = tower.config
    shape = TimesformerConfig(
        image_size=config.image_size, patch_size=config.patch, num_frames=frames, hidden_size=config.width,
        num_hidden_layers=config.depth, num_attention_heads=config.heads, num_labels=config.embed_dim,
        intermediate_size=int(config.width * config.mlp_ratio), attention_type="divided_space_time",
        layer_norm_eps=NORM_EPS, qkv_bias=True, hidden_act="gelu",
    )  # fmt: skip
    with torch.device("meta"):
        theirs = TimesformerForVideoClassification(shape).state_dict()
    names = {id(tensor): key for key, tensor in theirs.items()}
    ours = convert(theirs, "hf_timesformer", "timesformer").state
    state = tower.state_dict()
    state["time_embed"] = resize_times(state["time_embed"], frames, config.time_embed_resize)
    save_safetensors({names[id(tensor)]: state[key] for key, tensor in ours.items()}, folder / WEIGHTS, metadata=FORMAT)
    shape.architectures = [TimesformerForVideoClassification.__name__]
    shape.save_pretrained(folder)
    return f'transformers.TimesformerForVideoClassification.from_pretrained("{folder.name}").logits'


def save_clip_text(tower: ClipTextTower, folder: Path) -> str:
    """transformers' layout, whose names are ours, with the tokenizer's vocabulary in Hugging Face's two files."""
    save_safetensors(tower.state_dict(), folder / WEIGHTS, metadata=FORMAT)
    shape = tower.text_model.config
    shape.architectures = ["CLIPTextModelWithProjection"]
    shape.save_pretrained(folder)

    # CLIP's vocab.json and merges.txt, out of the vocabulary that open_clip carries.
    bpe = load_bpe()
    begin, end = "<|startoftext|>", "<|endoftext|>"  # Hugging Face's names of the last two
    names = {bpe.sot_token_id: begin, bpe.eot_token_id: end}
    vocabulary = {names.get(number, token): number for token, number in bpe.encoder.items()}
    write_text(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    merges = "\n".join(" ".join(pair) for pair in bpe.bpe_ranks)
    write_text(folder / "merges.txt", f"#version: 0.2\n{merges}\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": CONTEXT_LENGTH, "bos_token": begin, "eos_token": end,
        "unk_token": end, "pad_token": end,
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", settings)
    return f'transformers.CLIPTextModelWithProjection.from_pretrained("{folder.name}").text_embeds'
