"""Sweeps of trainings: `python launchers/sweep.py [run|status|collect|retry] sweep=NAME ...`."""

import sys

from ace_dist.cli import main

if __name__ == "__main__":
    sys.exit(main("sweep"))
