"""Weights of InternVideo2's second stage become the files of our two towers, and their authors' names again."""

import re
from collections.abc import Mapping

from torch import Tensor

from ace_dist.models.convert.layouts import WB, Rule, State, apply_rules, rename

FUSED = re.compile(r"(text_encoder\.bert\.encoder\.layer\.\d+\.)crossattention\.")  # layers that see both sides
TO_OURS = (
    Rule(r"vision_encoder\.clip_projector\.cross_attn\.([qkv])_bias", r"video.clip_projector.cross_attn.\1.bias"),
    Rule(r"vision_encoder\.(?:(?:clip_|clip_img_|img_)pos_embed|(?:final_)?clip_decoder\..*)", None),
    Rule(r"vision_encoder\.(.*)", r"video.\1"),
    Rule(rf"vision_proj\.{WB}", r"video.head.\1"),
    Rule(r"text_encoder\.(?:cls\..*|bert\.embeddings\.position_ids)", None),
    Rule(r"text_encoder\.(.*)", r"text.\1"),
    Rule(rf"text_proj\.{WB}", r"text.projection.\1"),
    Rule(r"clip_teacher\..*|itm_head\..*|temp", None),
)
TO_THEIRS = (
    Rule(r"video\.clip_projector\.cross_attn\.([qkv])\.bias", r"vision_encoder.clip_projector.cross_attn.\1_bias"),
    Rule(rf"video\.head\.{WB}", r"vision_proj.\1"),
    Rule(r"video\.(.*)", r"vision_encoder.\1"),
    Rule(rf"text\.projection\.{WB}", r"text_proj.\1"),
    Rule(r"text\.(.*)", r"text_encoder.\1"),
)


def split_sides(raw: Mapping[str, Tensor]) -> dict[str, State]:
    """The tensors of each tower under our names; prints what is left out.

    Left out are the layers of BERT in which the text sees the video, positions of pictures, and what its pretraining
    compares with teachers. What no rule knows keeps its name, with the video side, where loading calls it unexpected.
    """
    fused = {match[1] for name in raw if (match := FUSED.match(name))}
    alone = {name: tensor for name, tensor in raw.items() if not name.startswith(tuple(fused))}
    converted = apply_rules(alone, TO_OURS)
    if left_out := len(raw) - len(alone) + len(converted.dropped):
        print(f"left out, of its pretraining: {left_out} tensors, with the {len(fused)} layers that fuse both sides")
    sides: dict[str, State] = {"video": {name: raw[name] for name in converted.unexpected}, "text": {}}
    for name, tensor in converted.state.items():
        side, _, rest = name.partition(".")
        sides[side][rest] = tensor
    return sides


def join_sides(video: Mapping[str, Tensor], text: Mapping[str, Tensor]) -> State:
    """Both towers under their authors' names."""
    sides = (("video", video), ("text", text))
    return rename({f"{side}.{name}": tensor for side, state in sides for name, tensor in state.items()}, TO_THEIRS)
