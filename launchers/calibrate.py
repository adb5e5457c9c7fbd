"""Teach a run when no label fits, and how to segment: `python launchers/calibrate.py run=DIR videos=FILE`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("calibrate"))
