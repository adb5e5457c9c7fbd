"""ACE: stochastic synonyms and shadow negatives, both towers trained as the configuration says (paper, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ace_dist.config import Config

__all__ = ["prepare"]


def prepare(config: Config) -> Config:
    """ACE takes the configuration as it stands: its four ablation switches are `method.*` settings."""
    return config
