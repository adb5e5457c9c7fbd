"""Talk to a trained model on a local page: `python launchers/explore.py run=DIR [port=7860]`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("explore"))
