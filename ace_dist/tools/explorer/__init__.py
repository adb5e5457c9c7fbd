"""A local page on which one asks a trained model about clips and words."""

from ace_dist.tools.explorer.session import Explorer, LabelVotes

__all__ = ["Explorer", "LabelVotes"]
