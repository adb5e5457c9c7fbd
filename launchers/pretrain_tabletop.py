"""Pretrain both tabletop towers: `python launchers/pretrain_tabletop.py [output=DIR] [pretrain.steps=N] [key=value]`.

`output=ace_dist/assets/weights/tabletop` replaces the weights that the repository ships; without `output` they stay.
"""

from ace_dist.config import run_launcher
from ace_dist.worlds.tabletop.pretraining import pretrain_command

if __name__ == "__main__":
    run_launcher(pretrain_command)
