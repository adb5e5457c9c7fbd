"""The pair of encoders: video and text in one space, which parameters train, and what a checkpoint holds of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from ace_dist.config import LoaderConfig, SimilarityConfig, TextConfig, VideoConfig
from ace_dist.models.graphs import GraphedFunction
from ace_dist.models.internvideo2 import InternVideo2Tower
from ace_dist.models.joint import build_frame_tower
from ace_dist.models.library import LibraryTower
from ace_dist.models.lora import merge_lora
from ace_dist.models.patches import ClipPatches
from ace_dist.models.similarity import Similarity, Spotting
from ace_dist.models.spacetime import SpaceTimeTower
from ace_dist.models.text import TextTower
from ace_dist.models.text_bert import BertTextTower, MiniLMTextTower
from ace_dist.models.text_clip import ClipTextTower, PromptedClipTextTower
from ace_dist.models.text_features import PhraseCache, TextFeatureCache
from ace_dist.models.text_open_clip import OpenClipTextTower
from ace_dist.models.timesformer import TimeSformer
from ace_dist.models.tubelets import build_tubelet_tower
from ace_dist.models.video import VideoTower
from ace_dist.models.vit import ImageTower
from ace_dist.utils.console import say
from ace_dist.utils.errors import ModelError

# Compiling takes 32 s and spares 4.8 ms a step (H100, 16 clips of 15 frames: 43.4 ms without, 38.6 compiled in graphs).
STEPS_THAT_PAY = 7000


class DualEncoder(nn.Module):
    """Video encoder E and text encoder G into one space of width D (ACE section 3); embeddings are not unit length."""

    def __init__(self, video: VideoConfig, text: TextConfig, similarity: SimilarityConfig | None = None) -> None:
        super().__init__()
        self.video = build_video_tower(video)
        self.text = build_text_tower(text)
        self.phrase_cache: PhraseCache | None = None  # of whoever asks a model that trains no more again and again
        similarity = similarity or SimilarityConfig()
        self.similarity = Spotting(similarity, video.embed_dim) if similarity.spotting else Similarity(similarity)

    def encode_video(self, video: Tensor) -> Tensor:
        """Clips [B,T,3,H,W], normalised RGB or bytes as `expect_clips` says -> [B,D]; [B,T,D] with `pooling=frames`."""
        if video.dtype != torch.uint8:
            video = video.to(next(self.video.parameters()).dtype)
        return cast(Tensor, self.video(video))

    def expect_clips(self, loader: LoaderConfig) -> None:
        """Take clips as a loader of these settings gives them: `loader.dtype=uint8` leaves it to us to normalise."""
        as_bytes = loader.dtype == "uint8"  # the TimeSformer alone: else refused with the configuration
        if isinstance(self.video.patch_embed, ClipPatches):
            self.video.patch_embed.normalisation = (tuple(loader.mean), tuple(loader.std)) if as_bytes else None

    def frozen_part(self, loader: LoaderConfig) -> TimeSformer | LibraryTower | None:
        """What `loader.feature_cache` keeps the output of; None without one. Takes clips as `expect_clips` does.

        Raises `ModelError` when the video tower has no frozen blocks to spare, or shares them out over the ranks.
        """
        self.expect_clips(loader)
        if loader.feature_cache is None:
            return None
        tower, config = self.video, self.video.config
        if not isinstance(tower, TimeSformer | LibraryTower) or not tower.frozen_depth:
            raise ModelError(
                f"loader.feature_cache={loader.feature_cache} has nothing to keep: model.video.tower={config.tower} "
                f"with trained_blocks={config.trained_blocks} and train_time_embed={config.train_time_embed} has no "
                "frozen blocks below; set loader.feature_cache=null"
            )
        if any(hasattr(parameter, "ds_id") for parameter in tower.parameters()):
            raise ModelError(
                "loader.feature_cache does not go with deepspeed=zero3, which shares the frozen blocks out"
            )
        return tower

    def compile_blocks(self, steps: int | None = None, obstacle: str | None = None) -> None:
        """Compile the video tower's blocks as `model.video.compile` says, and launch its training by CUDA graphs.

        `steps` of the run: many, when not said. `obstacle`: why `auto` does neither. A copy made before is as it was.
        """
        video = self.video
        mode = choose_compile(video.config, video.pos_embed.device, steps, obstacle)
        if mode not in ("none", "cudagraphs"):
            kind = "max-autotune-no-cudagraphs" if mode == "max-autotune" else "default"
            for block in video.blocks:
                block.compile(dynamic=False, mode=kind)
                if hasattr(block, "last"):  # what the last block does instead of its forward pass
                    block.last = torch.compile(block.last, dynamic=False, mode=kind)
        if mode not in ("none", "default") and isinstance(video, TimeSformer):
            video.graphs = GraphedFunction(video.encode, video)

    def build_text_features(self, phrases: Iterable[str]) -> TextFeatureCache:
        return TextFeatureCache(self.text, phrases)

    def release_text(self, stored: Mapping[str, Tensor]) -> None:
        """Free the text weights that only phrases outside of a cache need; `stored` has them by their names here."""
        self.text.release(lambda name: stored[f"text.{name}"])

    def merge_lora(self) -> None:
        """Add LoRA's updates to the weights: the same outputs, in the model that settings without it describe."""
        if self.video.config.lora_rank:
            merge_lora(self.video)
            self.video.config = replace(self.video.config, lora_rank=0, lora_alpha=None)
            self.video.freeze()
        if self.text.config.lora_rank:
            merge_lora(self.text)
            self.text.config = replace(self.text.config, lora_rank=0, lora_alpha=None)
            self.text.freeze()

    def set_step(self, seed: int, step: int, rank: int, world: int) -> None:
        """See `TimeSformer.set_step`."""
        self.video.set_step(seed, step, rank, world)

    def cross_layer_parameters(self) -> Iterator[tuple[nn.Module, nn.Parameter]]:
        """What ZeRO 3 has to gather for a whole module, and that module; it gathers all else layer by layer."""
        return ((self.video, parameter) for parameter in self.video.cross_layer_parameters())

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that train, in the groups "video" and "text", which have learning rates of their own."""
        video = [*self.video.parameters(), *self.similarity.parameters()]
        groups = {"video": video, "text": list(self.text.parameters())}
        return {name: [parameter for parameter in group if parameter.requires_grad] for name, group in groups.items()}

    def frozen_state_dict(self) -> dict[str, Tensor]:
        """What of `state_dict` does not train. After `release_text` it is not there any more."""
        assert self.text.stored is None
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in trained}


def choose_compile(config: VideoConfig, device: torch.device, steps: int | None, obstacle: str | None) -> str:
    """How the video tower's training runs: `model.video.compile`, and what `auto` means here, which is printed."""
    if config.compile != "auto":
        return config.compile
    if device.type != "cuda":
        obstacle = f"the model is on {device.type}"
    elif config.tower != "timesformer":
        obstacle = f"it has not been measured with model.video.tower={config.tower}"
    elif config.lora_rank:
        obstacle = f"it has not been measured with model.video.lora_rank={config.lora_rank}"
    if obstacle:
        choice, reason = "none", obstacle
    elif has_triton() and (steps is None or steps >= STEPS_THAT_PAY):
        choice, reason = "reduce-overhead", "torch.compile of the blocks, launched by CUDA graphs"
    else:
        reason = f"compiling takes half a minute and pays from {STEPS_THAT_PAY} steps"
        choice, reason = "cudagraphs", reason if has_triton() else "triton, which compiling needs, is not installed"
    say(f"compile: {choice}, {reason} (model.video.compile=auto)")
    return choice


def build_video_tower(config: VideoConfig) -> VideoTower:
    towers: Mapping[str, Callable[[VideoConfig], VideoTower]] = {
        "timesformer": TimeSformer, "vit": ImageTower, "spacetime": SpaceTimeTower, "open_clip": build_frame_tower,
        "transformers": build_tubelet_tower, "internvideo2": InternVideo2Tower,
    }  # fmt: skip
    return towers[config.tower](config)


def build_text_tower(config: TextConfig) -> TextTower:
    if config.tower == "clip":
        return PromptedClipTextTower(config) if config.prompt_tokens else ClipTextTower(config)
    if config.prompt_tokens:
        raise ModelError(f"model.text.prompt_tokens needs model.text.tower=clip, not {config.tower}")
    towers: Mapping[str, Callable[[TextConfig], TextTower]] = {
        "open_clip": OpenClipTextTower, "bert": BertTextTower, "minilm": MiniLMTextTower,
    }  # fmt: skip
    return towers[config.tower](config)
