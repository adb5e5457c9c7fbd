"""Test the segmentation of long videos: `python launchers/evaluate_timelines.py run=DIR videos=FOLDER`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("evaluate_timelines"))
