"""Owns the arithmetic of the encoders and their comparison: FLOPs of a training step, from shapes alone.

Counted are matrix products, a multiplication and an addition as two FLOPs, as the encoders here make them (frozen
blocks have no backward pass, the last TimeSformer block serves cls alone). Not counted: what is elementwise (norms,
softmax, activations, the class means of the loss), and what an attention kernel computes twice in its backward pass.
Causal attention counts in full, as `torch.utils.flop_counter` has it, to which all of this is tested to be equal.

Shapes: B clips, T frames, P patches of a frame, D width, S sentences, L tokens, N rows of a product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import nn

from ace_dist.models.similarity import Similarity, Spotting
from ace_dist.models.spacetime import SpaceTimeTower
from ace_dist.models.text import TextTower
from ace_dist.models.text_clip import PromptedClipTextTower
from ace_dist.models.text_minilm import MiniLMTextTower
from ace_dist.models.timesformer import TimeSformer
from ace_dist.models.video import VideoTower
from ace_dist.models.vit import ImageTower


class Flops(NamedTuple):
    """FLOPs of a part of a step."""

    forward: int
    backward: int


class FlopTally:
    """Adds up the products of a step by part, in their order, and follows whether gradients have to flow back.

    `flowing` says that the activations at this point depend on something that trains. Then a product costs its own
    FLOPs again for the gradient of its input, and once more for that of its weight when the weight trains.
    """

    def __init__(self) -> None:
        self.parts: dict[str, Flops] = {}
        self.flowing = False

    def add(self, part: str, flops: int, gradients: int) -> None:
        """A product of `flops`, of whose two factors `gradients` need a gradient."""
        forward, backward = self.parts.get(part, Flops(0, 0))
        self.parts[part] = Flops(forward + flops, backward + gradients * flops)

    def linear(self, part: str, rows: int, *layers: nn.Module) -> None:
        """`layers` (linear, or a convolution that cuts patches), all on the same input of `rows` rows."""
        for layer in layers:
            weight = cast(nn.Parameter, layer.weight)
            self.add(part, 2 * rows * whole_size(weight), self.flowing + weight.requires_grad)
        self.trains(*layers)

    def trains(self, *modules: nn.Module | nn.Parameter | None) -> None:
        """The activations pass modules or take up parameters, which may train."""
        for module in modules:
            parameters = module.parameters() if isinstance(module, nn.Module) else [module]
            self.flowing |= any(parameter is not None and parameter.requires_grad for parameter in parameters)

    def attention(self, part: str, sequences: int, queries: int, keys: int, width: int) -> None:
        """Scores and their use on values, in all heads together."""
        for _ in range(2):
            self.add(part, 2 * sequences * queries * keys * width, 2 * self.flowing)

    def mlp(self, part: str, rows: int, mlp: Any) -> None:
        """Two linear layers, one after the other."""
        self.linear(part, rows, mlp.fc1)
        self.linear(part, rows, mlp.fc2)


def whole_size(parameter: nn.Parameter) -> int:
    """Numbers in a parameter over all ranks; under ZeRO 3 this rank may hold none of them."""
    size: int = getattr(parameter, "ds_numel", parameter.numel())
    return size


def video_flops(tower: VideoTower, clips: int, frames: int, size: int) -> dict[str, Flops]:
    """Parts of a step in a video tower on [clips,frames,3,size,size]: patch embedding, frozen and trained blocks, head.

    A tower with stochastic depth costs the same: dropped branches are computed and set to zero.
    """
    count = {TimeSformer: count_timesformer, ImageTower: count_image, SpaceTimeTower: count_spacetime}[type(tower)]
    tally = FlopTally()
    patches = (size // tower.config.patch) ** 2
    tally.linear("patch embedding", clips * frames * patches, cast(Any, tower.patch_embed).proj)
    tally.trains(tower.cls_token, tower.pos_embed)
    count(tally, cast(Any, tower), clips, frames, patches)
    return tally.parts


def block_part(tower: VideoTower, index: int) -> str:
    """The name of the part that block `index` belongs to."""
    return "trained blocks" if index >= tower.first_trained else "frozen blocks"


def count_timesformer(tally: FlopTally, tower: TimeSformer, clips: int, frames: int, patches: int) -> None:
    """See `Block.temporal`, `Block.last` and `Attention.project_in_first` for what is merged and left out."""
    width, tokens, images = tower.config.width, clips * frames * patches, clips * frames
    tally.trains(tower.time_embed)
    for index, block in enumerate(tower.blocks):
        part, last = block_part(tower, index), index == len(tower.blocks) - 1
        tally.trains(block.temporal_norm1)
        tally.linear(part, tokens, block.temporal_attn.qkv)
        tally.attention(part, clips * patches, frames, frames, width)
        inner, outer = block.temporal_attn.proj, block.temporal_fc
        trained = inner.weight.requires_grad + outer.weight.requires_grad
        tally.add(part, 2 * width**3, trained)
        tally.add(part, 2 * width**2, inner.bias.requires_grad + outer.weight.requires_grad)
        tally.add(part, 2 * tokens * width**2, tally.flowing + bool(trained))
        tally.trains(inner, outer, block.norm1)
        query_rows = images if last else images * (1 + patches)
        gradients = tally.flowing + block.attn.qkv.weight.requires_grad
        tally.add(part, 2 * query_rows * width**2, gradients)
        tally.add(part, 2 * images * (1 + patches) * 2 * width**2, gradients)
        tally.trains(block.attn.qkv)
        tally.attention(part, images, query_rows // images, 1 + patches, width)
        tally.linear(part, query_rows, block.attn.proj)
        tally.trains(block.norm2)
        tally.mlp(part, clips if last else clips + tokens, block.mlp)
    tally.trains(tower.norm)
    tally.linear("head", clips, tower.head)


def count_image(tally: FlopTally, tower: ImageTower, clips: int, frames: int, patches: int) -> None:
    """timm's ViT on every frame, with its learned prompt tokens, and the transformer over frames behind it."""
    images, tokens = clips * frames, 1 + patches + tower.config.prompt_tokens
    tally.trains(tower.prompts, tower.norm_pre)
    for index, block in enumerate(tower.blocks):
        count_vit_block(tally, block_part(tower, index), block, images, tokens, tower.config.width)
    tally.trains(tower.norm)
    tally.linear("head", images, tower.head)
    if tower.temporal is not None:
        tally.trains(tower.temporal.positions)
        for block in tower.temporal.layers:
            count_vit_block(tally, "trained blocks", block, clips, frames, tower.config.embed_dim)


def count_vit_block(tally: FlopTally, part: str, block: Any, sequences: int, tokens: int, width: int) -> None:
    """One block of timm's."""
    tally.trains(block.norm1)
    tally.linear(part, sequences * tokens, block.attn.qkv)
    tally.attention(part, sequences, tokens, tokens, width)
    tally.linear(part, sequences * tokens, block.attn.proj)
    tally.trains(block.norm2)
    tally.mlp(part, sequences * tokens, block.mlp)


def count_spacetime(tally: FlopTally, tower: SpaceTimeTower, clips: int, frames: int, patches: int) -> None:
    """Every group of patches sees the class token too, which itself sees everything."""
    tokens, width = 1 + frames * patches, tower.config.width
    tally.trains(tower.time_embed, tower.norm_pre)
    for index, block in enumerate(cast(Sequence[Any], tower.blocks)):
        part = block_part(tower, index)
        groupings = ((block.norm3, block.timeattn, patches, frames), (block.norm1, block.attn, frames, patches))
        for norm, attention, groups, members in groupings:
            tally.trains(norm)
            tally.linear(part, clips * tokens, attention.qkv)
            tally.attention(part, clips, 1, tokens, width)
            tally.attention(part, clips * groups, members, members + 1, width)
            tally.linear(part, clips * tokens, attention.proj)
        tally.trains(block.norm2)
        tally.mlp(part, clips * tokens, block.mlp)
    tally.trains(tower.norm)
    tally.linear("head", clips, tower.head)


def text_flops(tower: TextTower, phrases: int, tokens: int) -> Flops:
    """The text tower's trainable tail on `phrases` phrases of the text feature cache, each of `tokens` tokens."""
    tally, config = FlopTally(), tower.config
    sentences = phrases * len(config.prompts)
    prompted = isinstance(tower, PromptedClipTextTower)
    if isinstance(tower, PromptedClipTextTower):
        tally.trains(tower.prompts)
    for index in range(0 if prompted else tower.first_trained, config.depth):
        count_text_layer(tally, tower, index, sentences, tokens)
    if prompted or config.trained_layers or config.train_projection:
        projection = tower.projection if isinstance(tower, MiniLMTextTower) else cast(Any, tower).text_projection
        if config.trained_layers and not isinstance(tower, MiniLMTextTower):
            tally.trains(cast(Any, tower).text_model.final_layer_norm)
        tally.linear("text", sentences, projection)
    return tally.parts.get("text", Flops(0, 0))


def count_text_layer(tally: FlopTally, tower: Any, index: int, sentences: int, tokens: int) -> None:
    """One layer of CLIP's text transformer (norms first) or of BERT's (norms last)."""
    rows, width = sentences * tokens, tower.config.width
    if isinstance(tower, MiniLMTextTower):
        layer = tower.bert.encoder.layer[index]
        inputs = (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value)
        rest = (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
    else:
        layer = tower.text_model.encoder.layers[index]
        tally.trains(layer.layer_norm1)
        inputs = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
        rest = (layer.self_attn.out_proj, layer.mlp.fc1, layer.mlp.fc2)
    tally.linear("text", rows, *inputs)
    tally.attention("text", sentences, tokens, tokens, width)
    for linear in rest:
        tally.linear("text", rows, linear)


def similarity_flops(
    similarity: Similarity, clips: int, frames: int, width: int, labels: int, phrases: int, flows: tuple[bool, bool]
) -> Flops:
    """The comparison of clips with `labels` class means, or by spotting with `phrases` distinct phrases.

    `flows`: whether gradients flow to the video and to the text.
    """
    video, text = flows
    tally = FlopTally()
    if not isinstance(similarity, Spotting):
        tally.add("loss", 2 * clips * labels * width, video + text)
        return tally.parts["loss"]
    pairs = 2 * clips * phrases * width
    tally.add("loss", pairs * frames, video + text)  # likeness of frames and phrases
    tally.add("loss", pairs * frames, (video or text) + video)  # frames weighed by it
    tally.add("loss", pairs, (video or text) + text)  # what that gives, and phrases
    if similarity.words:
        tally.add("loss", 2 * clips * len(similarity.words) * width, 0)  # a choice, which has no gradient
        tally.add("loss", pairs, int(text))
    return tally.parts["loss"]
