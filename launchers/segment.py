"""Find what a long video shows, and when: `python launchers/segment.py run=DIR video=FILE actions='[...]'`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("segment"))
