"""The names under which others store these networks, as tables of rules from their keys to ours.

Our names: a TimeSformer's are those of the official code, an image tower's those of timm's VisionTransformer, a
space-time tower's those of LaViLa without `visual.`, a text tower's those of transformers' CLIPTextModelWithProjection.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

State = dict[str, Tensor]


class Rule(NamedTuple):
    """Source keys that match `pattern` whole become `target` (a `re` template; None: known, and not of this tower).

    A template with `{qkv}` splits rows into equal thirds q, k, v; a pattern with a group `qkv` is one of those thirds.
    """

    pattern: str
    target: str | None
    change: Callable[[Tensor], Tensor] = lambda tensor: tensor


class Kind(NamedTuple):
    """A family of weight files: a key that only it has, the rules for each tower it can become, and its licence."""

    mark: str
    rules: Mapping[str, Sequence[Rule]]
    licence: str


@dataclass
class Converted:
    """A file under our names. `dropped` are keys of other parts, `unexpected` ones that no rule knows."""

    state: State = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    derived: dict[str, str] = field(default_factory=dict)  # our key -> how it was computed


def transpose(tensor: Tensor) -> Tensor:
    """A matrix that its owner multiplies from the right (x @ W) as the weight of a linear layer."""
    return tensor.T.contiguous()


WB = r"(weight|bias)"


def layer_rules(layer: str, names: Mapping[str, str], ours: str = r"blocks.\1.") -> tuple[Rule, ...]:
    """Weight and bias of the parts of a block, by their names; the first group of `layer` is the block's number."""
    return tuple(Rule(rf"{layer}{re.escape(old)}[._]{WB}", rf"{ours}{new}.\2") for old, new in names.items())


SPATIAL = r"blocks\.\d+\.(?:norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\." + WB
SHARED = rf"(?:cls_token|pos_embed|patch_embed\.proj\.{WB}|(?:norm|head)\.{WB}|{SPATIAL})"
TEMPORAL = rf"(?:time_embed|blocks\.\d+\.(?:temporal_norm1|temporal_attn\.qkv|temporal_attn\.proj|temporal_fc)\.{WB})"
PROCEDUREVRL_REST = r"(?:order_tfm|text_model|head_cls)\..*"
SAME = r"\g<0>"

SPACETIME_BLOCK = {
    "temporal_norm1": "norm3", "temporal_attn.qkv": "timeattn.qkv", "temporal_attn.proj": "timeattn.proj",
    "temporal_fc": "temporal_fc",  # merged into timeattn.proj below
}  # fmt: skip
TIMESFORMER = {
    "timesformer": (Rule(SHARED, SAME), Rule(TEMPORAL, SAME)),
    "vit": (Rule(SHARED, SAME), Rule(TEMPORAL, None)),
    "spacetime": (
        Rule(SHARED, SAME),
        Rule(r"time_embed", SAME),
        *layer_rules(r"blocks\.(\d+)\.", SPACETIME_BLOCK),
    ),
}
HF_LAYER = r"(?:timesformer\.)?encoder\.layer\.(\d+)\."
HF_EMBEDDINGS = r"(?:timesformer\.)?embeddings\."
HF_BLOCK = {
    "layernorm_before": "norm1", "attention.attention.qkv": "attn.qkv", "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    "temporal_layernorm": "temporal_norm1", "temporal_attention.attention.qkv": "temporal_attn.qkv",
    "temporal_attention.output.dense": "temporal_attn.proj", "temporal_dense": "temporal_fc",
}  # fmt: skip
HF_TIMESFORMER = (
    Rule(HF_EMBEDDINGS + r"cls_token", "cls_token"),
    Rule(HF_EMBEDDINGS + r"position_embeddings", "pos_embed"),
    Rule(HF_EMBEDDINGS + r"time_embeddings", "time_embed"),
    Rule(HF_EMBEDDINGS + rf"patch_embeddings\.projection\.{WB}", r"patch_embed.proj.\1"),
    *layer_rules(HF_LAYER, HF_BLOCK),
    Rule(rf"(?:timesformer\.)?layernorm\.{WB}", r"norm.\1"),
    Rule(rf"classifier\.{WB}", r"head.\1"),
)
OPENAI_BLOCK = {
    "attn.in_proj": "self_attn.{qkv}_proj", "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1",
    "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
OPENAI_TEXT = (
    Rule(r"(?:text\.)?token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    Rule(r"(?:text\.)?positional_embedding", "text_model.embeddings.position_embedding.weight"),
    *layer_rules(r"(?:text\.)?transformer\.resblocks\.(\d+)\.", OPENAI_BLOCK, r"text_model.encoder.layers.\1."),
    Rule(rf"(?:text\.)?ln_final\.{WB}", r"text_model.final_layer_norm.\1"),
    Rule(r"(?:text\.)?text_projection", "text_projection.weight", transpose),  # square in ViT-B/16: nothing else tells
)
VISUAL_BLOCK = {
    "attn.in_proj": "attn.qkv", "attn.out_proj": "attn.proj", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
OPENAI_IMAGE = (
    Rule(r"visual\.class_embedding", "cls_token", lambda token: token.reshape(1, 1, -1)),
    Rule(r"visual\.positional_embedding", "pos_embed", lambda rows: rows[None]),
    Rule(r"visual\.conv1\.weight", "patch_embed.proj.weight"),
    Rule(rf"visual\.ln_pre\.{WB}", r"norm_pre.\1"),
    *layer_rules(r"visual\.transformer\.resblocks\.(\d+)\.", VISUAL_BLOCK),
    Rule(rf"visual\.ln_post\.{WB}", r"norm.\1"),
    Rule(r"visual\.proj", "head.weight", transpose),
)
CLIP_SCALARS = r"logit_scale|logit_bias|input_resolution|context_length|vocab_size|(?:text\.)?attn_mask"
OPENAI_TEXT_KEYS = (
    r"(?:text\.)?(?:token_embedding\.weight|positional_embedding|transformer\..*|ln_final\..*|text_projection)"
)
OPENAI_CLIP = {
    "text": (*OPENAI_TEXT, Rule(r"visual\..*", None), Rule(CLIP_SCALARS, None)),
    "vit": (*OPENAI_IMAGE, Rule(OPENAI_TEXT_KEYS, None), Rule(CLIP_SCALARS, None)),
}
HF_CLIP_LAYER = r"vision_model\.encoder\.layers\.(\d+)\."
HF_CLIP = {
    "text": (
        Rule(r"(?:text_model\.|vision_model\.)?embeddings\.position_ids", None),
        Rule(r"vision_model\..*|visual_projection\.weight", None),
        Rule(r"(?:text_model\.)?((?:embeddings|encoder\.layers|final_layer_norm)\..*)", r"text_model.\1"),
        Rule(r"text_projection\.weight", SAME),
        Rule(CLIP_SCALARS, None),
    ),
    "vit": (
        Rule(r"vision_model\.embeddings\.class_embedding", "cls_token", lambda token: token.reshape(1, 1, -1)),
        Rule(r"vision_model\.embeddings\.position_embedding\.weight", "pos_embed", lambda rows: rows[None]),
        Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "patch_embed.proj.weight"),
        Rule(rf"vision_model\.pre_layrnorm\.{WB}", r"norm_pre.\1"),  # their spelling
        Rule(HF_CLIP_LAYER + rf"self_attn\.(?P<qkv>[qkv])_proj\.{WB}", r"blocks.\1.attn.qkv.\3"),
        Rule(HF_CLIP_LAYER + rf"self_attn\.out_proj\.{WB}", r"blocks.\1.attn.proj.\2"),
        Rule(HF_CLIP_LAYER + rf"layer_norm([12])\.{WB}", r"blocks.\1.norm\2.\3"),
        Rule(HF_CLIP_LAYER + rf"mlp\.(fc[12])\.{WB}", r"blocks.\1.mlp.\2.\3"),
        Rule(rf"vision_model\.post_layernorm\.{WB}", r"norm.\1"),
        Rule(r"visual_projection\.weight", "head.weight"),
        Rule(r"text_model\..*|text_projection\.weight|vision_model\.embeddings\.position_ids", None),
        Rule(CLIP_SCALARS, None),
    ),
}
# A whole CLIP of transformers as one of open_clip.
HF_BLOCK_NAMES = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
                  "self_attn.out_proj": "attn.out_proj"}  # fmt: skip


def hf_side(theirs: str, ours: str) -> tuple[Rule, ...]:
    """The blocks of one of the two transformers of transformers' CLIP."""
    layer, block = theirs + r"\.encoder\.layers\.(\d+)\.", ours + r"transformer.resblocks.\1."
    third = Rule(rf"{layer}self_attn\.(?P<qkv>[qkv])_proj\.{WB}", block + r"attn.in_proj_\3")
    return (*layer_rules(layer, HF_BLOCK_NAMES, block), third, Rule(theirs + r"\.embeddings\.position_ids", None))


HF_PAIR = (
    *hf_side("vision_model", "visual."), *hf_side("text_model", ""),
    Rule(r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    Rule(rf"vision_model\.pre_layrnorm\.{WB}", r"visual.ln_pre.\1"),  # their spelling
    Rule(rf"vision_model\.post_layernorm\.{WB}", r"visual.ln_post.\1"),
    Rule(r"visual_projection\.weight", "visual.proj", transpose),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    Rule(rf"text_model\.final_layer_norm\.{WB}", r"ln_final.\1"),
    Rule(r"text_projection\.weight", "text_projection", transpose),
    Rule(r"logit_scale", SAME),
)  # fmt: skip
# ViCLIP: CLIP's names under two prefixes, patches of a depth of one frame, and the temperature that divides cosines.
VICLIP = (
    Rule(r"vision_encoder\.temporal_positional_embedding", "times"),
    Rule(r"vision_encoder\.conv1\.weight", "visual.conv1.weight", lambda weight: weight.squeeze(2)),
    Rule(r"vision_encoder\.(.*)", r"visual.\1"),
    Rule(r"text_encoder\.(.*)", r"\1"),
    Rule(r"temp", "logit_scale", lambda temperature: -temperature.log()),
)
VICLIP_BACK = (
    Rule(r"times", "vision_encoder.temporal_positional_embedding"),
    Rule(r"visual\.conv1\.weight", "vision_encoder.conv1.weight", lambda weight: weight.unsqueeze(2)),
    Rule(r"visual\.(.*)", r"vision_encoder.\1"),
    Rule(r"logit_scale", "temp", lambda scale: (-scale).exp()),
    Rule(r"(.*)", r"text_encoder.\1"),
)
# BIKE's and Text4Vis' releases: OpenAI's names, and a transformer over frames with a learned position for each of 77.
OVER_FRAMES = (
    Rule(r"fusion_model\.frame_position_embeddings\.weight", "temporal.positions", lambda rows: rows[None]),
    *layer_rules(r"fusion_model\.transformer\.resblocks\.(\d+)\.", VISUAL_BLOCK, r"temporal.layers.\1."),
)
TEXT4VIS = {
    "vit": (*OPENAI_IMAGE, *OVER_FRAMES, Rule(OPENAI_TEXT_KEYS, None), Rule(CLIP_SCALARS, None)),
    "text": (*OPENAI_TEXT, Rule(r"(?:visual|fusion_model)\..*", None), Rule(CLIP_SCALARS, None)),
}
LAVILA_BLOCK = r"blocks\.\d+\.(?:norm[123]|attn\.qkv|attn\.proj|timeattn\.qkv|timeattn\.proj|mlp\.fc1|mlp\.fc2)\."
LAVILA = {
    "spacetime": (
        Rule(r"visual\.temporal_embed", "time_embed"),
        Rule(rf"visual\.ln_pre\.{WB}", r"norm_pre.\1"),
        Rule(rf"visual\.(cls_token|pos_embed|patch_embed\.proj\.{WB}|norm\.{WB}|{LAVILA_BLOCK}{WB})", r"\1"),
        Rule(r"image_projection", "head.weight", transpose),
        Rule(OPENAI_TEXT_KEYS, None),
        Rule(CLIP_SCALARS, None),
    ),
    "text": (*OPENAI_TEXT, Rule(r"visual\..*|image_projection", None), Rule(CLIP_SCALARS, None)),
}
TIMM_VIT = {tower: (Rule(SHARED, SAME), Rule(rf"norm_pre\.{WB}", SAME)) for tower in ("timesformer", "vit")}
CARD = "as its model card says"

# In the order of detection; the first tower is the default.
KINDS: dict[str, Kind] = {
    "procedurevrl": Kind(
        r"order_tfm\..*",
        {tower: (*rules, Rule(PROCEDUREVRL_REST, None)) for tower, rules in TIMESFORMER.items()},
        "CC-BY-NC-SA 3.0 (ProcedureVRL): non-commercial",
    ),
    "timesformer": Kind(
        r"blocks\.0\.temporal_attn\.qkv\.weight", TIMESFORMER, "CC-BY-NC 4.0 (TimeSformer): non-commercial"
    ),
    "hf_timesformer": Kind(
        HF_LAYER + r"temporal_dense\.weight",
        {"timesformer": HF_TIMESFORMER},
        "as its model card says; the released TimeSformers are CC-BY-NC 4.0: non-commercial",
    ),
    "text4vis": Kind(r"fusion_model\.frame_position_embeddings\.weight", TEXT4VIS, "MIT (Text4Vis, BIKE)"),
    "lavila": Kind(r"visual\.blocks\.0\.timeattn\.qkv\.weight", LAVILA, "MIT (LaViLa)"),
    "openai_clip": Kind(r"input_resolution", OPENAI_CLIP, "MIT (OpenAI CLIP)"),
    "open_clip": Kind(r"(?:text\.)?transformer\.resblocks\.0\.attn\.in_proj_weight", OPENAI_CLIP, CARD),
    "hf_clip": Kind(
        r"(?:text_model\.)?embeddings\.token_embedding\.weight|vision_model\.embeddings\.class_embedding",
        HF_CLIP,
        f"{CARD}; OpenAI's CLIP is MIT",
    ),
    "timm_vit": Kind(r"blocks\.0\.attn\.qkv\.weight", TIMM_VIT, CARD),
}


def convert(source: Mapping[str, Tensor], kind: str, tower: str) -> Converted:
    """A file's tensors under our names for one tower."""
    result = apply_rules(source, KINDS[kind].rules[tower])

    # What a tower has and its source has under no name of its own.
    state = result.state
    if tower in ("vit", "spacetime") and "head.weight" in state and "head.bias" not in state:
        state["head.bias"] = torch.zeros(len(state["head.weight"]), dtype=state["head.weight"].dtype)
        result.derived["head.bias"] = "zeros: the source's projection has no bias"
    if kind == "timm_vit" and tower == "timesformer" and "pos_embed" in state:
        inflate(result)
    if tower == "spacetime":
        for name in [key.removesuffix(".temporal_fc.weight") for key in state if key.endswith(".temporal_fc.weight")]:
            merge_temporal(result, name)
    return result


def rename(source: Mapping[str, Tensor], rules: Sequence[Rule]) -> State:
    """The tensors under the names of `rules`; what no rule knows keeps its own."""
    result = apply_rules(source, rules)
    return result.state | {name: source[name] for name in result.unexpected}


def apply_rules(source: Mapping[str, Tensor], rules: Sequence[Rule]) -> Converted:
    result = Converted()
    thirds: dict[str, dict[str, Tensor]] = {}
    for key, tensor in source.items():
        match, rule = next(
            ((match, rule) for rule in rules if (match := re.fullmatch(rule.pattern, key))), (None, None)
        )
        if match is None or rule is None or rule.target is None:
            (result.unexpected if match is None else result.dropped).append(key)
            continue
        target = match.expand(rule.target)
        if "{qkv}" in target:
            for name, part in zip("qkv", tensor.chunk(3), strict=True):
                result.state[target.replace("{qkv}", name)] = part.clone()
        elif "qkv" in match.re.groupindex:
            thirds.setdefault(target, {})[match["qkv"]] = tensor
        else:
            result.state[target] = rule.change(tensor)
    for target, parts in thirds.items():
        if set(parts) == set("qkv"):
            result.state[target] = torch.cat([parts[name] for name in "qkv"])
    return result


def inflate(result: Converted) -> None:
    """A TimeSformer out of an image model, as the official code starts one: its temporal branch adds nothing yet."""
    state = result.state
    width = state["pos_embed"].shape[-1]
    state["time_embed"] = state["pos_embed"].new_zeros(1, 8, width)
    result.derived["time_embed"] = "zeros, 8 frames"
    for name in [key.removesuffix(".attn.qkv.weight") for key in state if key.endswith(".attn.qkv.weight")]:
        for part in ("weight", "bias"):
            for theirs in ("norm1", "attn.qkv", "attn.proj"):
                ours = f"temporal_{theirs}"
                if f"{name}.{theirs}.{part}" in state:
                    state[f"{name}.{ours}.{part}"] = state[f"{name}.{theirs}.{part}"].clone()
                    result.derived[f"{name}.{ours}.{part}"] = f"copy of {theirs}.{part}"
        state[f"{name}.temporal_fc.weight"] = state["pos_embed"].new_zeros(width, width)
        state[f"{name}.temporal_fc.bias"] = state["pos_embed"].new_zeros(width)
        result.derived |= {f"{name}.temporal_fc.{part}": "zeros" for part in ("weight", "bias")}


def merge_temporal(result: Converted, block: str) -> None:
    """`temporal_fc` after `timeattn.proj` as one linear map; a space-time block has no second one."""
    state = result.state
    outer = [state.pop(f"{block}.temporal_fc.{part}", None) for part in ("weight", "bias")]
    inner = [state.get(f"{block}.timeattn.proj.{part}") for part in ("weight", "bias")]
    if any(tensor is None for tensor in (*outer, *inner)):
        return
    w_out, b_out, w_in, b_in = (tensor.float() for tensor in (*outer, *inner) if tensor is not None)
    merged = {"weight": w_out @ w_in, "bias": w_out @ b_in + b_out}
    for part, tensor in merged.items():
        state[f"{block}.timeattn.proj.{part}"] = tensor.to(state["pos_embed"].dtype)
        result.derived[f"{block}.timeattn.proj.{part}"] = "temporal_fc after temporal_attn.proj"
