"""Talk to a trained model on a local page: `python launchers/explore.py run=DIR [port=7860]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ace_dist.config import run_launcher, typed_settings
from ace_dist.utils.errors import ConfigError


@dataclass
class Settings:
    """Which run, and where the page is served; it is reachable from this machine alone."""

    run: str = ""
    port: int = 7860
    device: str = "cpu"
    largest_upload_mb: int = 200


def main(argv: Sequence[str]) -> None:
    """Load the run, serve the page until Ctrl-C."""
    settings = typed_settings(argv, Settings)
    if not settings.run:
        raise ConfigError("run is not set: give a finished run folder as run=..., such as run=runs/demo")
    from ace_dist.tools.explorer.page import serve

    serve(Path(settings.run), settings.port, settings.device, settings.largest_upload_mb)


if __name__ == "__main__":
    run_launcher(main)
