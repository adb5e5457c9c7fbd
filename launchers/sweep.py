"""Sweeps of trainings: `python launchers/sweep.py [run|status|collect|retry] sweep=NAME ...`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("sweep"))
