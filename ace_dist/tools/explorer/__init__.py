"""Room of the explorer: a local page on which one asks a trained model about clips and words."""

from ace_dist.tools.explorer.session import Explorer, Look

__all__ = ["Explorer", "Look"]
