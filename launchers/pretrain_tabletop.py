"""Pretrain both tabletop towers: `python launchers/pretrain_tabletop.py [output=DIR] [pretrain.steps=N]`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("pretrain_tabletop"))
