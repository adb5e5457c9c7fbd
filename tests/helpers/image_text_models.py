"""Small image-text models, built twice: by open_clip itself from a configuration of its own, and by our settings."""

import copy
import json
from dataclasses import replace
from functools import lru_cache

import open_clip
import timm
import torch
from timm.models import register_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from ace_dist.config import load_config

SMALL = {"width": 48, "depth": 3, "heads": 2, "patch": 12, "image_size": 48, "embed_dim": 24}
SMALL_TEXT = {"width": 32, "depth": 2, "heads": 2}
FAMILIES = ("clip_b16", "laion_b16", "siglip_b16", "siglip2_b16", "pe_core_b16")
WORDS = ("spin", "block", "hammer", "the", "pin", "lift", "a", "side", "panel", "turn", "rotate", "raise")


@register_model
def ace_small_pe(pretrained=False, **changes):
    return timm.create_model("vit_pe_core_base_patch16_224", **timm_sizes(), **changes)


@register_model
def ace_small_siglip(pretrained=False, **changes):
    return timm.create_model("vit_base_patch16_siglip_224", **timm_sizes(), **changes)


def timm_sizes():
    names = {"embed_dim": "width", "depth": "depth", "num_heads": "heads", "patch_size": "patch"}
    return {"img_size": SMALL["image_size"], **{theirs: SMALL[ours] for theirs, ours in names.items()}}


def settings(model, tokenizer=None, **video):
    """`model.*` of a file of configs/model at the small size."""
    text = {**SMALL_TEXT, **({"vocabulary": 40, "tokenizer": tokenizer} if tokenizer else {})}
    changes = [f"model.video.{key}={value}" for key, value in {**SMALL, **video}.items()]
    changes += [f"model.text.{key}={value}" for key, value in text.items()]
    return ["experiment=demo", f"model={model}", "model.init=random", *changes]


@lru_cache
def small_base(model):
    """Composing takes seconds, and tests want many variants."""
    return load_config(settings(model)).model


def small_model(model, tokenizer=None, **video):
    base = small_base(model)
    text = {"vocabulary": 40, "tokenizer": str(tokenizer)} if tokenizer else {}
    text |= {"embed_dim": video.get("embed_dim", SMALL["embed_dim"])}
    return replace(base, video=replace(base.video, **video), text=replace(base.text, **text))


@torch.no_grad()
def shaken(network):
    """Some parameters start at zero or nearly so, and would hide a difference."""
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return network


def library_model(model, folder, vocabulary=None, **options):
    """open_clip's own model of the small size, by its own configuration file, with random weights."""
    own = small_base(model)
    config = copy.deepcopy(open_clip.get_model_config(own.video.arch))
    name = f"ace-small-{model}"
    vision, text = config["vision_cfg"], config["text_cfg"]
    config["embed_dim"] = SMALL["embed_dim"]
    if "timm_model_name" in vision:
        vision["timm_model_name"] = "ace_small_pe" if "pe_core" in vision["timm_model_name"] else "ace_small_siglip"
        config["embed_dim"] = own.video.width if vision["timm_proj"] == "none" else SMALL["embed_dim"]
    else:
        vision |= {"width": SMALL["width"], "layers": SMALL["depth"], "patch_size": SMALL["patch"]}
        vision["head_width"] = SMALL["width"] // SMALL["heads"]
    vision["image_size"] = SMALL["image_size"]
    text |= {"width": SMALL_TEXT["width"], "layers": SMALL_TEXT["depth"], "heads": SMALL_TEXT["heads"]}
    text["vocab_size"] = vocabulary or text["vocab_size"]
    (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{name}.json")
    return shaken(open_clip.create_model(name, **options).eval())


def close(ours, theirs):
    """Equal to 1e-5 of the largest number: the same sums in another order, in fp32."""
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def small_tokenizer(folder, name="tokenizer"):
    """A folder with a tokenizer of 20 words as the hub's have: EOS at the end, padding by a token of its own."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{word: 3 + index for index, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )
    whole.save_pretrained(folder / name)
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    tokenizer.save(str(folder / f"{name}.json"))
    return folder / name, folder / f"{name}.json"
