"""ace-dist: Action Concept Enhancement (ACE) of video-language models, trained from one CPU to a SLURM cluster."""

from typing import TYPE_CHECKING, Any

from ace_dist.utils import renamed

if TYPE_CHECKING:
    from ace_dist.classifier import Classifier

__version__ = "0.2.0.dev0"
__all__ = ["Classifier", "__version__"]

renamed.install()


def __getattr__(name: str) -> Any:
    """Import `Classifier` on first use: `import ace_dist` alone stays free of torch."""
    if name == "Classifier":
        from ace_dist.classifier import Classifier

        return Classifier
    raise AttributeError(f"module 'ace_dist' has no attribute {name!r}")
