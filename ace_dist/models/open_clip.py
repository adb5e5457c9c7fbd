"""The networks of open_clip, by the name of a model of its own and the sizes of our settings.

`arch` says what kind of network it is (pooling, positions, activation, tokens); `width`, `depth`, `heads`, `patch` and
the rest of `model.video` and `model.text` say how large. With the sizes of open_clip's own configuration the networks
are its own, tensor by tensor.
"""

from dataclasses import fields, replace
from typing import Any, cast

from torch import nn

from ace_dist.config import TextConfig, VideoConfig, did_you_mean
from ace_dist.utils.errors import ModelError


def arch_config(arch: str | None, setting: str) -> dict[str, Any]:
    """open_clip's configuration of a model. Raises `ModelError` naming the setting when it has none of that name.

    A name with a colon would be of a hub or a folder; somebody else's `config.yaml` may not make us ask there.
    """
    import open_clip  # here: the import takes seconds

    if arch is None or ":" in arch or (config := open_clip.get_model_config(arch)) is None:
        names = open_clip.list_models()
        raise ModelError(
            f"{setting}={arch} is no model of open_clip{did_you_mean(str(arch), names)}; `python -c 'import open_clip; "
            f"print(open_clip.list_models())'` lists them, configs/model has files for some"
        )
    return cast(dict[str, Any], config)


def build_image_network(config: VideoConfig) -> nn.Module:
    """The image tower: open_clip's own `VisionTransformer`, or a dictionary with timm's network under "trunk".

    Either way parameters have the names that follow `visual.` in open_clip's files. Raises `ModelError` for a network
    that is no vision transformer or ends in a projection of timm's adapter.
    """
    about = arch_config(config.arch, "model.video.arch")
    vision = about["vision_cfg"]
    name, kind = vision.get("timm_model_name"), f"model.video.arch={config.arch}"
    if name is None:
        return native_image_network(config, about, kind)
    import timm

    if vision.get("timm_proj", "linear") not in (None, "", "none"):
        raise ModelError(f"{kind} projects by an adapter of its own, which is not supported; take another model")
    try:
        trunk = timm.create_model(
            name, pretrained=False, num_classes=0 if vision["timm_proj"] == "none" else config.embed_dim,
            global_pool=vision.get("timm_pool", "avg"), img_size=config.image_size, patch_size=config.patch,
            embed_dim=config.width, depth=config.depth, num_heads=config.heads, mlp_ratio=config.mlp_ratio,
        )  # fmt: skip
    except TypeError as error:
        raise ModelError(f"{kind} is no vision transformer ({error}); take one whose blocks can be counted") from error
    if getattr(trunk, "rope_mixed", False) or not hasattr(trunk, "blocks"):
        raise ModelError(f"{kind} has other blocks or rotary positions than this version knows; take another model")
    return nn.ModuleDict({"trunk": trunk})


def native_image_network(config: VideoConfig, about: dict[str, Any], kind: str) -> nn.Module:
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    known = {field.name for field in fields(CLIPVisionCfg)}
    shape = CLIPVisionCfg(**{key: value for key, value in about["vision_cfg"].items() if key in known})
    if not isinstance(shape.layers, int):
        raise ModelError(f"{kind} is a ResNet: it has no transformer blocks to count; take a ViT")
    shape = replace(
        shape, width=config.width, layers=config.depth, head_width=config.width // config.heads,
        mlp_ratio=config.mlp_ratio, patch_size=config.patch, image_size=config.image_size, patch_dropout=0.0,
        output_tokens=False,
    )  # fmt: skip
    return cast(nn.Module, _build_vision_tower(config.embed_dim, shape, about.get("quick_gelu", False)))


def build_text_network(config: TextConfig) -> Any:
    """open_clip's `TextTransformer`. Raises `ModelError` for a text tower of transformers, and for CoCa's."""
    from open_clip.model import CLIPTextCfg, _build_text_tower

    about = arch_config(config.arch, "model.text.arch")
    shape = CLIPTextCfg(**about["text_cfg"])
    kind = f"model.text.arch={config.arch}"
    if shape.hf_model_name or shape.embed_cls or shape.tokenizer_mode or shape.proj_type == "none":
        raise ModelError(f"{kind} has a text tower of another library, or a class token; take another model")
    if (shape.pool_type in ("argmax", "eos")) == shape.no_causal_mask:
        raise ModelError(
            f"{kind} pools '{shape.pool_type}' tokens, which does not go with its mask; take another model"
        )
    shape = replace(
        shape, width=config.width, layers=config.depth, heads=config.heads, mlp_ratio=config.mlp_ratio,
        context_length=config.context, vocab_size=config.vocabulary, output_tokens=False,
    )  # fmt: skip
    return _build_text_tower(config.embed_dim, shape, about.get("quick_gelu", False))


def text_cleaning(arch: str | None) -> str:
    """How a model's own tokenizer cleans a text, by open_clip's name for it."""
    options = arch_config(arch, "model.text.arch")["text_cfg"].get("tokenizer_kwargs") or {}
    if unknown := options.keys() - {"clean"}:
        raise ModelError(f"model.text.arch={arch} needs a tokenizer with {sorted(unknown)}, which is not supported")
    return str(options.get("clean", "whitespace"))
