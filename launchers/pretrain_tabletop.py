"""Pretrain both tabletop towers: `python launchers/pretrain_tabletop.py [output=DIR] [pretrain.steps=N] [key=value]`.

`output=ace_dist/assets/weights/tabletop` replaces the weights that the repository ships; without `output` they stay.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ace_dist.concepts import SynonymTrees
from ace_dist.config import load_config, run_launcher
from ace_dist.worlds.tabletop.pretraining import WORKERS, pretrain, read_settings, save_towers


def main(argv: Sequence[str]) -> None:
    """Render the narrated corpus, train on it, write weights in the form that `model=tabletop` loads."""
    settings, rest = read_settings([arg for arg in argv if not arg.startswith("output=")])
    out = next((Path(arg[7:]) for arg in argv if arg.startswith("output=")), Path("runs/tabletop_weights"))
    config = load_config(rest)
    print(
        f"{settings.seeing_steps} + {settings.steps} steps, 13 minutes when the shipped weights were made, into {out}",
        flush=True,
    )
    torch.set_num_threads(WORKERS)
    trees = SynonymTrees.load(config.dataset.synonyms or "")
    clip = (config.dataset.clip.frames, config.dataset.clip.seconds)
    result = pretrain(config.dataset.world, trees, config.model, config.loader, clip, settings, workers=WORKERS)
    command = shlex.join(["python", "launchers/pretrain_tabletop.py", *argv])
    save_towers(result, out, {"command": command, "pretrain": asdict(settings), "world": asdict(config.dataset.world)})
    print(f"{out}: narrated test {result.accuracies}, {result.wall_s:.0f} s")


if __name__ == "__main__":
    run_launcher(main)
