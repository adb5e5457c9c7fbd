"""Forecast a run: `python launchers/estimate.py experiment=NAME device=h100 ranks=1 mfu=0.35 clips=N measure=true`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("estimate"))
