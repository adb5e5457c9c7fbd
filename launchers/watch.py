"""Say what a live stream shows now: `python launchers/watch.py run=DIR source=camera actions='[...]'`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("watch"))
