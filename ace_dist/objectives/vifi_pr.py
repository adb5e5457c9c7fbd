"""ViFi-CLIP, prompted: both encoders frozen, learned prompt tokens in their first layers train on root labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ace_dist.objectives.label import LabelObjective
from ace_dist.objectives.method import Method, root_labels_only, with_text_frozen
from ace_dist.utils.errors import UserError

if TYPE_CHECKING:
    from ace_dist.config import Config


def prepare(config: Config) -> Config:
    """Root labels, frozen encoders. Raises `UserError` when no prompt is left to train."""
    if not (config.model.video.prompt_tokens or config.model.text.prompt_tokens):
        raise UserError("method=vifi_pr trains prompts: set model.video.prompt_tokens or model.text.prompt_tokens")
    return with_text_frozen(root_labels_only(config))


METHOD = Method(prepare=prepare, objective=LabelObjective)
