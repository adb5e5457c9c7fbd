"""Classify a video among any labels: `python launchers/classify.py run=DIR video=FILE actions='[spin block, ...]'`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("classify"))
