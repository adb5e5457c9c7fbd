"""The TimeSformer: divided space-time attention, and stochastic depth that does not depend on the number of ranks.

Shapes: B clips, T frames, P patches of a frame, D width, E embedding width. Parameter names are those of the official
checkpoints without their `model.` prefix. The module is written from the published description of the network
(Bertasius et al. 2021) on timm's parts; what differs is layout and work left out, not results:

- patches stay in one [B,P,T,D] tensor and cls in a [B,1,D] one, so temporal attention copies nothing and spatial
  attention copies once, when cls is put in front of every frame;
- the two linear maps after temporal attention are one;
- norms, GELU and short attention on a CPU are computed again in the backward pass and not stored (`recompute`);
- the last block computes queries, projection and MLP for cls alone, as nothing else is read after it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional

from ace_dist.config import VideoConfig
from ace_dist.models.attention import (
    AttentionBackend,
    attend,
    attend_packed,
    choose_attention,
    describe,
    general_attention,
    resolve_attention,
)
from ace_dist.models.fused_blocks import FrozenTrunk, trunk_serves
from ace_dist.models.graphs import GraphedFunction
from ace_dist.models.lora import whole_weight
from ace_dist.models.patches import ClipPatches
from ace_dist.models.recompute import recompute
from ace_dist.models.video import VideoTower, check_config, resize_positions, resize_times
from ace_dist.utils.errors import ModelError
from ace_dist.utils.parts import part

NORM_EPS = 1e-6  # of the official model
Result = TypeVar("Result")


class DropStep(NamedTuple):
    """Which optimizer step's stochastic depth to draw, and this rank's place in the global batch."""

    seed: int
    step: int
    rank: int
    world: int


class DropMasks(NamedTuple):
    """Keep masks of one block, 0 or 1/keep: one entry for each sequence that a branch sees."""

    temporal: Tensor  # [B,P,1,1]
    spatial: Tensor  # [B,T,1,1]
    mlp: Tensor  # [B,1,1]


class Backends(NamedTuple):
    """The kernel of each attention of a block."""

    temporal: AttentionBackend
    spatial: AttentionBackend
    cls: AttentionBackend  # of the last block's one query


class Attention(nn.Module):
    """Multi-head self-attention with one qkv matrix (rows in the order q, k, v)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project_in(self, x: Tensor) -> Tensor:
        """Queries, keys and values, [...,N,D] -> [-1,N,3,heads,D/heads]."""
        return cast(Tensor, self.qkv(x).view(-1, x.shape[-2], 3, self.heads, x.shape[-1] // self.heads))

    def project_in_first(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first token's query [-1,1,heads,d] and all keys and values [-1,N,2,heads,d]: no other query is formed."""
        width = x.shape[-1]
        weight = whole_weight(self.qkv)
        q = functional.linear(x[..., :1, :], weight[:width], self.qkv.bias[:width])
        kv = functional.linear(x, weight[width:], self.qkv.bias[width:])
        split = (self.heads, width // self.heads)
        return q.view(-1, 1, *split), kv.view(-1, x.shape[-2], 2, *split)


class Block(nn.Module):
    """Temporal attention, spatial attention, MLP; each pre-normalised and residual."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.recomputes = True
        self.temporal_norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.temporal_attn = Attention(width, heads)
        self.temporal_fc = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def again(self, function: Callable[..., Result], *inputs: Tensor) -> Result:
        """`function(*inputs)`; where norms are computed again, it stores the inputs alone."""
        return recompute(function, *inputs) if self.recomputes else function(*inputs)

    @property
    def drops(self) -> bool:
        """Whether stochastic depth acts in this pass."""
        return self.training and self.drop_rate > 0

    def forward(
        self, cls: Tensor, patches: Tensor, masks: DropMasks | None, backends: Backends
    ) -> tuple[Tensor, Tensor]:
        """cls [B,1,D], patches [B,P,T,D] -> the same, one block on."""
        patches = self.temporal(patches, masks, backends)
        clips, places, times, width = patches.shape
        qkv = self.again(lambda cls, patches: self.attn.project_in(self.frames(cls, patches)), cls, patches)
        mixed = attend_packed(qkv, backends.spatial, self.recomputes).reshape(clips, times, 1 + places, width)
        out = drop(self.attn.proj(mixed), masks and masks.spatial)
        cls_out, patches_out = torch.split(out, [1, places], dim=2)
        cls = cls + cls_out.mean(1)
        patches = patches + patches_out.transpose(1, 2)
        return self.feed_forward(cls, masks), self.feed_forward(patches, masks)

    def last(self, cls: Tensor, patches: Tensor, masks: DropMasks | None, backends: Backends) -> Tensor:
        """The cls of `forward`, [B,1,D], without what only the patches would need."""
        patches = self.temporal(patches, masks, backends)
        q, kv = self.again(lambda cls, patches: self.attn.project_in_first(self.frames(cls, patches)), cls, patches)
        k, v = kv.unbind(2)
        mixed = attend(q, k, v, backends.cls, self.recomputes).reshape(len(cls), patches.shape[2], 1, cls.shape[-1])
        out = drop(self.attn.proj(mixed), masks and masks.spatial)
        return self.feed_forward(cls + out.mean(1), masks)

    def temporal(self, patches: Tensor, masks: DropMasks | None, backends: Backends) -> Tensor:
        """Every patch attends over its T frames; the residual is added after `temporal_fc`.

        Nothing but stochastic depth stands between the attention's projection and `temporal_fc`, so the two matrices
        are multiplied first: one product of D x D for 1/17 of the block's work on all tokens.
        """
        inner, outer = self.temporal_attn.proj, self.temporal_fc
        qkv = self.again(lambda patches: self.temporal_attn.project_in(self.temporal_norm1(patches)), patches)
        mixed = attend_packed(qkv, backends.temporal, self.recomputes).reshape(patches.shape)
        weight = outer.weight @ whole_weight(inner)
        if masks is None:
            return patches + functional.linear(mixed, weight, functional.linear(inner.bias, outer.weight, outer.bias))
        out = functional.linear(mixed, weight, outer.weight @ inner.bias)
        return patches + outer.bias + out * masks.temporal

    def frames(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Normalised input of spatial attention, [B,T,1+P,D]: cls in front of every frame. The one copy of a block."""
        cls = self.norm1(cls)[:, None].expand(-1, patches.shape[2], -1, -1)
        return torch.cat([cls, self.norm1(patches).transpose(1, 2)], dim=2)

    def feed_forward(self, x: Tensor, masks: DropMasks | None) -> Tensor:
        mask = masks and masks.mlp.view(-1, *[1] * (x.dim() - 1))
        hidden = self.again(lambda x: self.mlp.fc1(self.norm2(x)), x)
        return x + drop(self.again(lambda hidden: self.mlp.fc2(self.mlp.act(hidden)), hidden), mask)


class TimeSformer(VideoTower):
    """[B,T,3,S,S] -> [B,E]; T and S are those of the input."""

    blocks: Sequence[Block]

    def __init__(self, config: VideoConfig) -> None:
        super().__init__()
        check_config(config)
        self.config = config
        self.patch_embed = ClipPatches(config.image_size, config.patch, config.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, config.width))
        self.time_embed = nn.Parameter(torch.zeros(1, config.frames, config.width))
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        blocks = (Block(config.width, config.heads, config.mlp_ratio, rate) for rate in rates)
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = nn.Linear(config.width, config.embed_dim)
        self.drop_step: DropStep | None = None
        self.trunk: FrozenTrunk | None = None  # built at the first use
        self.graphs: GraphedFunction | None = None
        self.reset_parameters()
        self.add_lora()
        self.freeze()

    def reset_parameters(self) -> None:
        """As the official model, with zero `temporal_fc`: a new block passes on what the image model sees."""
        super().reset_parameters()
        for block in self.blocks:
            nn.init.zeros_(block.temporal_fc.weight)

    def set_step(self, seed: int, step: int, rank: int, world: int) -> None:
        """Fix the stochastic depth of the next training forwards, as a pure function of (seed, step, layer).

        Masks are drawn for the world * B clips of the global batch; this rank takes clips rank * B to (rank + 1) * B.
        With A micro-batches a step, micro-batch a of a rank is `set_step(seed, step, rank * A + a, world * A)`. Without
        any call, masks come from PyTorch's global generator.
        """
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not in 0..{world - 1}")
        self.drop_step = DropStep(seed, step, rank, world)

    def forward(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W], or the [B,1+P*T,D] of `frozen_features`, -> [B,E], not unit length.

        Clips are normalised RGB, or bytes with `ClipPatches.normalisation`. Raises `ModelError` for frames that are not
        square or not a multiple of the patch.
        """
        if video.dim() == 3:
            places, times = self.patch_embed.num_patches, (video.shape[1] - 1) // self.patch_embed.num_patches
        else:
            self.check_video(video)
            places, times = (video.shape[4] // self.config.patch) ** 2, video.shape[1]
        masks = self.drop_masks(len(video), places, times)
        if self.graphs is not None and self.training and torch.is_grad_enabled():
            return self.graphs(video, masks)
        return self.encode(video, masks)

    def encode(self, video: Tensor, masks: Tensor | None) -> Tensor:
        """`forward` with the keep masks of `drop_masks`: what CUDA graphs can launch."""
        return self.trained(*self.frozen(video), masks)

    def set_recompute(self, what: str) -> None:
        super().set_recompute(what)
        for block in self.blocks:
            block.recomputes = what != "none"

    def forget_device(self) -> None:
        self.trunk = self.graphs = None

    def frozen(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding and frozen blocks: clips, or their `frozen_features`, -> cls [B,1,D], patches [B,P,T,D]."""
        if video.dim() == 3:
            return video[:, :1], video[:, 1:].unflatten(1, (self.patch_embed.num_patches, -1))
        with self.grad_from(-1, self.time_embed.requires_grad):
            cls, patches = self.embed(video)
        with part("frozen blocks"), torch.no_grad():
            return self.frozen_blocks(cls, patches, compiled=True)

    def frozen_blocks(self, cls: Tensor, patches: Tensor, compiled: bool) -> tuple[Tensor, Tensor]:
        """What the frozen blocks make of cls [B,1,D] and patches [B,P,T,D], by fused kernels where these serve."""
        blocks, backends = self.blocks[: self.frozen_depth], self.backends(patches)
        if self.uses_trunk(patches.device):
            if self.trunk is None:
                self.trunk = FrozenTrunk(blocks, self.config.heads, self.config.trunk_precision == "fp8")
            self.trunk.refresh()
            return self.trunk(cls, patches, backends.temporal, backends.spatial)
        for block in blocks:
            cls, patches = (block if compiled else block.forward)(cls, patches, None, backends)
        return cls, patches

    def uses_trunk(self, device: torch.device) -> bool:
        """Whether `FrozenTrunk` takes the frozen blocks' place on `device`."""
        blocks, precision = self.blocks[: self.frozen_depth], self.config.trunk_precision
        return bool(blocks) and trunk_serves(blocks, precision, device, self.pos_embed.dtype)

    def trained(self, cls: Tensor, patches: Tensor, masks: Tensor | None) -> Tensor:
        """The other blocks, the norm and the head: what `frozen` returns and `drop_masks` -> [B,E]."""
        backends, below = self.backends(patches), self.time_embed.requires_grad
        dropped = iter(masks.unbind() if masks is not None else ())
        for index, block in list(enumerate(self.blocks))[self.frozen_depth :]:
            keep = split_masks(next(dropped), patches) if block.drops else None
            with part(self.part_name(index)), self.grad_from(index, below):
                if index == len(self.blocks) - 1:
                    cls = self.run_block(block.last, cls, patches, keep, backends)
                else:
                    cls, patches = self.run_block(block, cls, patches, keep, backends)
        with part("head"):
            return cast(Tensor, self.head(self.norm(cls[:, 0])))

    def backends(self, patches: Tensor) -> Backends:
        """Which kernels serve patches [B,P,T,D]."""
        setting, device, (_, places, times, width) = self.config.attention, patches.device, patches.shape
        head = (self.config.heads, width // self.config.heads, self.pos_embed.dtype)
        temporal, spatial = (resolve_attention(setting, device, tokens, *head) for tokens in (times, 1 + places))
        return Backends(temporal, spatial, general_attention(setting, device))

    @property
    def frozen_depth(self) -> int:
        """How many blocks `frozen_features` runs: the frozen ones, without the last block, which forms cls alone."""
        return 0 if self.time_embed.requires_grad else min(self.first_trained, len(self.blocks) - 1)

    @torch.no_grad()
    def frozen_features(self, video: Tensor) -> Tensor:
        """What no training changes, [B,T,3,S,S] -> [B,1+P*T,D]: cls, then the patches. Never compiled, so that
        the output does not depend on `model.video.compile`.
        """
        self.check_video(video)
        cls, patches = self.embed(video)
        cls, patches = self.frozen_blocks(cls, patches, compiled=False)
        return torch.cat([cls, patches.flatten(1, 2)], dim=1)

    def frozen_features_state(self) -> dict[str, Tensor]:
        """The weights that `frozen_features` depends on, by name."""
        blocks = [f"blocks.{index}." for index in range(self.frozen_depth)]
        prefixes = ("patch_embed.", "cls_token", "pos_embed", "time_embed", *blocks)
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(prefixes)}

    def frozen_features_settings(self, device: torch.device) -> tuple[list[Any], str]:
        """Settings that the arithmetic of `frozen_features` depends on, and which kernels compute it on `device`."""
        names = ("width", "depth", "heads", "patch", "image_size", "time_embed_resize")
        settings = [self.frozen_depth, *(getattr(self.config, name) for name in names)]
        kernels = describe(choose_attention(self.config.attention, device), device)
        if self.uses_trunk(device):
            kernels += f", fused blocks in {self.config.trunk_precision} precision"
        return settings, kernels

    def cross_layer_parameters(self) -> Iterator[nn.Parameter]:
        """The matrices that `Block.temporal` multiplies before it uses them, those of the last block's first query
        (`Attention.project_in_first`), and the patch embedding's, which its products read.
        """
        layers = [layer for block in self.blocks for layer in (block.temporal_attn.proj, block.temporal_fc)]
        for layer in (*layers, self.blocks[-1].attn.qkv, self.patch_embed.proj):
            yield from layer.parameters()

    def embed(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Patch, position and time embedding: [B,T,3,H,W] -> cls [B,1,D], patches [B,P,T,D]."""
        clips, frames = video.shape[:2]
        with part("patch embedding"):
            patches = self.patch_embed(video)
        positions = resize_positions(self.pos_embed, patches.shape[1])
        times = resize_times(self.time_embed, frames, self.config.time_embed_resize)
        cls = (self.cls_token + positions[:, :1]).repeat(clips, 1, 1)  # as later blocks get it: one compilation less
        return cls, patches + (positions[0, 1:, None] + times)

    def drop_masks(self, clips: int, places: int, times: int) -> Tensor | None:
        """Keep masks of every block that drops, 0 or 1/keep: [blocks,B,P+T+1]; None where none does."""
        dropping = [(index, block.drop_rate) for index, block in enumerate(self.blocks) if block.drops]
        if not dropping:
            return None
        draws = ((self.uniform(index, clips, places + times + 1), rate) for index, rate in dropping)
        kept = torch.stack([(draw >= rate).to(torch.float32).div_(1 - rate) for draw, rate in draws])
        return kept.to(self.pos_embed.dtype).to(self.pos_embed.device, non_blocking=True)

    def uniform(self, layer: int, clips: int, columns: int) -> Tensor:
        """Uniform numbers [clips,columns]: this rank's rows of the global batch's draw for (seed, step, layer)."""
        if self.drop_step is None:
            return torch.rand(clips, columns)
        seed, step, rank, world = self.drop_step
        digest = hashlib.blake2b(f"drop path {seed} {step} {layer}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return torch.rand(world * clips, columns, generator=generator)[rank * clips : (rank + 1) * clips]

    def check_video(self, video: Tensor) -> None:
        """Refuse clips that are not [B,T,3,S,S] with S a multiple of the patch."""
        if video.dim() != 5 or video.shape[2] != 3 or video.shape[3] != video.shape[4]:
            raise ModelError(f"a batch of clips must be [B,T,3,S,S], got {list(video.shape)}; set loader.crop")
        if video.shape[4] % self.config.patch or not video.shape[4]:
            raise ModelError(
                f"frames of {video.shape[4]} pixels are no multiple of model.video.patch={self.config.patch}; "
                "set loader.crop and model.video.image_size"
            )


def split_masks(kept: Tensor, patches: Tensor) -> DropMasks:
    """One block's row [B,P+T+1] of `TimeSformer.drop_masks` in the shapes that its branches take."""
    places, times = patches.shape[1:3]
    temporal, spatial, mlp = torch.split(kept[..., None], [places, times, 1], dim=1)
    return DropMasks(temporal[..., None], spatial[..., None], mlp)


def drop(x: Tensor, mask: Tensor | None) -> Tensor:
    """Stochastic depth: `x` with whole sequences set to zero and the others scaled up."""
    return x if mask is None else x * mask
