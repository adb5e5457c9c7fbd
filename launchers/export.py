"""Export a finished run: `python launchers/export.py run=DIR output=DIR`."""

from ace_dist.cli import main

if __name__ == "__main__":
    raise SystemExit(main("export"))
