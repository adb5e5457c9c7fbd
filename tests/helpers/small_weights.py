"""Released models at small widths, with random weights: what others' files hold, in a few kilobytes."""

import io

import torch
from open_clip import model as open_clip_model
from transformers import CLIPConfig, CLIPModel, TimesformerConfig, TimesformerForVideoClassification

D, DEPTH, HEADS, PATCH, E = 32, 2, 2, 8, 16


@torch.no_grad()
def shaken(model):
    """Every parameter random, so that none can be swapped for another unseen."""
    for parameter in model.parameters():
        parameter.normal_(std=0.3 if parameter.dim() > 1 else 0.1)
    return model.eval()


def hf_timesformer(frames=4, size=16, head=E):
    config = TimesformerConfig(
        image_size=size, patch_size=PATCH, num_frames=frames, hidden_size=D, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, intermediate_size=4 * D, num_labels=head, attention_type="divided_space_time",
    )  # fmt: skip
    return shaken(TimesformerForVideoClassification(config))


def openai_clip(square):
    """open_clip's own CLIP, which has OpenAI's names. `square`: as wide as the space, as in ViT-B/16."""
    embed = 64 if square else E
    vision = {"layers": DEPTH, "width": 64, "head_width": 32, "patch_size": PATCH, "image_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": HEADS, "layers": DEPTH}
    return shaken(open_clip_model.CLIP(embed, vision, text, quick_gelu=True))


def hf_clip_state():
    """A small CLIP under Hugging Face's names, with the constant buffers that files of older transformers have."""
    side = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    image = {**side, "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config={**side, "vocab_size": 49408}, vision_config=image, projection_dim=16)
    state = shaken(CLIPModel(config)).state_dict()
    return state | {f"{part}_model.embeddings.position_ids": torch.arange(5)[None] for part in ("text", "vision")}


def saved(state):
    """The bytes of a file of `torch.save`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
