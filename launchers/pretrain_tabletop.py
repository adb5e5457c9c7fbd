"""Pretrain both tabletop towers: `python launchers/pretrain_tabletop.py [output=DIR] [pretrain.steps=N]`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("pretrain_tabletop"))
