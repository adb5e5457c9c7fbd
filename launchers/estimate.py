"""Forecast a run: `python launchers/estimate.py experiment=NAME device=h100 ranks=1 mfu=0.35 clips=N measure=true`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("estimate"))
