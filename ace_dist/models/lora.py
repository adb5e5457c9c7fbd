"""LoRA by peft: a block keeps its weights and learns an update of low rank to each matrix of its attention.

W [N,D] becomes W + alpha/r B A, with A [r,D] random and B [N,r] zero before training, which so begins at the weights
(Hu et al., LoRA, ICLR 2022). peft adds the update where a layer is called; code that multiplies by a layer's weight
itself takes `whole_weight`. `nn.MultiheadAttention` does so inside of torch, and peft's own way with it adds and
subtracts the update at every pass, after which the frozen weights are rounded ones: until `merge_lora`,
`LinearAttention` stands in its place.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ace_dist.config import TextConfig, VideoConfig

LORA_IN, LORA_OUT = ".lora_A.", ".lora_B."  # in the names of A and B
ALPHA = 2.0  # in ranks, where no alpha is set


class LinearAttention(nn.Module):
    """An `nn.MultiheadAttention` of open_clip's blocks, on two layers that are called: [B,L,D] -> [B,L,D]."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width, self.heads = attention.embed_dim, attention.num_heads
        self.in_proj = nn.Linear(width, 3 * width, device="meta")
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj: nn.Linear = attention.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Self-attention alone: `key` and `value` are `query`, and no weights are returned."""
        q, k, v = self.in_proj(query).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None

    def joined(self) -> nn.MultiheadAttention:
        """torch's module again, with the same weights."""
        attention = nn.MultiheadAttention(self.in_proj.in_features, self.heads, batch_first=True, device="meta")
        attention.in_proj_weight = cast(nn.Parameter, self.in_proj.weight)
        attention.in_proj_bias = self.in_proj.bias
        attention.out_proj = cast(Any, self.out_proj)
        return attention


def add_lora(blocks: Iterable[nn.Module], config: VideoConfig | TextConfig) -> None:
    """Give the attention of these blocks updates of `lora_rank`, if it is not 0; new ones, which change nothing yet."""
    if not config.lora_rank:
        return
    from peft import LoraConfig, inject_adapter_in_model  # of the extra [lora]; the import takes seconds

    whole = nn.ModuleList(blocks)
    for name, module in list(whole.named_modules()):
        if isinstance(module, nn.MultiheadAttention):
            whole.set_submodule(name, LinearAttention(module))
    attention = [name for name, module in whole.named_modules() if isinstance(module, nn.Linear) and "att" in name]
    alpha = ALPHA * config.lora_rank if config.lora_alpha is None else config.lora_alpha
    inject_adapter_in_model(
        LoraConfig(r=config.lora_rank, lora_alpha=cast(int, alpha), target_modules=attention), whole
    )


def trains_by(config: VideoConfig | TextConfig, name: str) -> bool:
    """Whether a parameter of a block that trains does so: with LoRA its factors alone."""
    return not config.lora_rank or is_factor(name)


def is_factor(name: str) -> bool:
    return LORA_IN in name or LORA_OUT in name


def plain_name(name: str) -> str:
    """What a weight that LoRA updates is called without it, in a tower's `state_dict`."""
    return name.replace(".in_proj.base_layer.", ".in_proj_").replace(".base_layer.", ".")


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """A `state_dict` without LoRA's factors, by the names of a module without it; the tensors are the module's own."""
    return {plain_name(name): tensor for name, tensor in module.state_dict().items() if not is_factor(name)}


def whole_weight(layer: nn.Linear) -> Tensor:
    """The weight [N,D] that a layer computes with, its update included."""
    update = getattr(layer, "get_delta_weight", None)
    return layer.weight if update is None else layer.weight + cast(Tensor, update("default"))


@torch.no_grad()
def merge_lora(tower: nn.Module) -> None:
    """Add every update to its weight, and put the layers back that LoRA replaced."""
    for name, layer in [(name, each) for name, each in tower.named_modules() if hasattr(each, "lora_A")]:
        layer.merge()
        tower.set_submodule(name, layer.get_base_layer())
    for name, attention in [(name, each) for name, each in tower.named_modules() if isinstance(each, LinearAttention)]:
        tower.set_submodule(name, attention.joined())
