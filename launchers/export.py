"""Export a finished run: `python launchers/export.py run=DIR output=DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ace_dist.config import run_launcher, simple_settings


def main(argv: Sequence[str]) -> None:
    """Write the folder and say how to load it."""
    settings = simple_settings(argv, {"run": "a finished run folder", "output": "a new folder"})
    from ace_dist.evaluate.export import export_run

    export_run(Path(settings["run"]), Path(settings["output"]))
    print(f'{settings["output"]}: load it with ace_dist.Classifier.from_pretrained("{settings["output"]}")')


if __name__ == "__main__":
    run_launcher(main)
